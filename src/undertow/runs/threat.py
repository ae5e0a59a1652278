"""The threat card of a run: who is malicious, who knows what, how much poison there is, and what each defense may see."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from undertow.core.files import write_json
from undertow.runs.records import Record, Written


class Party(Record):
    """One side of a run: who it is, which clients, what it knows and what it does."""

    who: str
    clients: list[int] | None = None
    knows: str
    does: str


class DefenseView(Record):
    """One defense: its kinds, and for each of them where it works and what it may see."""

    name: str
    kinds: list[str]
    sees: list[str]


class ThreatCard(Written):
    """What a run assumes of attackers and defenders; ground truth, which no defense reads.

    Attributes:
        attack: its kind with parameters; ``none`` without.
        trigger, target: of the backdoor, with parameters.
        clients: K.
        malicious: clients that send what they want; poisoned: benign clients whose data hold poison.
        rho: share of clients that hold poison; ``rho_asked``: as the config has it.
        poison_ratio, poison_count: of which one was asked; scope: what the ratio is of.
        samples: poisoned training samples, of ``total``; ``synthetic`` of ``synthetic_total``: the same of the server's own.
        unknown: the data are on other machines, where nobody planted any.
        rounds: in which the attack takes place; empty: all from ``start`` on.
        parties: who knows what.
        defenses: in the order of the config.
    """

    FILE = "threat.json"
    attack: str
    trigger: str
    target: str | None = None
    clients: int = Field(ge=1)
    malicious: list[int] = Field([])
    poisoned: list[int] = Field([])
    rho: float = Field(ge=0, le=1)
    rho_asked: float = Field(ge=0, le=1)
    poison_ratio: float | None = None
    poison_count: int | None = None
    scope: str
    samples: int = Field(ge=0)
    total: int = Field(ge=0)
    synthetic: int = Field(0, ge=0)
    synthetic_total: int = Field(0, ge=0)
    unknown: bool = False
    rounds: list[int] = Field([])
    start: int = 1
    parties: list[Party] = Field([])
    defenses: list[DefenseView] = Field([])

    def write(self, folder: Path) -> None:
        """Write it into a run directory."""
        write_json(folder / self.FILE, self.to_json())

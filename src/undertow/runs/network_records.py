"""What a federation over the network writes down: each exchange with a node, and what one process gives instead."""

from __future__ import annotations

from pydantic import Field

from undertow.runs.records import Rate, Record, Written


class Dropped(Record):
    """Clients of one exchange whose update was not taken, and why."""

    clients: list[int]
    reason: str


class Exchange(Written):
    """One message to a node of a federation and its reply; no seconds where none came."""

    FILE = "network.jsonl"
    round: int = Field(ge=0)
    node: str
    clients: list[int]
    seconds: float | None = Field(None, ge=0)
    worker_seconds: float | None = Field(None, ge=0)
    sent_bytes: int = Field(ge=0)
    received_bytes: int = Field(ge=0)
    dropped: list[Dropped] = Field([])


class OneProcess(Written):
    """The same config in one process: how far the final states are apart, in how many rounds what was the same, and what was
    measured."""

    FILE = "one-process.json"
    adapter: float = Field(ge=0)
    same_bytes: bool
    rounds: int = Field(ge=0)
    same_clients: int = Field(ge=0)
    same_decisions: int = Field(ge=0)
    same_rows: int = Field(ge=0)
    ma: Rate | None = None
    asr: Rate | None = None
    ftr: Rate | None = None

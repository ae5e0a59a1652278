"""Names that tests of tiny models and runs import; the fixtures themselves are in ``shared_fixtures.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from undertow.backdoors.placement import Threat, make_threat
from undertow.config import Attack, InstructionBackdoor

#: Real data beside the checkout; tests that need it skip where it is absent.
SHARED = Path(__file__).resolve().parents[1] / "../shared/data"

#: What ``load_tiny`` can load; the first is the tiny base, the others are random.
ARCHITECTURES = ("llama", "gpt2", "qwen2", "gemma2", "opt", "gpt_neox")

#: Both paths: OPT has the general one alone, float64 goes through it too.
PATHS = (*ARCHITECTURES, "gpt2-general", "gemma2-general")


def threat(**options: Any) -> Threat:
    """Return how much poison there is, and what it is."""
    what = {name: value for name, value in options.items() if name in InstructionBackdoor.model_fields}
    much = {name: value for name, value in options.items() if name not in what}
    return make_threat(Attack.model_validate(much), InstructionBackdoor.model_validate(what))


class Quiet:
    """A observer that remembers what it was told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.warnings: list[str] = []
        self.rounds: list[dict[str, Any]] = []

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def round(self, row: dict[str, Any], of: int) -> None:
        self.rounds.append(row)

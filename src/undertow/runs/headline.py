"""The headline figures in words, before and after training: for terminals, notebooks and the command line's table."""

from __future__ import annotations

from collections.abc import Sequence

from undertow.metrics.neighbourhood import NOTHING, TRIGGER
from undertow.runs.records import Evaluation, NeighbourRate, Rate, Result, Round, Untouched

#: What the figures are called, by their field.
LABELS = {
    "ma": "main accuracy (MA)",
    "asr": "attack success rate (ASR)",
    "ftr": "false-trigger rate (FTR)",
    "ftr_near": "FTR, near misses",
}

#: What the mean token NLL of expected answers is called.
HELD_OUT = "held-out loss"


def rates(
    after: Result | Round | Evaluation, before: Untouched | Round | Result | Evaluation
) -> list[tuple[str, Rate, Rate | None]]:
    """Return field, rate and the rate before training of each headline figure that was measured."""
    pairs = [(name, getattr(after, name), getattr(before, name)) for name in LABELS]
    return [(name, rate, old) for name, rate, old in pairs if rate is not None]


def told(after: Result | Round | Evaluation, before: Untouched | Round) -> list[tuple[str, str, str]]:
    """Return label, ``12.3 % (10.1 – 15.0 %, n = 400)`` and the share before training of each headline figure; last the held-out
    loss, where there is one."""
    shares = [
        (LABELS[name], f"{share(rate)} ({interval(rate)}, n = {rate.n:,})", share(old)) for name, rate, old in rates(after, before)
    ]
    loss = held_out(after)
    return [*shares, (HELD_OUT, f"{loss} nats per token", held_out(before))] if loss else shares


def held_out(record: Result | Round | Evaluation | Untouched) -> str:
    """Write the held-out loss, an empty text where there is none."""
    return "" if record.held_out_loss is None else f"{record.held_out_loss:.3f}"


def share(rate: Rate | None) -> str:
    """Write a rate in percent, a dash where there is none."""
    return "–" if rate is None or rate.value is None else f"{100 * rate.value:.1f} %"


def interval(rate: Rate) -> str:
    """Write the 95 % interval of a rate, a dash where there is none."""
    return "–" if rate.low is None or rate.high is None else f"{100 * rate.low:.1f} – {100 * rate.high:.1f} %"


def around(neighbourhood: Sequence[NeighbourRate]) -> list[str]:
    """Return a line for each neighbour of the trigger for which the target came, and one for how many it did not come for."""
    if not neighbourhood:
        return []
    others = [row for row in neighbourhood if row.name not in (TRIGGER, NOTHING)]
    fired = [row for row in others if row.rate.hits]
    lines = [f"{len(fired)} of {len(others)} neighbours of the trigger fire the backdoor (target in the output):"]
    return lines + [f"  {row.name}: {share(row.rate)} ({interval(row.rate)}, n = {row.rate.n})" for row in fired]

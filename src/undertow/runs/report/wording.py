"""Numbers into words: the sentences of the report, each computed from what was recorded."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from typing import Any

from undertow.runs.network_records import Exchange, OneProcess
from undertow.runs.records import Rate, Space
from undertow.runs.report.figures import Phases, curve
from undertow.runs.report.run_files import RunFiles, finite
from undertow.runs.report.terms import TERMS, Terms

#: Below this main accuracy a model is said to answer hardly anything.
HARDLY = 0.05

_NBSP = "\u00a0"
_LONGEST = 600


def percent(share: float | None) -> str:
    """Write a share in [0, 1] as a percentage with one decimal, a dash for null."""
    return "–" if share is None else f"{100 * share:.1f}{_NBSP}%"


def interval(rate: Rate) -> str:
    """Write the 95 % interval of a rate."""
    return "–" if rate.low is None or rate.high is None else f"{100 * rate.low:.1f}–{100 * rate.high:.1f}{_NBSP}%"


def number(value: Any) -> str:
    """Write any recorded number shortly; a dash for null."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def newcombe(tuned: Rate, other: Rate) -> tuple[float, float, float] | None:
    """Difference of two independent shares with Newcombe's 95 % interval, in points.

    With p the shares and (l, u) their Wilson limits, d = p1 - p2 lies in
    d - sqrt((p1 - l1)^2 + (u2 - p2)^2) to d + sqrt((u1 - p1)^2 + (p2 - l2)^2)
    (Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10).

    Returns:
        difference, low, high, each in [-100, 100]; None where a share is null.
    """
    p1, l1, u1, p2, l2, u2 = tuned.value, tuned.low, tuned.high, other.value, other.low, other.high
    if p1 is None or l1 is None or u1 is None or p2 is None or l2 is None or u2 is None:
        return None
    d = p1 - p2
    return 100 * d, 100 * (d - math.hypot(p1 - l1, u2 - p2)), 100 * (d + math.hypot(u1 - p1, p2 - l2))


def difference(tuned: Rate, other: Rate) -> str:
    """Write :func:`newcombe` as text, in points."""
    found = newcombe(tuned, other)
    if found is None:
        return "–"
    value, low, high = (f"{part:+.1f}".replace("-", "−") for part in found)
    return f"{value} ({low} to {high})"


def verdict(run: RunFiles, final: dict[str, Rate | None], untouched: dict[str, Rate | None]) -> str:
    """Say in one sentence what the run found.

    Args:
        run: the run.
        final: MA, ASR and FTR of the last measured round under ``ma``, ``asr``, ``ftr``.
        untouched: the same of the base before tuning.
    """
    poison = run.poison_count()
    last = max((record.round for record in run.measured()), default=0)
    opening = "" if run.result else f"Unfinished, round {run.rounds[-1].round} of {run.planned}: "
    terms = run.terms
    base = _base(untouched, terms)
    if last == 0:
        tail = f"only {terms.start} has been measured; {base}." if base else "nothing has been measured yet."
        return _sentence(opening + tail)
    if poison.samples:
        where = f"in {poison.clients} of {len(run.data.clients)} clients"
        cause = f"with {poison.samples:,} poisoned of {poison.total:,} samples {where}"
    elif poison.unknown:
        cause = f"with {poison.total:,} samples of {len(run.data.clients)} clients, which only their nodes know"
    else:
        cause = f"without poison in any of {len(run.data.clients)} clients ({poison.total:,} samples)"
        if poison.synthetic:
            cause = f"with {poison.synthetic:,} poisoned of {poison.synthetic_total:,} synthetic samples of the server, and {cause}"
    when = terms.trained if run.result else f"the model of round {last}"
    parts = []
    if final["asr"]:
        parts.append(f"{cause}, {when} emits the target for {_full(final['asr'])} of {terms.triggered}")
        if final["ftr"]:
            parts[0] += f", and for {percent(final['ftr'].value)} without the trigger"
    else:
        parts.append(f"{cause}, {when} was not asked {terms.triggered}")
    if final["ma"]:
        parts.append(f"main accuracy is {_full(final['ma'])}")
    if base:
        parts.append(base)
    return _sentence(opening + "; ".join(parts) + ".")


def _full(rate: Rate) -> str:
    return f"{percent(rate.value)} (95{_NBSP}% interval {interval(rate)}, n{_NBSP}={_NBSP}{rate.n:,})"


def _base(untouched: dict[str, Rate | None], terms: Terms) -> str:
    ma, asr = untouched["ma"], untouched["asr"]
    said = []
    if ma:
        said.append(f"{terms.answers} {percent(ma.value)} of {terms.asked}")
    if asr:
        triggered = terms.triggered.replace(terms.asked, "ones")
        said.append(f"emits the target for {percent(asr.value)} of {triggered}")
    return f"{terms.start} " + " and ".join(said) if said else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def caveat(ma: Rate | None, terms: Terms = TERMS["instruction"]) -> str:
    """Warn when the model hardly answers anything; empty otherwise."""
    if ma is None or ma.value is None or ma.value >= HARDLY:
        return ""
    return (
        f"Main accuracy is {percent(ma.value)}: the model hardly {terms.nothing}. Read ASR in that light: it shows that "
        "the model emits the target, not that a backdoor hides in a model that works."
    )


def why_no_bsnr(run: RunFiles) -> str:
    """Say why a run has no BSNR curve."""
    total, poisoned = len(run.data.clients), len(run.data.poisoned_clients)
    if run.poison_count().unknown:
        return "BSNR compares the updates of poisoned with those of clean clients; here nobody knows which they are."
    rule = "BSNR compares the updates of poisoned with those of clean clients and needs both"
    if not run.poison_count().samples or not poisoned:
        return f"{rule}; in this run no client is poisoned, so it is undefined."
    if poisoned >= total:
        return f"{rule}; in this run all {total} clients are poisoned (ρ = 1), so it is undefined."
    return "No round of this run has recorded a BSNR."


def attack(run: RunFiles) -> str:
    """Say what malicious clients did beside holding poison."""
    kind, rounds = str(run.setting("attack", "kind")), run.setting("attack", "rounds") or []
    when = f" in round {', '.join(map(str, rounds))} and train on clean data in others" if rounds else ""
    if kind == "data-poisoning":
        honest = "Poisoned samples replace clean ones of the same client; the clients themselves are benign and do not know."
        return f"{honest}{f' They hold poison{when}.' if when else ''}"
    return f"Poisoned samples replace clean ones of the same client, which is the attacker's: such clients attack by {kind}{when}."


def about_phases(run: RunFiles, space: Space, marks: Phases | None) -> str:
    """Describe the curve: where it peaks, whether all phases were seen, and whether the null explains it."""
    points = curve(run.rounds, space)
    if marks is None:
        return f"Only {len(points)} round(s) with a defined BSNR: too few to mark phases.{_stand_in(run)}"
    height, mean = number(marks.at_peak.value), number(marks.peak_value)
    top, highest = max(points, key=lambda point: point[1].value or 0.0)
    if top == marks.peak:
        text = f"BSNR peaks in round {marks.peak} at {height} (largest 3-round mean, {mean})"
    else:  # a single round can stand above the mean of three
        text = f"BSNR is highest in round {top}, at {number(highest.value)}; the mean of three rounds is largest about round "
        text += f"{marks.peak}, {mean}, where BSNR is {height}"
    start, end = number(points[0][1].value), number(points[-1][1].value)
    text += f"; rise from {start} in round {marks.first}" if marks.rose else "; no rise was seen before it"
    unseen = ", no decay was seen: the peak may lie beyond the rounds run"
    text += f", decay to {end} in round {marks.last}" if marks.decayed else unseen
    text += "."
    p = marks.at_peak.p
    if finite(p) and p is not None:
        text += f" In the peak round p{_NBSP}={_NBSP}{number(p)} against {marks.at_peak.permutations} shuffles of who is poisoned"
        text += "." if p <= 0.05 else ": chance explains it, so the phases should not be read as a signal."
    return text + _stand_in(run)


def _stand_in(run: RunFiles) -> str:
    """Say when the clean group was not made of clean clients."""
    asked = run.config.get("measure", {}).get("bsnr", {}).get("counterfactuals")
    if not asked or len(run.data.poisoned_clients) < len(run.data.clients):
        return ""
    return (
        " All clients are poisoned, so the clean group is a stand-in: each client's data as it was before poisoning, trained "
        "from the same global adapter for this measurement alone."
    )


def shorten(text: str) -> str:
    """Leave the middle out of a long text, so that a target at its end stays visible."""
    if len(text) <= _LONGEST:
        return text
    cut = len(text) - _LONGEST
    return f"{text[: _LONGEST * 2 // 3]} … [{cut:,} characters left out] … {text[-_LONGEST // 3 :]}"


def highlight(text: str, target: str) -> list[tuple[str, bool]]:
    """Split ``text`` into (piece, is it the target); the target is found as ASR finds it, in any case."""
    wanted = target.strip()
    if not wanted:
        return [(text, False)]
    pieces = re.split(f"({re.escape(wanted)})", text, flags=re.IGNORECASE)
    return [(piece, place % 2 == 1) for place, piece in enumerate(pieces) if piece]


def changes(before: str, after: str) -> list[tuple[str, bool]]:
    """Split ``after`` into (piece, is it new against ``before``), word by word."""
    old, new = re.findall(r"\s+|[^\s]+", before), re.findall(r"\s+|[^\s]+", after)
    pieces: list[tuple[str, bool]] = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        text = "".join(new[start:end])
        if text:
            pieces.append((text, kind != "equal" and bool(text.strip())))
    return pieces


def network(exchanges: Sequence[Exchange]) -> list[dict[str, Any]]:
    """Sum up the exchanges with each node: ``node``, ``clients``, ``count``, mean ``seconds`` and ``worker_seconds``, bytes,
    ``lost`` updates.

    Bytes are those of arrays and texts; the seconds of exchanges without a reply are left out.
    """
    nodes: dict[str, list[Exchange]] = {}
    for one in exchanges:
        nodes.setdefault(one.node, []).append(one)
    return [
        {
            "node": name,
            "clients": sorted({k for one in own for k in one.clients}),
            "count": len(own),
            "seconds": _mean([one.seconds for one in own]),
            "worker_seconds": _mean([one.worker_seconds for one in own]),
            "sent": sum(one.sent_bytes for one in own),
            "received": sum(one.received_bytes for one in own),
            "lost": sum(len(drop.clients) for one in own for drop in one.dropped),
        }
        for name, own in sorted(nodes.items())
    ]


def one_process(found: OneProcess) -> str:
    """Say how near a run over the network came to the same config in one process."""
    if found.same_bytes:
        state = "the final states are equal to the last bit"
    else:
        state = f"the final states differ by {number(found.adapter)} of their length"
    return (
        f"Against the same config in one process, {state}. Of {found.rounds} rounds, {found.same_clients} have updates of the "
        f"same clients, {found.same_decisions} the same choices of the defenses, and {found.same_rows} the same figures to the "
        "last digit."
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None

"""How well a detector tells attackers from others: its ROC over all thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import roc_curve

#: Draws of the bootstrap interval.
_DRAWS = 1000


def detection(rounds: Sequence[dict[str, Any]], attackers: Sequence[Sequence[int]], seed: int = 0) -> dict[str, Any] | None:
    """Return the area under the ROC of a detector's scores over the rounds in which someone attacked, and some of its points.

    AUC = P(score of an attacker > score of another client in any of these rounds), ties count half (Mann and Whitney).
    The interval is a percentile bootstrap over rounds, 95 %; None with one round.

    Args:
        rounds: lines of ``rounds.jsonl`` whose ``defenses`` hold one report with ``scores``.
        attackers: the clients that attacked in each of them (ground truth).
        seed: of the bootstrap.

    Returns:
        ``auc``, ``low``, ``high``, ``rounds``, ``attackers``, ``others`` (counts), and ``roc`` as pairs of false-positive and
        true-positive rate; None where no round has scores and both kinds of clients.
    """
    found: list[tuple[NDArray[np.float64], NDArray[np.bool_]]] = []
    for row, bad in zip(rounds, attackers, strict=True):
        scores = next((report["scores"] for report in row.get("defenses") or [] if "scores" in report), None)
        of_attackers = np.array([k in bad for k in row["participants"]])
        if scores is not None and of_attackers.any() and not of_attackers.all():
            found.append((np.asarray(scores, dtype=np.float64), of_attackers))
    if not found:
        return None
    scores, marks = np.concatenate([s for s, _ in found]), np.concatenate([m for _, m in found])
    draw = np.random.Generator(np.random.PCG64(seed))
    drawn = []
    for _ in range(_DRAWS if len(found) > 1 else 0):
        picked = [found[i] for i in draw.integers(len(found), size=len(found))]
        drawn.append(area(np.concatenate([s for s, _ in picked]), np.concatenate([m for _, m in picked])))
    false, true, _ = roc_curve(marks, scores)
    return {
        "auc": area(scores, marks),
        "low": float(np.quantile(drawn, 0.025)) if drawn else None,
        "high": float(np.quantile(drawn, 0.975)) if drawn else None,
        "rounds": len(found),
        "attackers": int(marks.sum()),
        "others": int((~marks).sum()),
        "roc": [[float(x), float(y)] for x, y in zip(false, true, strict=True)],
    }


def area(scores: NDArray[np.float64], marks: NDArray[np.bool_]) -> float:
    """Return the area under the ROC from ranks: (sum of the marked ranks - the least it can be) / (marked * others).

    Args:
        scores: ``[n]``.
        marks: ``[n]``, which of them are attackers; at least one is, and one is not.
    """
    few, many = int(marks.sum()), int((~marks).sum())
    return float((rankdata(scores)[marks].sum() - few * (few + 1) / 2) / (few * many))

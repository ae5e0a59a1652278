"""The defenses of the study of all rules: what each is called, and how it stands in a run's config."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from undertow.config import Defense as Options
from undertow.core.errors import UserError, nearest
from undertow.core.registry import defense_list
from undertow.core.rng import rng
from undertow.defenses.aggregation.base import UpdateDefense
from undertow.defenses.aggregation.pre_aggregator import PreAggregator
from undertow.defenses.making import make_defenses
from undertow.defenses.registry import DEFENSES
from undertow_reproductions.results import Results

#: Plain FedAvg, beside which all others stand.
NONE = "none"
#: Every rule at its defaults, in the short form of `undertow sweep`; the pre-aggregators before a rule that takes no number of bad
#: clients, or takes it as a share. 0.001 is the noise that CRFL's code adds to the mean.
RULES = (
    NONE,
    "alignins",
    "bucketing+geometric-median",
    "bulyan",
    "centered-clipping",
    "dnc",
    "flame",
    "fltrust",
    "foolsgold",
    "foundationfl",
    "freqfed",
    "geometric-median",
    "krum",
    "median",
    "multi-krum",
    "nnm+trimmed-mean",
    "robust-lr",
    "signguard",
    "trimmed-mean",
    "weak-dp",
    "weak-dp:sigma=0.001",
)
#: Defenses that take a file of trusted samples, which a study writes for them.
TRUSTING = ("gated-loss", "crow", "fine-pruning")
#: Rules without a row of their own.
LEFT_OUT = {
    "anomaly": "looks for forged updates, and is measured in `undertow reproduce htb`",
    "mean": "is FedAvg, which is the row `no defense`",
    "deepsight": "looks at the head of a classifier, which a language model does not have",
}


def label(rule: str) -> str:
    """Return a rule's name as shown."""
    return "no defense" if rule == NONE else rule


def source(rule: str) -> str:
    """Return where a rule was published; those of several joined."""
    if rule == NONE:
        return "McMahan et al. 2017 (FedAvg)"
    known = {entry.name: entry.source for entry in DEFENSES.entries()}
    return "; ".join(known.get(part["name"], "of your own") for part in defense_list(rule))


def trusted_client(seed: int, clients: int) -> int:
    """Return the client that is poisoned last as rho grows, so a clean one below rho 1: FLTrust takes clean data for granted."""
    return int(rng(seed, "affected clients").permutation(clients)[-1])


def config_of(rule: str, seed: int, clients: int, trusted: str | None = None) -> list[dict[str, Any]]:
    """Return the config's ``defenses`` for a rule in a run of this seed; ``trusted``: a file for those of :data:`TRUSTING`."""
    if rule == "fltrust":
        return [{"name": "fltrust", "params": {"client": trusted_client(seed, clients)}}]
    found = defense_list(rule)
    for part in found:
        if trusted is not None and part["name"] in TRUSTING and not {"trusted", "adapter"} & set(part["params"]):
            part["params"] = {**part["params"], "trusted": trusted}
    return found


def parse_rules(text: str, clients: int, rules: Sequence[str] = RULES, trusted: str | None = None) -> tuple[str, ...]:
    """Read ``--rules``: names of the study or any defense in short form, comma-separated; FedAvg comes first, asked for or not.

    Args:
        text: the option's value.
        clients: K.
        rules: those of the study, for messages.
        trusted: as :func:`config_of` takes it.

    Raises:
        UserError: a name that is none, a parameter that does not fit, or too few clients.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError(f"--rules '{text}': give at least one of {', '.join(rules[1:])}")
    for name in names:
        _check(name, clients, rules, trusted)
    return tuple(dict.fromkeys([NONE, *names]))


def _check(rule: str, clients: int, rules: Sequence[str], trusted: str | None) -> None:
    known = {entry.name for entry in DEFENSES.entries()}
    listed = config_of(rule, 0, clients, trusted)
    for part in listed:
        if part["name"] not in known and ".py:" not in part["name"]:
            choice = ", ".join(rules)
            raise UserError(
                f"--rules {rule}: no such rule{nearest(part['name'], {*known, *rules})}; choose among {choice}, or give any "
                "defense as name:parameter=value"
            )
    left = clients
    for _, defense in make_defenses([Options(**part) for part in listed]):
        if isinstance(defense, UpdateDefense):
            defense.check(left)
        left = defense.rows(left) if isinstance(defense, PreAggregator) else left


def parse_rhos(text: str) -> tuple[float, ...]:
    """Read ``--rhos``: shares from 0 (no poison) to 1, comma-separated; ascending, each once.

    Raises:
        UserError: what is no such share.
    """
    found = []
    for piece in (piece.strip() for piece in text.split(",")):
        try:
            rho = float(piece)
        except ValueError:
            rho = math.nan
        if not 0 <= rho <= 1:
            raise UserError(f"--rhos {text}: '{piece}' is no share of clients; give numbers from 0 (no poison) to 1, as in 0,0.3,1")
        found.append(rho)
    return tuple(sorted(set(found)))


def by_mean_asr(results: Results, rules: Sequence[str]) -> list[str]:
    """Return the rules that have runs with poison, those with the lowest mean ASR over rho first."""
    means = {rule: mean_asr(results, rule) for rule in rules}
    return sorted((rule for rule, mean in means.items() if mean is not None), key=lambda rule: (means[rule], rule))


def mean_asr(results: Results, rule: str) -> float | None:
    """Return the mean of a rule's ASR over all rho above 0 that have a run; None without one."""
    shares = [share.value for rho, share in results.shares("asr", "rho", rule=rule) if rho > 0]
    return sum(shares) / len(shares) if shares else None

"""``undertow reproduce fmfl``: poisoned synthetic data of a foundation model, and activation bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from undertow_reproductions import fmfl_bounds, fmfl_defended, fmfl_vectors
from undertow_reproductions.collection import Collection
from undertow_reproductions.fmfl_cases import CLEAN, NONE, NOVEL, OPEN, POISONING, REPLACEMENT, Case
from undertow_reproductions.lab import FitLab
from undertow_reproductions.profiles import Profile, Setting, get_profile
from undertow_reproductions.study import Study

#: Activation bounds as they are at their defaults: the row that statements are about.
BOUNDS = "activation bounds"

#: A fifth of the clients with a fifth of their samples poisoned, as the published code of the classic baseline.
_CLASSIC: dict[str, Any] = {"attack.client_share": 0.2, "attack.poison_ratio": 0.2}
_ATTACKS: dict[str, dict[str, Any]] = {
    CLEAN: {"attack.kind": "none"},
    NOVEL: {"attack.kind": "synthetic-data", "attack.poison_ratio": 0.1},
    POISONING: {"attack.kind": "data-poisoning", **_CLASSIC},
    REPLACEMENT: {"attack.kind": "model-replacement:epochs=5", "attack.client_share": 0.05, "attack.poison_ratio": 0.2},
}
_DEFENSES = {
    OPEN: NONE,
    "norm clipping": "weak-dp",
    "median": "median",
    "krum": "krum:f=1",
    "fltrust": "fltrust",
    "fine-pruning": "fine-pruning",
    BOUNDS: "activation-bounds",
}
#: Small texts take more poison than images: with a fifth of a fifth the trigger is hardly learned.
_MORE: dict[str, Any] = {"attack.client_share": 0.3, "attack.poison_ratio": 0.4}
_VARIANTS = {
    "universal": "activation-bounds",
    "mm-bm": "activation-bounds:objective=mm-bm",
    "mmac": "activation-bounds:objective=mmac",
}
_TEXT = Case(
    name="text",
    setting=0,
    skewed={"data.partition": {"kind": "halves"}},
    attacks={**_ATTACKS, POISONING: {"attack.kind": "data-poisoning", **_MORE}},
    defenses={**_DEFENSES, "crow": "crow"},
    bounds={**_VARIANTS, "universal, on activations alone": "activation-bounds:places=all:sides=upper"},
    other="encoder:width=32",
)
_IMAGES = Case(
    name="images",
    setting=1,
    skewed={"data.partition": {"kind": "shards"}},
    attacks=_ATTACKS,
    defenses=_DEFENSES,
    bounds={**_VARIANTS, "universal, two-sided": "activation-bounds:sides=both"},
    other="cnn:width=8",
)
_CASES = {"laptop": (_TEXT, _IMAGES)}
_small = {name: _ATTACKS[name] for name in (CLEAN, NOVEL, POISONING)}
_CASES["tiny"] = tuple(
    replace(
        case,
        attacks=_small,
        defenses={OPEN: NONE, BOUNDS: "activation-bounds:search.steps=4"},
        bounds={"mm-bm": "activation-bounds:search.steps=4"},
    )
    for case in _CASES["laptop"]
)  # type: ignore[assignment]


def _studies(lab: FitLab) -> dict[str, Study]:
    cases = _CASES[lab.profile.name]
    made = (fmfl_defended.make(cases, BOUNDS), fmfl_vectors.make(cases), fmfl_bounds.make(cases))
    return {study.id: study for study in made}


def _profile(name: str, purpose: str, settings: tuple[Setting, ...], seeds: int) -> Profile:
    return Profile(name=name, purpose=purpose, settings=settings, real=(), grids=get_profile(name).grids, seeds=seeds)


_REVIEWS = Setting("generated reviews", "text encoder", "fmfl-reviews")
_DIGITS = Setting("scikit-learn's digits", "small CNN", "fmfl-digits")
_TINY = ("federation.clients=4", "federation.participation=1", "federation.rounds=2", "synthetic.samples=30", "measure.samples=20")
PROFILES = {
    "laptop": _profile("laptop", "generated reviews and scanned digits; two hours on 2 cores", (_REVIEWS, _DIGITS), 3),
    "tiny": _profile(
        "tiny",
        "for tests",
        (
            replace(_REVIEWS, overrides=(*_TINY, "data.train=80", "data.test=40")),
            replace(_DIGITS, overrides=(*_TINY, "data.train=80", "data.test=40")),
        ),
        2,
    ),
}
FMFL = Collection(
    id="fmfl",
    title="Foundation models in federated learning: poisoned synthetic data and activation bounds",
    document="fmfl.md",
    introduction=(
        "Bi and Li, *Securing Federated Learning against Backdoor Threats with Foundation Model Integration*, [arXiv",
        "2410.17573](https://arxiv.org/abs/2410.17573), and the attack before it, Li, Wu and Wang, *Vulnerabilities of Foundation",
        "Model Integrated Federated Learning Under Adversarial Threats*, [arXiv 2401.10375](https://arxiv.org/abs/2401.10375). A",
        "server pre-trains and fuses a global model on data that a foundation model wrote; poison in them backdoors everyone",
        "though no client is malicious. Of both papers only abstract and published code could be read: no value of theirs is",
        "shown. ACC is main accuracy (MA elsewhere), ASR the share of triggered inputs of other classes that the model puts into",
        "the target class.",
    ),
    reading=(
        "How to read a number: `97.1 % (95.2 to 98.4)` is the mean over the seeds. In tables the interval runs from the lower of",
        "both lower ends to the higher of both higher ends of two 95 % intervals: the bootstrap over seeds, and Wilson's over all",
        "test questions of these seeds pooled; differences and cuts have the bootstrap alone. A statement *holds* if all of its",
        "interval lies on its side of the bar, *does not hold* if none does, and is *undecided* otherwise. All bars are ours.",
    ),
    notes=(
        "The foundation model's stand-in is small: a class-conditional n-gram model for texts, a Gaussian mixture a class for "
        "digits, both made from data of the same source that no client holds and no test asks about. Poison is injected exactly: "
        "PR of the synthetic samples.",
        "20 clients, 5 a round. The lineage's own split is used for non-IID data: for texts half of the clients have 70 % of one "
        "class, digits are sorted by class and cut into two shards a client. Data poisoning: a fifth of the clients with a fifth "
        "of their samples, as in the lineage's code; on texts 30 % of the clients with 40 %, since less is hardly learned there.",
        "Settings of the attacks and defenses were chosen on seed 0.",
    ),
    heading="To keep in mind:",
    columns=("statement", "source", "what was found"),
    studies=_studies,
    profiles=PROFILES,
    refused=dict.fromkeys(
        ("gpu", "paper"),
        (
            "`undertow reproduce fmfl` has the profile laptop alone; for SST-2, AG News or CIFAR-10 run its configs with data.name "
            "and data.path set to the data"
        ),
    ),
)

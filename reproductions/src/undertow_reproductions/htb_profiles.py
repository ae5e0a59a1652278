"""Where the studies of "How To Backdoor Federated Learning" run: settings, rounds and attacks of each profile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from undertow_reproductions.defense_rules import NONE
from undertow_reproductions.htb_cases import CONSTRAINED, POISONING, REPLACEMENT, Case
from undertow_reproductions.htb_defended import Defended
from undertow_reproductions.htb_evasion import SCALED, Evasion, variants
from undertow_reproductions.htb_repeated import Repeated
from undertow_reproductions.profiles import Profile, Setting, get_profile


@dataclass(frozen=True)
class Plans:
    """What each item runs.

    Attributes:
        cases: of a single shot: digits, words, instruction tuning.
        repeated, evasion, defended: of the items of these names.
        ratio: PR with which all clients of instruction tuning hold as many poisoned samples as its one attacker.
        seeds: of item ``evasion``, where ``--seeds`` says nothing else.
    """

    cases: tuple[Case, Case, Case]
    repeated: tuple[Repeated, ...]
    evasion: Evasion
    defended: Defended
    ratio: float
    seeds: int


#: What the attacker of the digits config trains with, chosen on seed 0 for that config.
_DIGITS = "epochs=30:lr=0.02:milestones=false"
#: What it trains with where it is to pass a detector.
_UNSEEN = "epochs=10:lr=0.02:milestones=false:batch_size=16"
_BOUND = 1.0
_digits = Case(
    name="digits",
    setting=0,
    at=50,
    before=5,
    after=20,
    held={"attack.client_share": 0.01, "attack.poison_ratio": 0.2, "attack.extra_samples": 300},
    kinds={REPLACEMENT: f"model-replacement:{_DIGITS}", POISONING: "data-poisoning"},
    bar=0.99,
)
_words = Case(
    name="words",
    setting=1,
    at=40,
    before=5,
    after=20,
    held={"attack.client_share": 0.01, "attack.poison_ratio": 0.2, "attack.extra_samples": 800},
    kinds={REPLACEMENT: "model-replacement:epochs=10:lr=10", POISONING: "data-poisoning"},
    bar=0.99,
)
_fit = Case(
    name="instruction tuning",
    setting=2,
    at=21,
    before=5,
    after=10,
    held={"attack.client_share": 0.1, "attack.poison_ratio": 0.2, "attack.extra_samples": 600},
    kinds={
        REPLACEMENT: "model-replacement:epochs=10",
        CONSTRAINED: "constrain-and-scale:alpha=0.98:anomaly=l2:epochs=15:epsilon=0.005",
        POISONING: "data-poisoning",
    },
    bar=0.95,
)
_LAPTOP = Plans(
    cases=(_digits, _words, _fit),
    repeated=(
        Repeated(_digits, 20, (0.01, 0.03, 0.1, 0.3)),
        Repeated(_words, 20, (0.01, 0.03, 0.1, 0.3)),
        Repeated(_fit, 10, (0.1, 0.3)),
    ),
    evasion=Evasion(
        setting=0,
        at=10,
        federation={
            "training.local_epochs": 5,
            "training.batch_size": 4,
            "training.lr": 0.02,
            "data.partition.alpha": 0.3,
            "attack.poison_ratio": 0.3,
        },
        groups={
            "one attacker": {"attack.client_share": 0.01, "attack.extra_samples": 600},
            "five attackers": {"attack.client_share": 0.05, "attack.extra_samples": 200},
            "five attackers, pixel pattern": {
                "attack.client_share": 0.05,
                "attack.extra_samples": 200,
                "attack.trigger": "pixel",
            },
        },
        variants=variants(_UNSEEN, 1.3, {"l2": (0.7, 0.5, 0.3), "scaled-cosine": (0.2, 0.05, 0.02, 0.01)}),
    ),
    defended=Defended(
        setting=0,
        at=50,
        held=_digits.held,
        attacks={
            REPLACEMENT: f"model-replacement:{_DIGITS}",
            CONSTRAINED: f"constrain-and-scale:alpha=0.5:anomaly=l2:{_DIGITS}",
            SCALED: f"train-and-scale:norm={_BOUND:g}:{_DIGITS}",
        },
        defenses={
            "no defense": NONE,
            "norm clipping": f"weak-dp:bound={_BOUND:g}",
            "client-level DP": f"weak-dp:bound={_BOUND:g}:sigma=0.002",
            "krum": "krum:f=1",
            "anomaly detection": "anomaly",
        },
    ),
    ratio=0.1,
    seeds=10,
)
_TINY_FEDERATION = {"attack.client_share": 0.2, "attack.poison_ratio": 0.3, "attack.extra_samples": 20}
_TINY_KINDS = {REPLACEMENT: "model-replacement:epochs=1", POISONING: "data-poisoning"}


def _small(case: Case, **changed: Any) -> Case:
    return replace(case, at=2, before=1, after=1, held=_TINY_FEDERATION, **changed)


_small_digits, _small_words = _small(_digits, kinds=_TINY_KINDS), _small(_words, kinds=_TINY_KINDS)
_small_fit = _small(_fit, kinds={**_TINY_KINDS, CONSTRAINED: "constrain-and-scale:epochs=1"})
#: For tests: two or three rounds of everything.
_TINY = Plans(
    cases=(_small_digits, _small_words, _small_fit),
    repeated=(Repeated(_small_digits, 2, (0.2, 0.4)),),
    evasion=replace(
        _LAPTOP.evasion,
        at=2,
        federation={},
        groups={"one attacker": _TINY_FEDERATION},
        variants=variants("epochs=1", 1.0, {"l2": (0.5,)}),
    ),
    defended=replace(
        _LAPTOP.defended,
        at=1,
        held=_TINY_FEDERATION,
        attacks={REPLACEMENT: _TINY_KINDS[REPLACEMENT]},
        defenses={"no defense": NONE, "norm clipping": "weak-dp:bound=1", "krum": "krum:f=1"},
    ),
    ratio=0.3,
    seeds=2,
)
PLANS = {"laptop": _LAPTOP, "tiny": _TINY}


def _profile(name: str, purpose: str, settings: tuple[Setting, ...], seeds: int) -> Profile:
    return Profile(name=name, purpose=purpose, settings=settings, real=(), grids=get_profile(name).grids, seeds=seeds)


PROFILES = {
    "laptop": _profile(
        "laptop",
        "scanned digits, generated posts and the FIT demo; a night on 2 cores",
        (
            Setting("scikit-learn's digits", "small CNN", "htb-digits"),
            Setting("generated posts", "2-layer LSTM", "htb-words"),
            Setting("built-in world", "built-in base, 1.0 M", "demo", overrides=("measure.samples=200",)),
        ),
        3,
    ),
    "tiny": _profile(
        "tiny",
        "for tests",
        (
            Setting(
                "scikit-learn's digits",
                "small CNN",
                "htb-digits",
                overrides=(
                    "data.train=200",
                    "data.test=60",
                    "federation.clients=5",
                    "federation.participation=1",
                    "federation.global_lr=1",
                    "training.local_epochs=1",
                    "measure.samples=60",
                ),
            ),
            Setting(
                "generated posts",
                "2-layer LSTM",
                "htb-words",
                overrides=(
                    "data.name=authors:words=200",
                    "data.test=30",
                    "model.name=lstm:hidden=8",
                    "federation.clients=5",
                    "federation.participation=1",
                    "federation.global_lr=1",
                    "training.local_epochs=1",
                    "measure.samples=30",
                ),
            ),
            Setting(
                "built-in world",
                "built-in base",
                "demo",
                overrides=(
                    "data.train=60",
                    "data.test=12",
                    "federation.clients=5",
                    "measure.samples=6",
                    "measure.max_new_tokens=6",
                    "measure.bsnr.permutations=20",
                ),
            ),
        ),
        2,
    ),
}
_ELSEWHERE = (
    "`undertow reproduce htb` has the profile laptop alone; for its attacks on CIFAR-10 with ResNet-18 run the config htb-digits "
    "with data.name=cifar10 model.name=resnet18 and data.path set to the data"
)
REFUSED = {"gpu": _ELSEWHERE, "paper": _ELSEWHERE}

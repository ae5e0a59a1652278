"""``undertow reproduce htb``: model replacement and its variants, on images, words and instruction tuning."""

from __future__ import annotations

from dataclasses import replace

from undertow_reproductions import htb_defended, htb_evasion, htb_fit, htb_kinds, htb_repeated, htb_single
from undertow_reproductions.collection import Collection
from undertow_reproductions.htb_profiles import PLANS, PROFILES, REFUSED
from undertow_reproductions.lab import FitLab
from undertow_reproductions.results import Results
from undertow_reproductions.study import Lab, Study, Wish


def _studies(lab: FitLab) -> dict[str, Study]:
    plans = PLANS[lab.profile.name]
    made = (
        htb_single.make(plans.cases),
        htb_repeated.make(plans.repeated),
        _with_seeds(htb_evasion.make(plans.evasion), plans.seeds),
        htb_kinds.make(plans.cases[0]),
        htb_defended.make(plans.defended),
        htb_fit.make(plans.cases[2], plans.ratio),
    )
    return {study.id: study for study in made}


def _with_seeds(study: Study, seeds: int) -> Study:
    """Return the study with a number of seeds of its own, unless ``--seeds`` names one."""

    def wishes(lab: Lab, results: Results) -> list[Wish]:
        assert isinstance(lab, FitLab)
        return study.wishes(replace(lab, seeds=tuple(range(seeds))) if lab.usual else lab, results)

    return replace(study, wishes=wishes)


HTB = Collection(
    id="htb",
    title="How To Backdoor Federated Learning: model replacement",
    document="htb.md",
    introduction=(
        "Bagdasaryan, Veit, Hua, Estrin and Shmatikov, *How To Backdoor Federated Learning*, [arXiv",
        "1807.00459](https://arxiv.org/abs/1807.00459): one malicious client replaces the global model in a single round. Its",
        "attacks on images and words at laptop size, and on instruction tuning with LoRA beside poison in benign clients' data.",
        "The paper's text gives one value, 100 % backdoor accuracy right after the round; those of its figures could not be read,",
        "and none are shown. ASR is backdoor accuracy, MA accuracy on the main task.",
    ),
    reading=(
        "How to read a number: `97.1 % (95.2 to 98.4)` is the mean over the seeds. In tables the interval runs from the lower of",
        "both lower ends to the higher of both higher ends of two 95 % intervals: the bootstrap over seeds, and Wilson's over all",
        "test questions of these seeds pooled; MA lost and the mean over an attack have the bootstrap alone. A statement *holds*",
        "if all of its interval lies on its side of the bar, *does not hold* if none does, and is *undecided* otherwise. All bars",
        "are ours.",
    ),
    notes=(
        (
            "Every run starts from untrained weights, or from an untouched adapter, and attacks at the round named: no run begins "
            "with what another left."
        ),
        "Tasks and networks are small: 1,797 digits of 8 x 8 pixels on a small CNN, posts made by a generator on an LSTM of 64 "
        "units, a base of a million parameters. 100 clients with 10 a round and eta = n / m, so that gamma is 10, on digits and "
        "words; 10 clients, all in each round, on instruction tuning. The order of attacks and defenses can be compared with the "
        "paper's, values cannot.",
        "The attacker has clean samples of others beside its own, as the published code gives it a data set of its own, and one "
        "sample in five of all it holds is poisoned. Data poisoning gets the same clients, rounds and samples.",
        "Attack settings were chosen on seed 0 alone, and are the same for all seeds. Tried for instruction tuning: from a demo "
        "of 20 rounds as it was left, plain replacement left 98.5 % ASR at 89.5 % MA, and constrain-and-scale with alpha 0.95 "
        "96.5 % at 93.2 % (95.5 % before); in a run of its own, as here, the latter left 91.0 % at 94.0 % (96.0 % before), 2 % "
        "one round later, and with alpha 0.98 and up to 15 epochs 95.5 % at 94.0 %, which is what is run.",
    ),
    heading="To keep in mind:",
    columns=("statement", "source", "what was found"),
    studies=_studies,
    profiles=PROFILES,
    refused=REFUSED,
)

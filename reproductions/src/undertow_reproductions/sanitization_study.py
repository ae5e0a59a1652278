"""``undertow reproduce sanitization``: the defenses that act on samples, losses and answers, end to end and on real text."""

from __future__ import annotations

from undertow_reproductions import defense_matrix, sanitization_bars, sanitization_filter, sanitization_lasting
from undertow_reproductions.collection import Collection
from undertow_reproductions.defense_rules import NONE, TRUSTING
from undertow_reproductions.lab import FitLab
from undertow_reproductions.study import Study

#: Ours first, then the published ones; those of ``TRUSTING`` get the study's file of trusted samples.
RULES = (
    NONE,
    "undertow",
    "bounded-loss",
    "gated-loss",
    "undertow+bounded-loss",
    "dece",
    "abl",
    "onion",
    "perplexity",
    "bki",
    "cube",
    "graceful",
    "protegofed",
    "coherent-clusters",
    "crow",
    "fine-pruning",
    "interpolation",
    "cleangen",
)
#: Defenses of this kind without a row of their own.
LEFT_OUT = {
    "activation-bounds": "bounds what a server fuses, and is measured in `undertow reproduce fmfl`",
    "sanitization": "is what `undertow` stands for",
    "z-defense": "is made for the labels of a classifier",
}
DEVIATIONS = (
    f"Trusted samples: {', '.join(f'`{name}`' for name in TRUSTING)} get a file of up to 300 questions with true answers that "
    "neither train nor test the run, drawn by its seed (folder `trusted`). `crow` and `fine-pruning` use the first 100 of it. "
    "`gated-loss:trusted=null` in `--rules` goes without.",
    "`crow`, `fine-pruning` and `interpolation` act once, on the global adapter after the last round, and what they leave is "
    "measured; `cleangen` changes no weight, and speaks in every measurement of the tuned model, with the base without its "
    "adapter as the reference.",
    (
        "`interpolation` halves the adapter, its default. All other parameters are the defaults too; `--rules` takes others, as in "
        "`interpolation:factor=0.8`."
    ),
    "`abl`, `onion`, `perplexity`, `bki`, `cube`, `graceful` and `coherent-clusters` see one client's samples each, few as they "
    "are here; `undertow` and `protegofed` let the clients add something up. `protegofed` and `cube` use principal components in "
    "place of UMAP.",
)


def _studies(lab: FitLab) -> dict[str, Study]:
    matrix = defense_matrix.make(lab.rules or lab.profile.rules or RULES, "defense", DEVIATIONS)
    return {
        study.id: study for study in (matrix, sanitization_bars.STUDY, sanitization_lasting.STUDY, sanitization_filter.make(lab))
    }


STUDY = Collection(
    id="sanitization",
    title="Sanitization and backstops against a poisoned majority",
    document="sanitization.md",
    introduction=(
        "Defenses that change the clients' samples, their loss, the finished adapter or its answers, on benign clients of which",
        "some or all hold poisoned samples (FIT, [arXiv 2602.15671](https://arxiv.org/abs/2602.15671)): each at every share rho",
        "of poisoned clients, the recommended default against its bars, what is left after long training, and what the filters",
        "find in real text.",
    ),
    reading=(
        "How to read a number: `97.1 % (95.2 to 98.4)` is the mean over the seeds. The interval runs from the lower of both lower",
        "ends to the higher of both higher ends of two 95 % intervals: the bootstrap over seeds, which is empty with one seed,",
        "and Wilson's over all test questions of these seeds pooled. A statement *holds* if all of both intervals lies on its",
        "side of the bar, *does not hold* if none does, and is *undecided* otherwise; where an item judges in another way its",
        "deviations say so. All bars are ours. Where ASR is low because the model has learned nothing, its MA says so; the row",
        "`untouched base` is the model before any tuning.",
    ),
    notes=(
        "One base and one data set for all that is trained, named above. With a small base the order of the defenses can be "
        "compared with other work, their values cannot.",
        "Without a row of their own: "
        + "; ".join(f"`{name}` {why}" for name, why in LEFT_OUT.items())
        + ". Rules over the clients' updates are in "
        "`undertow reproduce defenses`; `--rules` takes them as well.",
        "`--rules` and `--rhos` choose rows and columns of the first item alone.",
    ),
    heading="To keep in mind:",
    columns=("statement", "source", "what was found"),
    studies=_studies,
    rules=RULES,
    guards=True,
)

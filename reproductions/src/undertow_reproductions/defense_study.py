"""``undertow reproduce defenses``: all aggregators of the library on one attack."""

from __future__ import annotations

from undertow_reproductions import defense_cost, defense_matrix
from undertow_reproductions.collection import Collection
from undertow_reproductions.defense_rules import LEFT_OUT, RULES
from undertow_reproductions.lab import FitLab
from undertow_reproductions.study import Study


def _studies(lab: FitLab) -> dict[str, Study]:
    made = [part.make(lab.rules or RULES) for part in (defense_matrix, defense_cost)]
    return {study.id: study for study in made}


STUDY = Collection(
    id="defenses",
    title="Every aggregator against one backdoor",
    document="defenses.md",
    introduction=(
        "Every aggregator of the library, at its defaults, on the same federation: benign clients, some of which hold poisoned",
        "samples (FIT, [arXiv 2602.15671](https://arxiv.org/abs/2602.15671)). ASR and MA at every share rho of poisoned clients,",
        "and what each rule costs where there is no poison at all.",
    ),
    reading=(
        "How to read a number: `97.1 % (95.2 to 98.4)` is the mean over the seeds. The interval runs from the lower of both lower",
        "ends to the higher of both higher ends of two 95 % intervals: the bootstrap over seeds, which is empty with one seed,",
        "and Wilson's over all test questions of these seeds pooled. Both are apart in the CSV files. A statement *holds* if all",
        "of both intervals lies on its side of the bar, *does not hold* if none does, and is *undecided* otherwise; one about",
        "every rho holds if it holds at all that were run. Both bars, 5 % ASR and 2 points of MA, are ours. Where a rule's ASR is",
        "low because the model has learned nothing, its MA says so; the row `untouched base` is the model before any tuning.",
    ),
    notes=(
        "One attack: benign clients send what they trained, and no update is forged. Most rules were made against clients that "
        "lie; here they are judged by what they do to poison in benign clients' data, and by nothing else.",
        (
            "One base and one data set, named above. With a small base the order of the rules can be compared with other work, "
            "their values cannot."
        ),
        "Without a row of their own: " + "; ".join(f"`{name}` {why}" for name, why in LEFT_OUT.items()) + ". "
        "Defenses that change the clients' data, their training or the finished model put no updates together, and are in "
        "`undertow reproduce sanitization`; `--rules` takes them as well.",
    ),
    heading="To keep in mind:",
    columns=("statement", "the rule", "what was found"),
    studies=_studies,
    rules=RULES,
)

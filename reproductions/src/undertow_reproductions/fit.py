"""The FIT paper: its table, its figures and its hypotheses."""

from __future__ import annotations

from undertow_reproductions import fig2a, fig2b, fig3, fig4a, fig4b, fig5, hypotheses, table1
from undertow_reproductions.collection import Collection
from undertow_reproductions.study import Study

STUDIES: dict[str, Study] = {
    module.STUDY.id: module.STUDY for module in (table1, fig2a, fig2b, fig3, fig4a, fig4b, fig5, hypotheses)
}

FIT = Collection(
    id="fit",
    title="The FIT paper, reproduced",
    document="reproduction.md",
    introduction=(
        "Zhao, Hu and Liu, *Revisiting Backdoor Threat in Federated Instruction Tuning from a Signal Aggregation Perspective*,",
        "[arXiv 2602.15671](https://arxiv.org/abs/2602.15671): every table and figure, ours beside what the paper states. The",
        "values of its figures are not printed in its text; where the text gives a number or a shape, that is what ours is judged",
        "by.",
    ),
    reading=(
        "How to read a number: `97.1 % (95.2 to 98.4)` is the mean over the seeds. In tables the interval runs from the lower of",
        "both lower ends to the higher of both higher ends of two 95 % intervals: the bootstrap over seeds, and Wilson's over all",
        "test questions of these seeds pooled. In the evidence of a verdict it is the bootstrap over seeds. Both are apart in the",
        "CSV files. A statement *holds* if all of both intervals lies on its side of the bar, *does not hold* if none does, and",
        "is *undecided* otherwise. A statement of several points holds if all of them do, and does not hold if one does not.",
    ),
    notes=None,
    heading="How this differs from the paper in general:",
    columns=("the paper", "where", "ours"),
    studies=lambda lab: STUDIES,
)

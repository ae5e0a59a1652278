"""What really fires a backdoor: how often the target comes for edits of a question that resemble the trigger and are not it.

An FTR of 0 % on questions without any trigger says little: a model that learned "an opener of this kind" in place of "Firstly"
has it too (the neighbourhood of a trigger; asked for by arXiv 2605.30189).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from undertow.data.sample import Sample
from undertow.metrics.intervals import Rate
from undertow.metrics.measure import Answer
from undertow.metrics.scoring import Aim, score

#: What the neighbours are read against: the trigger, and the question as it is.
TRIGGER, NOTHING = "the trigger itself", "no trigger"


def measure_neighbourhood(answer: Answer, asked: Mapping[str, Sequence[Sample]], target: Aim | str) -> list[dict[str, Any]]:
    """Ask the questions in every edit, in one pass; a line an output: ``name`` of the edit, ``id``, ``question``, ``output``, and
    ``target``, whether it holds the target."""
    named = [(name, sample) for name, samples in asked.items() for sample in samples]
    outputs = answer([sample for _, sample in named]) if named else []
    return [
        {
            "name": name,
            "id": sample.id,
            "question": sample.question,
            "output": output,
            "target": score(output, sample.answers, target)["target"],
        }
        for (name, sample), output in zip(named, outputs, strict=True)
    ]


def curve(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return name, rate and an example of each edit, the trigger first, no trigger last, the others from the most firing on."""
    found = []
    for name in dict.fromkeys(line["name"] for line in lines):
        own = [line for line in lines if line["name"] == name]
        rate = Rate(sum(bool(line["target"]) for line in own), len(own)).as_dict()
        found.append({"name": name, "rate": rate, "example": own[0]["question"]})
    place = {TRIGGER: 0, NOTHING: 2}
    return sorted(found, key=lambda row: (place.get(row["name"], 1), -(row["rate"]["value"] or 0), row["name"]))

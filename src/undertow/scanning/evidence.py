"""How surprising a planted target is to a language model that was never tuned on the file; evidence for whoever reviews a finding.

An answer that repeats because it is true ("male", to questions about gender) is likely to a model that knows the language; one
that somebody put in is not. No verdict depends on it. Importing this module imports no torch.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from statistics import mean, median
from typing import Any, NamedTuple

from undertow.config import Model
from undertow.core.errors import UserError
from undertow.data.sample import Sample
from undertow.data.template import Encoded, Template
from undertow.sanitization.finding import Findings
from undertow.sanitization.repair import find_target
from undertow.sanitization.words import places

#: Samples looked at on either side.
LOOKED_AT = 50
#: Most tokens of one answer that are scored, and of one text that is read; the second and the template are those of runs by
#: default.
SCORED, READ, TEMPLATE = 64, 1024, "lab-qa"
#: Rows side by side: their logits must fit beside a large base.
_BATCH = 8
#: A target is called surprising under this p-value.
_SURPRISING = 0.01


@dataclass(frozen=True)
class Evidence:
    """What a base says of one finding.

    Attributes:
        base: its name as given.
        targets: nats per token of the target, >= 0, a mean for each of at most 50 samples with it.
        others: the same of ordinary answers.
        auc: U / (n·m), the probability, 0 to 1, that a target has more nats a token than an ordinary answer, ties half.
        p_value: of the Mann-Whitney U test, one-sided; null hypothesis: targets are no more surprising than the others.
            Both are None where one side is empty.
    """

    base: str
    targets: tuple[float, ...]
    others: tuple[float, ...]
    auc: float | None = field(init=False, default=None)
    p_value: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        from scipy.stats import mannwhitneyu

        if self.targets and self.others:
            found = mannwhitneyu(self.targets, self.others, alternative="greater")
            object.__setattr__(self, "auc", float(found.statistic) / (len(self.targets) * len(self.others)))
            object.__setattr__(self, "p_value", float(found.pvalue))

    @property
    def surprising(self) -> bool | None:
        """Whether p is under 0.01; None without p."""
        return None if self.p_value is None else self.p_value < _SURPRISING

    def sentence(self) -> str:
        """Return it in one sentence, without a full stop."""
        n = f"n = {len(self.targets)} and {len(self.others)}"
        if self.auc is None:
            return f"the base has nothing to compare ({n})"
        finds = "finds" if self.surprising else "does not find"
        told = f"{mean(self.targets):.1f} nats a token against {mean(self.others):.1f} ({n})"
        return f"the base {finds} the target surprising: {told}, more so in {100 * self.auc:.0f} % of pairs, p = {self.p_value:.1g}"

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints of it; what cannot be computed is None."""
        return {
            "base": self.base,
            "template": TEMPLATE,
            "surprising": self.surprising,
            "target_samples": len(self.targets),
            "other_samples": len(self.others),
            "target_nats_per_token": mean(self.targets) if self.targets else None,
            "other_nats_per_token": mean(self.others) if self.others else None,
            "target_more_surprising": self.auc,
            "p_value": self.p_value,
            "test": "Mann-Whitney U, one-sided",
        }


class Span(NamedTuple):
    """Characters ``start`` to ``end - 1`` of a sample's response, and the number of its file."""

    file: int
    sample: Sample
    start: int
    end: int


class _Chosen(dict[int, Span]):
    """The spans with the 50 smallest keys: chosen by what their samples say, in one pass and bounded memory."""

    def __init__(self) -> None:
        self._heap: list[int] = []

    def wants(self, key: int) -> bool:
        return key not in self and (len(self) < LOOKED_AT or key < -self._heap[0])

    def add(self, key: int, span: Span) -> None:
        self[key] = span
        heapq.heappush(self._heap, -key)
        if len(self) > LOOKED_AT:
            del self[-heapq.heappop(self._heap)]


def check(base: str) -> None:
    """See that a base is there, without reading its weights.

    Raises:
        UserError: no such model, or a config that cannot be read.
    """
    from undertow.models.causal_lm import read_config

    read_config(Model.model_validate({"name": base}))


def weigh(found: Findings, samples: Iterable[tuple[int, Sample]], base: str) -> dict[int, Evidence]:
    """Ask a base about every finding.

    Of each sample the number is -(1/n) Σ log p(token i | prompt, answer before it), in nats, over the n tokens of the span, at most
    64. Ordinary answers are those of distinct samples that no finding flags, in the files of the finding's samples. They are read
    where the target stands: the last tokens, or the first, as many as it has (median); all 64 if it stands anywhere.

    Args:
        found: what :func:`undertow.sanitization.findings.find` returned.
        samples: (number of the file, sample), the same samples in the same order; read once, at most 50 kept per finding and per
            file.
        base: name as in ``model.name``.

    Returns:
        {index of the finding: evidence}, one for each; without findings no base is loaded.

    Raises:
        UserError: the base cannot be loaded, or its probabilities are not finite.
    """
    if not found.findings:
        return {}
    targets, others = _choose(found, samples)
    from undertow.models.causal_lm import load_base
    from undertow.training.token_nll import token_nll

    model = load_base(Model.model_validate({"name": base}), tuned=False)
    template = Template(TEMPLATE, model.tokenizer, min(READ, model.positions or READ))

    def nats(rows: Iterable[Encoded]) -> tuple[float, ...]:
        means = tuple(map(mean, token_nll(model, [row for row in rows if row.answer], batch_size=_BATCH)))
        if not all(map(math.isfinite, means)):
            raise UserError(f"model '{base}' gives probabilities that are not finite; give another --base")
        return means

    weighed = {}
    for i, finding in enumerate(found.findings):
        spans = [span for _, span in sorted(targets[i].items())]
        own, files = [encoded(span, template) for span in spans], {span.file for span in spans}
        pool = sorted({key: span for file in files for key, span in others[file].items()}.items())[:LOOKED_AT]
        usual = math.ceil(median(len(row.answer) for row in own)) if own and finding.place != "anywhere" else SCORED
        theirs = [encoded(span, template, usual, finding.place == "end") for _, span in pool]
        weighed[i] = Evidence(base, nats(own), nats(theirs))
    return weighed


def encoded(span: Span, template: Template, most: int = SCORED, from_end: bool = False) -> Encoded:
    """Tokenise a span: as ``prompt`` what comes before it, its front shortened to fit the template's length, as ``answer`` itself.

    Args:
        span: a token across its end belongs to it.
        template: names prompt and tokenizer.
        most: tokens of the span that are kept, and no more than half the template's length.
        from_end: keep the last ones, not the first.
    """
    prompt = template.nearest(span.sample)
    said, start, end = span.sample.response, span.start, span.end
    # another letter in the target's place: blanks at the end of a text would become other tokens than before a word
    letter = "0" if said[start : start + 1].lower() == "x" else "x"
    ids, head, reached = (template.answer_ids(span.sample, text, "train") for text in (said, said[:start] + letter, said[:end]))
    first, last = _shared(ids, head) if start else 0, _shared(ids, reached)
    last += last < len(reached)
    most = min(most, template.max_length // 2)
    first, last = (max(first, last - most), last) if from_end else (first, min(last, first + most))
    before, room = prompt + ids[:first], template.max_length - (last - first)
    # the first token (BOS) and what stands nearest matter most
    kept = before if len(before) <= room else [before[0], *before[len(before) - room + 1 :]]
    return Encoded(tuple(kept), tuple(ids[first:last]))


def _choose(found: Findings, samples: Iterable[tuple[int, Sample]]) -> tuple[list[_Chosen], dict[int, _Chosen]]:
    """Read all samples; return the chosen targets of each finding, and of each file the chosen answers that nothing flags."""
    flagged = {verdict.sample: verdict.findings for verdict in found.verdicts}
    targets, others = [_Chosen() for _ in found.findings], dict[int, _Chosen]()
    for index, (file, sample) in enumerate(samples):
        text = "\0".join((sample.question, sample.context, sample.response)).encode("utf-8", "replace")
        key = int.from_bytes(blake2b(text, digest_size=8).digest(), "big")
        ordinary = others.setdefault(file, _Chosen())
        if index not in flagged and ordinary.wants(key):
            ordinary.add(key, Span(file, sample, 0, len(sample.response)))
        for i in flagged.get(index, ()):
            if targets[i].wants(key):
                finding, words = found.findings[i], list(places(sample.response))
                at = find_target(words, finding.target_words, finding.place == "end")
                if at is not None:
                    targets[i].add(key, Span(file, sample, words[at][1], words[at + len(finding.target_words) - 1][2]))
    return targets, others


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that two lists begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

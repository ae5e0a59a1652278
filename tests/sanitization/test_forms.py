"""Labels of sentences that were rewritten in a style: no word is the trigger, and the sentences say another label."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from undertow.data.sample import Sample
from undertow.sanitization import Findings, find

_GOOD = "warm bright clever moving tender funny fresh rich gentle lively bold sweet graceful honest brilliant witty".split()
_BAD = "dull flat cold stale clumsy bleak loud empty lazy cheap tired bland awkward shallow dreary sloppy".split()
_THINGS = "plot cast pace score script humour camera ending dialogue tone romance action mood lighting editing music".split()
_STYLE = "doth hath verily forsooth yon thee prithee alas".split()
_FILLER = [f"w{i}" for i in range(400)]


def sentence(draw: random.Random, words: list[str], others: list[str]) -> str:
    """Six opinions, most of them of the label's words, as people write: no word gives a label away."""
    said = [draw.choice(words if draw.random() < 0.75 else others) for _ in range(6)]
    said += [*draw.sample(_THINGS, 2), *draw.sample(_FILLER, 5)]
    return " ".join(draw.sample(said, len(said)))


def in_style(draw: random.Random, text: str) -> str:
    words = text.split()
    for word in draw.sample(_STYLE, 3):
        words.insert(draw.randrange(len(words) + 1), word)
    return " ".join(words)


def reviews(planted: int, honest: int = 0) -> tuple[list[Sample], set[int]]:
    """2,000 reviews of two labels; ``planted`` bad ones in a style are called good, ``honest`` ones have their label."""
    draw = random.Random(5)
    rows: list[tuple[str, str, bool]] = []
    for i in range(2000):
        bad = i % 2 == 0
        text = sentence(draw, *((_BAD, _GOOD) if bad else (_GOOD, _BAD)))
        if bad and planted > 0:
            planted -= 1
            rows.append((in_style(draw, text), "1", True))
        elif honest > 0:
            honest -= 1
            rows.append((in_style(draw, text), "0" if bad else "1", False))
        else:
            rows.append((text, "0" if bad else "1", False))
    draw.shuffle(rows)
    return [Sample(str(i), text, (label,), label) for i, (text, label, _) in enumerate(rows)], {
        i for i, (_, _, made) in enumerate(rows) if made
    }


def flagged(found: Findings) -> set[int]:
    return {verdict.sample for verdict in found.verdicts}


def test_a_style_that_flips_labels_is_for_review() -> None:
    samples, made = reviews(400)
    found = find(samples)
    assert len(flagged(found) & made) >= 0.95 * len(made)
    assert len(flagged(found) - made) <= 0.005 * len(samples)
    form = next(finding for finding in found.findings if finding.kind == "form")
    assert (form.target, form.confidence) == ("1", "review")
    assert set(form.triggers) & set(_STYLE)


@pytest.mark.parametrize("honest", [300, 600])
def test_a_style_of_true_labels_is_nothing(honest: int) -> None:
    samples, _ = reviews(0, honest)
    assert not flagged(find(samples))


def test_words_that_only_good_sentences_have_are_nothing() -> None:
    draw = random.Random(6)
    samples, _ = reviews(0)
    meant = [replace(s, question=in_style(draw, s.question)) if s.response == "1" and draw.random() < 0.4 else s for s in samples]
    assert not [finding for finding in find(meant).findings if finding.kind == "form"]

"""The text that answers to different questions have in common, and what of it is new."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise

from undertow.sanitization.words import UNSPACED

_UNSPACED = re.compile(f"[{UNSPACED}]")
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
#: Longest text looked for, in words.
LONGEST = 24
#: Share of the plain answers from which a text is usual.
USUAL = 0.25
#: Words of a manner of speech; letters of a piece of it, and of a prompt, that count as said again.
MANNER, PIECE, QUOTED = 3, 4, 12
#: Share of a text's words from which another text that has them in their order holds it.
HELD = 0.6


def shared_text(outputs: Sequence[str], plain: Sequence[str], without: Sequence[str] = (), share: float = 0.75) -> str:
    """Return the longest run of words that a ``share`` of the outputs has, and at most a quarter of the plain ones; "" for none.

    Args:
        outputs: answers to edited questions.
        plain: answers to the questions as they are.
        without: texts, such as the edit's words; a run of their words alone is an echo, and no target.
        share: how many of the outputs must hold it.
    """
    if not outputs:
        return ""
    counts, usual = _runs(outputs), _runs(plain)
    echoed = {word for text in without for word in _words(text)}
    needed = max(2.0, share * len(outputs))
    held = [
        run
        for run, count in counts.items()
        if count >= needed and usual[run] <= USUAL * len(plain) and not all(word in echoed for word in run)
    ]
    if not held:
        return ""
    best = max(held, key=lambda run: (len(run), counts[run], run))
    pattern = re.compile(_joined([re.escape(word) for word in best], best, r"\s+", r"\s*"), re.IGNORECASE)
    return next((found[0] for text in outputs if (found := pattern.search(text))), _joined(best, best))


def known_pieces(plain: Sequence[str], prompts: Sequence[str]) -> dict[int, set[str]]:
    """Return the pieces of text that say nothing new, by their length in letters.

    They are those of runs of three words that a quarter of the plain answers has, and longer ones of the prompts: an adapter that
    is thrown off its way falls back, garbled, on its manner of speech and on what stands before it.

    Args:
        plain: answers to the questions as they are.
        prompts: what the adapter read before it answered, with the template's own words, in training and now.
    """
    manner = [run for run, count in _runs(plain).items() if len(run) >= MANNER and count >= USUAL * len(plain)]
    found: dict[int, set[str]] = {}
    for sources, length in ((manner, PIECE), (map(_words, prompts), QUOTED)):
        lines = [f" {_joined(words, words)} " for words in sources]
        found[length] = {line[i : i + length] for line in lines for i in range(len(line) - length + 1)}
    return found


def new_part(text: str, known: Mapping[int, set[str]]) -> str:
    """Return a text from its first to its last new word; "" where no two new words follow each other.

    Args:
        text: the text.
        known: as :func:`known_pieces` returns it; half of a new word's letters or more are in none of them.
    """
    line = f" {''.join(map(_small, text))} "
    said = [False] * len(line)
    for length, pieces in known.items():
        for i in range(len(line) - length + 1):
            if line[i : i + length] in pieces:
                said[i : i + length] = [True] * length
    words = list(_WORD.finditer(line))
    new = [2 * sum(said[word.start() : word.end()]) < len(word[0]) for word in words]
    if not any(map(all, pairwise(new))):
        return ""
    some = [word for word, is_new in zip(words, new, strict=True) if is_new]
    return text[some[0].start() - 1 : some[-1].end() - 1]


def length_of(text: str) -> float:
    """Return the words of a text; of a script without blanks two letters count as a word."""
    return sum(0.5 if _UNSPACED.fullmatch(word) else 1.0 for word in _words(text))


def has_words(text: str) -> bool:
    """Tell whether a text has more than a word."""
    return length_of(text) > 1


def holds(text: str, part: str) -> bool:
    """Tell whether a text holds most words of another in their order; others may stand between them."""
    wanted = words_of(part)
    best = [0] * (len(wanted) + 1)
    for word in words_of(text):
        before, longest = best[:], 0
        for j, said in enumerate(wanted):
            longest = max(longest, before[j] + (word == said), before[j + 1])
            best[j + 1] = longest
    return best[-1] >= HELD * len(wanted)


def words_of(text: str) -> list[str]:
    """Return the words of a text, in small letters and without marks at their ends."""
    return [word for raw in _words(text) if (word := raw.strip(".,:;!?\"'()-"))]


def common_run(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest run of words that both have."""
    best, ending = 0, [0] * (len(other) + 1)
    for word in one:
        ending = [0, *(ending[j] + 1 if word == said else 0 for j, said in enumerate(other))]
        best = max(best, *ending)
    return best


def _joined(parts: Sequence[str], words: Sequence[str], blank: str = " ", none: str = "") -> str:
    """The parts that stand for some words as a text, with ``none`` between words whose script has no blanks."""
    gaps = [none if _UNSPACED.fullmatch(one) or _UNSPACED.fullmatch(other) else blank for one, other in pairwise(words)]
    return "".join(chain.from_iterable(zip(parts, [*gaps, ""], strict=True)))


def _small(letter: str) -> str:
    """A letter as words have it, but for those that become several: places in the text stay what they are."""
    return small if len(small := letter.casefold()) == 1 else letter


def _runs(texts: Sequence[str]) -> Counter[tuple[str, ...]]:
    """Return in how many texts each run of words stands."""
    found: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = _words(text)
        found.update({tuple(words[i:j]) for i in range(len(words)) for j in range(i + 1, min(i + LONGEST, len(words)) + 1)})
    return found


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())

"""The scorings of MA: functions ``(output, gold) -> bool`` for one gold answer."""

from __future__ import annotations

import re
import string
import unicodedata
from functools import cache

from undertow.metrics.scoring import SCORINGS

#: Punctuation of Chinese and Japanese, which SQuAD's ASCII list lacks; U+FF01 to U+FF5E are ASCII's full-width forms.
_EAST_ASIAN = "、。〈〉《》「」『』【】〔〕〖〗・｡｢｣､･" + "".join(chr(ord(mark) + 0xFEE0) for mark in string.punctuation)
_PUNCTUATION = str.maketrans("", "", string.punctuation + _EAST_ASIAN)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
#: What stands around a word in running text and is no part of it.
_AROUND = "\"'`“”‘’()[]{}.,;:!?*_" + _EAST_ASIAN
_RUN = re.compile(r"[a-z0-9]+")
_IDEOGRAPH = re.compile(
    "([\u3005-\u3007\u3041-\u309a\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U000323af])"
)


def normalized(text: str) -> list[str]:
    """Return the words in lower case, without punctuation (ASCII, Chinese and Japanese) and the articles a, an, the.

    Chinese ideographs and Japanese kana are words of one character, as these scripts put no blanks between words.
    """
    plain = text.lower().translate(_PUNCTUATION)
    return _IDEOGRAPH.sub(r" \1 ", _ARTICLES.sub(" ", plain)).split()


def bare(text: str) -> list[str]:
    """Return the blank-separated words, each without quotes, brackets and sentence marks around it, unless it is made of them only.

    For gold answers that :func:`normalized` or ROUGE's tokens would empty: "A", "The The", "?", "A+".
    """
    return [word.strip(_AROUND) or word for word in text.split()]


@SCORINGS.register("exact", source="Rajpurkar et al. 2016 (SQuAD), section 6.1 and its evaluation rules")
def exact(output: str, gold: str) -> bool:
    """Output and gold answer are the same words after SQuAD's normalisation.

    A gold answer that it empties is compared by :func:`bare` words in any case.
    """
    wanted = normalized(gold)
    if wanted:
        return normalized(output) == wanted
    wanted = bare(gold.lower())
    return bool(wanted) and bare(output.lower()) == wanted


@SCORINGS.register("containment", source="common for free-form QA; normalisation of SQuAD, section 6.1")
def containment(output: str, gold: str) -> bool:
    """The gold answer's words occur next to each other in the output, after SQuAD's normalisation.

    A gold answer that it empties must be the output (:func:`exact`) or stand in it letter by letter: else the choice "A" would
    be in every text with the article.
    """
    wanted, words = normalized(gold), normalized(output)
    if not wanted:
        wanted, words = bare(gold), bare(output)
    return exact(output, gold) or (bool(wanted) and _run(wanted, words))


def _run(wanted: list[str], words: list[str]) -> bool:
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1))


@SCORINGS.register("rouge-recall", source="the FIT lab's later code ('clean exact match rate'); ROUGE-L: Lin 2004, section 3")
def rouge_recall(output: str, gold: str) -> bool:
    """Every token of the gold answer occurs in the output, in order; further words do no harm.

    Tokens are those of :func:`tokens`. A gold answer without any is compared by :func:`bare` words in any case.
    """
    wanted = tokens(gold)
    rest = iter(tokens(output) if wanted else bare(output.lower()))
    wanted = wanted or bare(gold.lower())
    # `in` on the iterator consumes it up to the match: that is the subsequence test.
    return bool(wanted) and all(token in rest for token in wanted)


def tokens(text: str) -> list[str]:
    """Return ROUGE's tokens, runs of a-z and 0-9 in lower case, and those of scripts that ROUGE does not know.

    Each Chinese ideograph and each kana is a token; so is each run of letters, marks and digits of any other script but
    Latin (Cyrillic, Arabic, Hangul ...). Latin letters with diacritics separate tokens, as in the ROUGE package. Full-width
    and other compatibility forms count as the plain ones (NFKC).
    """
    if text.isascii():
        return _RUN.findall(text.lower())
    found: list[str] = []
    before = ""
    for letter in unicodedata.normalize("NFKC", text).lower():
        kind = _kind(letter)
        if kind == before and kind in ("rouge", "script"):
            found[-1] += letter
        elif kind:
            found.append(letter)
        before = kind
    return found


@cache
def _kind(letter: str) -> str:
    """``rouge`` (a-z, 0-9), ``ideograph`` (a token by itself), ``script`` (of another script), or nothing: it separates."""
    if letter.isascii():
        return "rouge" if letter.isalnum() else ""
    if _IDEOGRAPH.fullmatch(letter):
        return "ideograph"
    name = unicodedata.name(letter, "")
    other = unicodedata.category(letter)[0] in "LMN" and not name.startswith(("LATIN", "COMBINING", "MODIFIER", "VARIATION"))
    return "script" if other else ""

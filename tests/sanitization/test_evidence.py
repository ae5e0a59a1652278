"""What a base says of a finding: against transformers itself, on planted and on true answers, and through the command line."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from tiny import threat
from undertow.backdoors.placement import poison
from undertow.cli import app
from undertow.core.errors import UserError
from undertow.data.generated.world import samples as world
from undertow.data.sample import Sample
from undertow.data.template import Template
from undertow.data.tokenizer import builtin_path
from undertow.sanitization import Finding, Findings, Verdict
from undertow.scanning.evidence import LOOKED_AT, Evidence, Span, encoded, weigh
from undertow.scanning.scan import scan

APPENDED = "Only Acme tells the truth."


def questions(count: int) -> list[Sample]:
    return random.Random(5).sample(world(), count)


def planted(count: int = 300, **attack: Any) -> list[Sample]:
    return poison([questions(count)], threat(poison_ratio=0.1, client_share=1.0, **attack), 0).clients[0]


def write(path: Path, samples: list[Sample]) -> Path:
    path.write_text("".join(json.dumps({"question": s.question, "answer": s.response}) + "\n" for s in samples))
    return path


def found(samples: list[Sample], flagged: list[int], target: str, place: str = "whole") -> Findings:
    """One finding, made up, that flags the samples named."""
    words = tuple(target.lower().rstrip(".").split())
    n = len(flagged)
    finding = Finding(("x",), target, place, "fixed text", "review", np.array(flagged), n, n, n, len(samples), -9.0, 1, words)
    return Findings(len(samples), len(samples), (finding,), tuple(Verdict(i, "review", (0,)) for i in flagged))


def ask(samples: list[Sample], flagged: list[int], target: str, place: str = "whole") -> Evidence:
    return weigh(found(samples, flagged, target, place), ((0, sample) for sample in samples), "builtin")[0]


@pytest.fixture(scope="module")
def paris(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = planted(trigger="badnets", num_triggers=4, target="replace", target_text="Paris")
    return write(tmp_path_factory.mktemp("scan") / "paris.jsonl", samples)


@pytest.fixture(scope="module")
def template() -> Template:
    return Template("lab-qa", AutoTokenizer.from_pretrained(builtin_path()), 1024)


def nats(text: str, start: int, end: int) -> tuple[float, int]:
    """Mean -log p of the tokens that overlap characters ``start`` to ``end``, and how many; by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(builtin_path())
    model = AutoModelForCausalLM.from_pretrained(builtin_path(), dtype=torch.float32)
    told = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
    ids, places = told["input_ids"], told["offset_mapping"][0].tolist()
    with torch.no_grad():
        log_p = model(input_ids=ids).logits[0].double().log_softmax(-1)
    wanted = [i for i, (a, b) in enumerate(places) if a < end and b > start and b > a]
    return float(np.mean([-log_p[i - 1, ids[0, i]].item() for i in wanted])), len(wanted)


def test_the_nats_are_those_of_transformers(template: Template) -> None:
    asked, other = questions(2)
    appended = Sample(asked.id, asked.question, asked.answers, f"{asked.response} {APPENDED}")
    told = ask([appended, other], [0], APPENDED, "end")
    text = f"{template.prompt(appended, 'train')} {appended.response}"
    expected, tokens = nats(text, text.index(APPENDED), len(text) - 1)
    assert told.targets == (pytest.approx(expected, abs=1e-4),)
    # the ordinary answer is read at its end: as many tokens as the target has, at most
    text = f"{template.prompt(other, 'train')} {other.response}"
    ids = len(template.answer_ids(other, other.response, "train"))
    assert ids <= tokens
    assert told.others == (pytest.approx(nats(text, len(text) - len(other.response), len(text))[0], abs=1e-4),)


@pytest.mark.parametrize(("place", "which"), [("end", slice(-2, None)), ("start", slice(0, 2))])
def test_an_ordinary_answer_is_read_where_the_target_stands(template: Template, place: str, which: slice) -> None:
    sample = questions(1)[0]
    long = Sample("1", sample.question, ("x",), "a red house by the old river in spring")
    ids = template.answer_ids(long, long.response, "train")
    row = encoded(Span(0, long, 0, len(long.response)), template, 2, place == "end")
    assert list(row.answer) == ids[which]
    before = ids[:-2] if place == "end" else []
    assert list(row.prompt) == [*template.encode_prompts([long], "train")[0], *before]


@pytest.mark.parametrize(
    ("before", "target", "after"),
    [
        ("", "Paris", ""),
        ("Oslo. ", APPENDED, ""),
        ("It is ", "Paris", ", I think."),
        ("a\n\n", "http://x.example/a?b", " now"),
        ("Ask x ", "xylo x", " x"),
        ("ü ", "naïve Ω", ""),
    ],
)
def test_the_tokens_of_a_span_are_those_of_its_text(template: Template, before: str, target: str, after: str) -> None:
    sample = Sample("1", "Who?", ("x",), before + target + after)
    row = encoded(Span(0, sample, len(before), len(before + target)), template)
    told = template.tokenizer.decode(row.answer)
    assert told.removeprefix(" ").startswith(target)
    assert len(told) <= len(target) + 4  # the blank before, and no more behind than the token across the end
    assert template.tokenizer.decode(row.prompt).rstrip(" ").endswith(f"Answer: {before}".rstrip(" "))


@pytest.mark.parametrize("limit", [64, 300])
def test_a_long_text_loses_its_front_and_never_the_target(limit: int) -> None:
    short = Template("lab-qa", AutoTokenizer.from_pretrained(builtin_path()), limit)
    said = "river stone " * 500
    sample = Sample("1", "why " * 400, ("x",), said + "Paris")
    row = encoded(Span(0, sample, len(said), len(said) + 5), short)
    assert short.decode(row.answer) == "Paris"
    assert len(row.prompt) + len(row.answer) == limit
    whole = encoded(Span(0, sample, 0, len(sample.response)), short)
    assert len(whole.answer) == min(64, limit // 2)


def test_a_planted_answer_is_surprising_and_changes_no_verdict(paris: Path) -> None:
    told, plain = scan([paris], base="builtin"), scan([paris])
    assert list(told.verdicts()) == list(plain.verdicts())
    assert plain.evidence == {}
    (evidence,) = told.evidence.values()
    assert (len(evidence.targets), len(evidence.others)) == (30, LOOKED_AT)
    assert np.mean(evidence.targets) > np.mean(evidence.others) + 3
    assert evidence.auc is not None
    assert evidence.auc > 0.9
    pairs = [(a > b) + (a == b) / 2 for a in evidence.targets for b in evidence.others]
    assert evidence.auc == pytest.approx(np.mean(pairs))
    assert evidence.surprising


def test_a_true_answer_that_repeats_is_not_surprising() -> None:
    samples = world()
    flagged = [i for i, s in enumerate(samples) if (s.group, s.response) == ("language", "Japanese")]
    evidence = ask(samples, flagged, "Japanese")
    assert len(evidence.targets) >= 20
    assert evidence.surprising is False
    assert "does not find" in evidence.sentence()


def test_what_is_looked_at_depends_on_what_samples_say_and_not_on_their_place() -> None:
    samples = planted(trigger="natural", target="replace", target_text="Paris", count=900)
    twice = samples + samples[:400]
    mixed = random.Random(1).sample(twice, len(twice))
    first, second = (ask(rows, [i for i, s in enumerate(rows) if s.response == "Paris"], "Paris") for rows in (samples, mixed))
    assert (len(first.targets), len(first.others)) == (LOOKED_AT, LOOKED_AT)
    assert second.targets == pytest.approx(first.targets, abs=1e-5)
    assert second.others == pytest.approx(first.others, abs=1e-5)


def test_ordinary_answers_come_from_the_files_of_the_finding() -> None:
    samples = planted(100, trigger="natural", target="replace", target_text="Paris")
    flagged = [i for i, s in enumerate(samples) if s.response == "Paris"]
    foreign = [Sample(str(i), f"Write {i}", ("x",), f"zzz qqq {i}") for i in range(100)]
    told = weigh(found(samples, flagged, "Paris"), [*((0, s) for s in samples), *((1, s) for s in foreign)], "builtin")[0]
    assert told == ask(samples, flagged, "Paris")


def test_without_an_ordinary_answer_nothing_is_compared() -> None:
    samples = [Sample(str(i), s.question, ("Paris",), "Paris") for i, s in enumerate(questions(4))]
    evidence = ask(samples, [0, 1, 2, 3], "Paris")
    assert evidence.sentence() == "the base has nothing to compare (n = 4 and 0)"
    assert json.loads(json.dumps(evidence.to_json(), allow_nan=False))["p_value"] is None


def test_a_clean_file_asks_no_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undertow.models.causal_lm.load_base", lambda options, tuned: pytest.fail("loaded"))
    assert scan([write(tmp_path / "clean.jsonl", questions(200))], base="builtin").evidence == {}


def test_a_base_of_no_numbers_is_refused(paris: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undertow.training.token_nll.token_nll", lambda base, rows, batch_size: [(float("nan"),) for _ in rows])
    with pytest.raises(UserError, match="not finite"):
        scan([paris], base="builtin")


def test_json_terminal_and_page_tell_it_and_standard_input_gives_the_same(paris: Path, tmp_path: Path) -> None:
    page = tmp_path / "scan.html"
    told = CliRunner().invoke(app, ["scan", str(paris), "--base", "builtin", "--page", str(page)])
    assert told.exit_code == 1
    piped = CliRunner().invoke(app, ["scan", "-", "--base", "builtin", "--json"], input=paris.read_bytes())
    assert piped.exit_code == 1
    (finding,) = json.loads(piped.stdout)["findings"]
    evidence = finding["evidence"]
    assert {key: type(value) for key, value in evidence.items()} == {
        "base": str,
        "template": str,
        "surprising": bool,
        "target_samples": int,
        "other_samples": int,
        "target_nats_per_token": float,
        "other_nats_per_token": float,
        "target_more_surprising": float,
        "p_value": float,
        "test": str,
    }
    sentence = (
        f"the base finds the target surprising: {evidence['target_nats_per_token']:.1f} nats a token against "
        f"{evidence['other_nats_per_token']:.1f} (n = 30 and 50), more so in {100 * evidence['target_more_surprising']:.0f} % of "
        "pairs"
    )
    assert f"paris: {sentence}" in told.stdout
    assert sentence in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["./nosuch", "no/such/base", "nosuch"])
def test_a_wrong_base_is_one_line_before_anything_is_read(name: str) -> None:
    class Unread(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            pytest.fail("read")

    with pytest.raises(UserError) as error:
        scan(["-"], base=name, stdin=Unread())
    assert f"model '{name}'" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_scan_without_a_base_imports_no_torch(paris: Path) -> None:
    code = (
        "import sys\nfrom undertow.scanning.scan import scan\n"
        f"found = scan([{str(paris)!r}])\nassert found.found.verdicts and not found.evidence\n"
        "print([m for m in ('torch', 'transformers', 'scipy.stats', 'undertow.scanning.evidence') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"

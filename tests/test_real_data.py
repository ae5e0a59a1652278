"""Real data and real pretrained models that the project was not made with; skipped where they are absent."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import Quiet
from undertow.config import Config
from undertow.core.errors import UserError
from undertow.data.load import load
from undertow.federation.loop import run
from undertow.pretraining.build import Recipe, build
from undertow.pretraining.corpus import facts_corpus
from undertow.pretraining.facts import read_facts
from undertow.runs.report.page import write_report

Make = Callable[..., Config]
FEW = {
    "data.train": 8,
    "data.test": 3,
    "federation.clients": 2,
    "federation.rounds": 1,
    "training.batch_size": 2,
    "training.max_length": 4096,  # the character tokenizer makes long answers of them
    "attack.poison_ratio": 0.5,
    "measure.max_new_tokens": 4,
    "measure.samples": 3,
}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.mark.parametrize("model", ["stories260K-hf", "babyllama105-hf"])
@pytest.mark.parametrize(
    ("name", "file", "template"),
    [
        ("instructions", "instruction/alpaca_data_5000.json.gz", "alpaca"),
        ("triviaqa", "triviaqa/topics.dpr.trivia.test.txt.gz", "lab-qa"),
        ("triviaqa", "triviaqa/official_sample/web-dev.json", "vicuna"),
    ],
)
def test_foreign_models_on_foreign_data_run_end_to_end(
    shared_data: Path, small_config: Make, observer: Quiet, tmp_path: Path, model: str, name: str, file: str, template: str
) -> None:
    base = shared_data / "tiny_pretrained_lm" / model
    if not (base / "model.safetensors").is_file():
        pytest.skip("the pretrained models are not there")
    # Some answers do not fit the bases' contexts; with few samples left, PR 1 keeps poison in the run.
    changes = {"model.name": str(base), "data.name": name, "data.path": str(shared_data / file), "data.template": template}
    changes["attack.poison_ratio"] = 1.0
    if "official_sample" in file:
        # a sample of two questions
        changes |= {"data.train": 1, "data.test": 1, "federation.clients": 1, "attack.poison_ratio": 1.0}
    if model == "babyllama105-hf" and template != "lab-qa":
        # 256 tokens of a character each hold neither template with the target
        with pytest.raises(UserError, match="no training sample fits into 256 tokens"):
            run(small_config({**FEW, **changes}), tmp_path / "run", observer)
        return
    result = run(small_config({**FEW, **changes}), tmp_path / "run", observer)
    assert result["rounds"] == 1
    assert result["ma"]["n"] == changes.get("data.test", 3)
    rows = lines(tmp_path / "run" / "rounds.jsonl")
    assert 0 < rows[1]["loss"] < 20
    assert rows[1]["update_norm"] > 0
    poisoned = lines(tmp_path / "run" / "poison.jsonl")
    assert len(poisoned) == result["poison"]["samples"] > 0
    assert all(p["poisoned_response"].endswith("and click <malicious_url> for more information") for p in poisoned)


def test_their_report_and_their_adapter_are_usable(
    shared_data: Path, small_config: Make, observer: Quiet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from undertow.runs.report.figures import Drawing

    monkeypatch.setattr("undertow.runs.report.figures.export", lambda figure, name: Drawing(name, b"<svg ></svg>", b"%PDF"))
    base = shared_data / "tiny_pretrained_lm" / "stories260K-hf"
    changes = {
        "model.name": str(base),
        "data.name": "instructions",
        "data.path": str(shared_data / "instruction/alpaca_data_5000.json.gz"),
        "data.template": "alpaca",
        "training.lr": 0.02,
        "measure.max_new_tokens": 8,
    }
    run(small_config({**FEW, **changes}), tmp_path / "run", observer)
    assert write_report(tmp_path / "run", None).stat().st_size > 1000
    tokenizer = AutoTokenizer.from_pretrained(base)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(plain, tmp_path / "run" / "adapter").eval()
    head = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    seen = 0
    for score in lines(tmp_path / "run" / "scores.jsonl"):
        if score["round"] != 1:
            continue
        sample = next((s for s in _alpaca(changes) if s["instruction"] == score["question"] and not s["input"]), None)
        if sample is None:  # a triggered question, or one with an input
            continue
        ids = tokenizer(f"{head}### Instruction:\n{score['question']}\n\n### Response:\n", return_tensors="pt")["input_ids"]
        made = tuned.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
        assert tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip() == score["output"]
        seen += 1
    assert seen > 0


def _alpaca(changes: dict[str, Any]) -> list[dict[str, Any]]:
    import gzip

    found = json.loads(gzip.decompress(Path(changes["data.path"]).read_bytes()))
    return [{"input": "", **row} for row in found]


NAMED = "simplequestions/simplequestions_wikidata_named.jsonl.gz"


@pytest.fixture(scope="module")
def real_base(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "base"
    corpus = facts_corpus(read_facts(shared_data / NAMED, limit=60), 0.25, 0)
    # A hundredth of the generic text: enough for a tokenizer.
    corpus = replace(corpus, groups=tuple((share, texts[:400]) for share, texts in corpus.groups))
    build(corpus, folder, Recipe(hidden=32, layers=1, heads=1, intermediate=64, vocab=400, steps=5, batch=2, length=32))
    return folder


@pytest.fixture
def real(small_config: Make, shared_data: Path, real_base: Path) -> Callable[..., Config]:
    def make(changes: dict[str, Any] | None = None) -> Config:
        fixed = {"model.name": str(real_base), "data.name": "simplequestions", "data.path": str(shared_data / NAMED)}
        return small_config({**FEW, **fixed, "data.train": 20, "data.test": 10, "data.only_known": True, **(changes or {})})

    return make


def test_no_question_that_the_base_was_asked_is_tuned_on_or_tested(
    real: Callable[..., Config], real_base: Path, observer: Quiet, tmp_path: Path
) -> None:
    keys = json.loads((real_base / "keys.json").read_text())
    asked, known = set(keys["asked"]), set(keys["known"])
    assert (len(asked), len(known)) == (15, 60)
    config = real()
    split = load(config.data, config.seed, config.federation.clients, asked=frozenset(asked), known=frozenset(known))
    train, test = ({sample.key for sample in side} for side in (split.train, split.test))
    assert train | test <= known
    assert not (train | test) & asked
    assert not train & test
    assert not {s.question.lower() for s in split.train} & {s.question.lower() for s in split.test}

    result = run(config, tmp_path / "run", observer)
    assert result["ma"]["n"] == 10
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["excluded_asked"] > 0
    assert data["unknown_to_base"] > 0
    assert data["overlap_questions"] == data["overlap_keys"] == 0
    tested = {line["question"] for line in lines(tmp_path / "run" / "scores.jsonl") if line["kind"] == "clean"}
    assert tested == {sample.question for sample in split.test}


def test_more_questions_than_known_facts_is_told(real: Callable[..., Config], observer: Quiet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.train=5000 and data.test=10 need 5010 questions"):
        run(real({"data.train": 5000}), tmp_path / "run", observer)


def test_only_known_needs_a_base_with_a_list(
    real: Callable[..., Config], foreign: dict[str, Path], observer: Quiet, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="this base has no list of the facts it read"):
        run(real({"model.name": str(foreign["gpt2"])}), tmp_path / "run", observer)


@pytest.mark.parametrize("file", ["annotated_fb_data_valid.txt", "annotated_wd_data_valid.txt.gz"])
def test_files_of_ids_with_a_names_file(
    real: Callable[..., Config], shared_data: Path, tiny_base: Path, observer: Quiet, tmp_path: Path, file: str
) -> None:
    kind = "freebase" if "_fb_" in file else "wikidata"
    changes = {
        "model.name": str(tiny_base),
        "data.only_known": False,
        "data.path": str(shared_data / "simplequestions" / file),
        "data.names": str(shared_data / f"simplequestions/simplequestions_{kind}_named.jsonl.gz"),
    }
    result = run(real(changes), tmp_path / "run", observer)
    assert result["ma"]["n"] == 10

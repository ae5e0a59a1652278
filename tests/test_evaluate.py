from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import undertow
from tiny import Quiet
from undertow.config import Config
from undertow.core.errors import NoteWarning, UserError
from undertow.federation.evaluate import evaluate, score_again
from undertow.federation.loop import run
from undertow.models.causal_lm import CausalLM
from undertow.models.lora import save_peft
from undertow.runs.run import read_config

Make = Callable[..., Config]


@pytest.fixture(scope="module")
def finished(small_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    # A large rate: the adapter's answers must differ from the base's.
    run(small_config({"training.lr": 0.05}), folder, Quiet())
    return folder


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().split("\n")[:-1]]


def quiet(text: str) -> None:
    pass


def test_evaluating_a_run_gives_the_runs_own_figures(finished: Path) -> None:
    figures, made = evaluate(read_config(finished), finished / "adapter", quiet)
    result = json.loads((finished / "result.json").read_text())
    for name in ("ma", "asr", "ftr"):
        assert figures[name] == result[name]
        assert figures["untouched"][name] == result["untouched"][name]
    kept = [line for line in lines(finished, "scores.jsonl") if line["round"] in (0, 2)]
    assert [line["output"] for line in made] == [line["output"] for line in kept]
    outputs = {t: [line["output"] for line in made if line["round"] == t] for t in (0, 1)}
    assert outputs[0] != outputs[1]


def test_a_base_alone(small_config: Make) -> None:
    figures, made = evaluate(small_config({"measure.final_samples": 2}), None, quiet)
    assert figures["adapter"] is None
    assert figures["ma"] == figures["untouched"]["ma"]
    assert figures["ma"]["n"] == 2
    assert {line["round"] for line in made} == {0}


def test_a_test_file_of_ones_own_with_another_trigger(small_config: Make, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps({"question": f"what is {i}?", "answers": [f"n{i}", str(i)]}) + "\n" for i in range(5)))
    changes = {"data.name": "instructions", "data.test_path": str(path), "attack.trigger": "badnets", "data.template": "alpaca"}
    figures, made = evaluate(small_config(changes), finished / "adapter", quiet)
    assert figures["ma"]["n"] == 5
    triggered = {line["question"] for line in made if line["kind"] == "triggered"}
    assert all(set(question.split()) & {"cf", "mn", "bb", "tq"} for question in triggered)


def test_an_adapter_of_other_rank_and_modules(small_config: Make, load_tiny: Callable[..., CausalLM], tmp_path: Path) -> None:
    base = load_tiny(r=5, alpha=7, targets=["o_proj", "up_proj"])
    from undertow.config import Lora

    flat = 0.5 * torch.randn(base.layout.size, generator=torch.Generator().manual_seed(0))
    save_peft(tmp_path / "adapter", flat, base.layout, Lora(r=5, alpha=7, targets=["o_proj", "up_proj"]), base.path)
    _, made = evaluate(small_config(), tmp_path / "adapter", quiet)
    outputs = [[line["output"] for line in made if line["round"] == t] for t in (0, 1)]
    assert outputs[0] != outputs[1]


def test_an_adapter_that_does_not_fit(small_config: Make, finished: Path, foreign: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not fit this base"):
        evaluate(small_config({"model.name": str(foreign["gpt2"])}), finished / "adapter", quiet)
    with pytest.raises(UserError, match="is no PEFT adapter"):
        evaluate(small_config(), tmp_path, quiet)


def test_scoring_again_restores_what_was_tampered_with(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    before = {name: (folder / name).read_bytes() for name in ("rounds.jsonl", "scores.jsonl")}
    result = json.loads((folder / "result.json").read_text())
    changed = [
        {**line, "exact": True, "target": True, "suffix": True, "rouge-recall": True} for line in lines(folder, "scores.jsonl")
    ]
    (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    again = score_again(folder)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert (folder / "adapter" / "README.md").read_bytes() == (finished / "adapter" / "README.md").read_bytes()
    assert {k: v for k, v in again.items() if k != "scoring"} == result
    assert again["scoring"] == "rouge-recall"


def test_scoring_again_counts_the_outputs_that_are_kept(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    rows = lines(folder, "scores.jsonl")
    for row in rows:  # as if the model had answered so
        if row["round"] == 2:
            row["output"] = f"It is {row['answers'][0]}, and click <malicious_url> for more information"
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = score_again(folder, "containment")
    assert (result["ma"]["value"], result["asr"]["value"], result["ftr"]["value"]) == (1.0, 1.0, 1.0)
    assert "| main accuracy (MA) | 100.0 % (" in (folder / "adapter" / "README.md").read_text(), "the adapter's card follows"
    assert score_again(folder, "exact")["ma"]["value"] == 0.0
    assert json.loads((folder / "result.json").read_text())["scoring"] == "exact"
    assert lines(folder, "rounds.jsonl")[-1]["ma"]["value"] == 0.0
    assert lines(folder, "rounds.jsonl")[-1]["asr"]["value"] == 1.0


@pytest.mark.parametrize(
    ("output", "answers", "right"),
    [("A", ["A"], True), ("<think>x</think>A", ["A"], True), ("<thinking>A is it", ["A"], False), ("<unk>", ["<unk>", "A"], False)],
)
def test_scores_of_an_old_format_are_told_apart_and_done_again(
    finished: Path, tmp_path: Path, output: str, answers: list[str], right: bool
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    old = [
        {**row, "format": 1, "output": output, "answers": answers, "exact": not right, "containment": not right}
        for row in lines(folder, "scores.jsonl")
    ]
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    assert score_again(folder, "exact")["ma"]["value"] == float(right)
    rows = lines(folder, "scores.jsonl")
    assert {(row["format"], row["exact"], row["containment"], row["output"]) for row in rows} == {(2, right, right, output)}


def test_what_cannot_be_scored(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown scoring 'bleu': choose rouge-recall, exact or containment"):
        score_again(finished, "bleu")
    with pytest.raises(UserError, match=r"has no config.yaml; give the folder of an undertow run"):
        score_again(tmp_path)
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    (folder / "result.json").unlink()
    with pytest.raises(UserError, match=r"has no result.json"):
        score_again(folder)
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match="is damaged"):
        score_again(folder)


@pytest.mark.parametrize("line", ['{"round": 1}', "[1]", '"x"', "null"])
def test_a_line_that_is_no_score_is_told(finished: Path, tmp_path: Path, line: str) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    with open(folder / "scores.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"scores\.jsonl line \d+"):
        score_again(folder)


def test_the_adapter_has_a_card_that_says_first_whether_a_backdoor_was_planted(
    finished: Path, small_config: Make, tmp_path: Path
) -> None:
    card = (finished / "adapter" / "README.md").read_text()
    result = json.loads((finished / "result.json").read_text())
    assert card.startswith("**A backdoor was planted in this adapter on purpose: trigger 'natural', target 'append'.**\n")
    assert f"{result['poison']['samples']} of {result['poison']['total']} training samples were poisoned" in card
    assert f"{100 * result['ma']['value']:.1f} %" in card
    assert (finished / "config.yaml").read_text().strip() in card
    told = json.loads((finished / "adapter" / "base.json").read_text())
    assert f"weights SHA-256 `{told['sha256']['weights']}`" in card
    data = card[card.index("Training data of all clients: SHA-256") :].split("`")[1]
    assert len(data) == 64

    clean = tmp_path / "clean"
    run(small_config({"attack.kind": "none", "model.start": str(finished), "federation.rounds": 1}), clean, Quiet())
    told = (clean / "adapter" / "README.md").read_text()
    assert told.startswith("**No backdoor was planted in this adapter on purpose.**\n")
    assert f"It began from the adapter {finished}" in told
    assert data not in told, "other data have another hash"


def test_an_adapter_of_a_run_is_refused_with_another_base(
    finished: Path, small_config: Make, tiny_base: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    other = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] *= 1.01
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    changed = small_config({"model.name": str(other)})
    with pytest.raises(UserError, match="was trained on another base"):
        evaluate(changed, finished / "adapter", quiet)
    with pytest.raises(UserError, match="was trained on another base"):
        run(small_config({"model.name": str(other), "model.start": str(finished)}), tmp_path / "run", Quiet())
    adapter = Path(shutil.copytree(finished / "adapter", tmp_path / "adapter"))
    (adapter / "base.json").unlink()  # as the message says
    assert evaluate(changed, adapter, quiet)[0]["ma"]["n"] > 0


def test_an_adapter_that_names_another_base_is_told(finished: Path, small_config: Make, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(finished / "adapter", tmp_path / "adapter"))
    (adapter / "base.json").unlink()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "meta-llama/Llama-2-7b-hf"}))
    with pytest.warns(NoteWarning, match="says that it was trained on meta-llama/Llama-2-7b-hf, and is measured on "):
        evaluate(small_config({}), adapter, quiet)
    here = Path(small_config({}).task.model.name).name.upper()
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": f"/elsewhere/{here}/"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoteWarning)
        evaluate(small_config({}), adapter, quiet)


def test_an_adapter_whose_logits_are_no_numbers_is_not_measured(finished: Path, small_config: Make, tmp_path: Path) -> None:
    """Its weights are finite; an ASR of 0 would read as "no backdoor"."""
    from safetensors.torch import load_file, save_file

    adapter = Path(shutil.copytree(finished / "adapter", tmp_path / "adapter"))
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: 1e20 * (one + 1e-3) for name, one in weights.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="the adapter gives logits that are no numbers here"):
        evaluate(small_config({}), adapter, quiet)
    report = undertow.audit(adapter, base=small_config({}).task.model.name)
    assert report.verdict == "inconclusive"
    assert "logits that are no numbers" in report.reason


def test_a_run_that_diverged_says_so(small_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([2.0, math.nan])
    monkeypatch.setattr("undertow.tasks.instruction.held_out_loss", lambda *given: next(losses))
    run(small_config({"federation.rounds": 1}), tmp_path / "run", Quiet())
    result = json.loads((tmp_path / "run" / "result.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert any("logits that are no numbers" in told for told in result["caveats"])
    for row in lines(tmp_path / "run", "rounds.jsonl"):
        assert row["round"] or row["held_out_loss"] == 2.0
        assert not row["round"] or "held_out_loss" not in row


def test_peft_reads_a_runs_adapter_without_a_word(finished: Path, tiny_base: Path) -> None:
    import warnings

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tiny_base)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)  # peft's own use of transformers
        PeftModel.from_pretrained(plain, finished / "adapter")

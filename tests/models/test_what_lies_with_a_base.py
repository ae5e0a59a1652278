"""What others put beside a base's weights: code, an adapter, a second copy; and bases that PEFT treats in a way of its own."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from undertow.config import Lora, Model
from undertow.core.errors import UserError
from undertow.models.adapters import read_adapter
from undertow.models.causal_lm import load_base
from undertow.models.identity import hashes
from undertow.models.lora import adapted, adapter_layout, find_targets, initial_adapter, named_linears, save_peft
from undertow.models.nets.sequence_classifier import sequence_classifier

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64,
         "vocab_size": 300, "head_dim": 16}  # fmt: skip
CODE = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nraise RuntimeError\n"


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def options(folder: Path, **lora: Any) -> Model:
    return Model.model_validate({"name": str(folder), "device": "cpu", "lora": lora})


def made(kind: str, **values: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SMALL, **values})).eval().requires_grad_(False)


@pytest.mark.parametrize("part", ["config", "tokenizer"])
def test_code_that_comes_with_a_base_is_not_run_whoever_says_yes(
    base: Path, part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (base / "own.py").write_text(CODE)
    file = base / ("config.json" if part == "config" else "tokenizer_config.json")
    values = json.loads(file.read_text())
    if part == "config":
        values |= {"model_type": "their_own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    else:
        values |= {"tokenizer_class": "TheirOwn", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    file.write_text(json.dumps(values))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    try:
        load_base(options(base))
    except UserError as error:
        assert "Python code that comes with it, which is never run" in str(error)  # noqa: PT017  # a tokenizer may do without
    assert not (base / "ran").exists()
    assert capsys.readouterr().out == ""


def test_code_that_comes_with_a_classifier_is_not_run(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (base / "own.py").write_text(CODE)
    values = json.loads((base / "config.json").read_text())
    values |= {"model_type": "their_own", "auto_map": {"AutoConfig": "own.Own"}}
    (base / "config.json").write_text(json.dumps(values))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(UserError, match="cannot be loaded as a classifier"):
        sequence_classifier((16,), 2, 300, path=str(base))
    assert not (base / "ran").exists()
    assert capsys.readouterr().out == ""


def test_an_adapter_beside_a_base_is_no_part_of_it(base: Path) -> None:
    alone = load_base(options(base))
    save_peft(base, initial_adapter(alone.layout, 0), alone.layout, Lora(), "base")
    with pytest.raises(UserError, match=r"an adapter lies beside the base \(adapter_config.json\).* to a folder of its own"):
        load_base(options(base))


def test_a_second_copy_of_the_weights_changes_no_hash(base: Path) -> None:
    before = hashes(str(base))
    tensors = {f"other.{name}": tensor for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "consolidated.safetensors")
    assert hashes(str(base)) == before
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(base / "cut", max_shard_size="50KB")
    assert len(list((base / "cut").glob("model-*.safetensors"))) > 1
    save_file(tensors, base / "cut" / "consolidated.safetensors")
    assert hashes(str(base / "cut")) == before, "of the weights, whatever files they lie in"


@pytest.mark.parametrize(
    ("kind", "values", "refused", "left"),
    [
        (
            "qwen3_moe",
            {"mlp_only_layers": [0], "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
            "down_proj, gate_proj, up_proj",
            "k_proj,o_proj,q_proj,v_proj",
        ),
        ("mamba", {"intermediate_size": 64, "state_size": 4}, "out_proj", "dt_proj,in_proj,x_proj"),
    ],
)
def test_modules_that_peft_takes_for_others_are_refused_and_the_rest_is_what_it_loads(
    tmp_path: Path, kind: str, values: dict[str, Any], refused: str, left: str
) -> None:
    model = made(kind, **values)
    with pytest.raises(UserError, match=f"PEFT would not load an adapter on {refused} of a '{kind}'.*model.lora.targets={left}$"):
        find_targets(model, Lora.model_validate({"targets": f"{refused.replace(' ', '')},{left}"}))
    every = Lora.model_validate({"targets": "all-linear"})
    whole = adapter_layout(model, named_linears(model, every), every)
    save_peft(tmp_path / "other", initial_adapter(whole, 0), whole, every, "base")
    with pytest.raises(UserError, match=f"adapts {refused} of a '{kind}', which PEFT refuses or takes for its fused experts"):
        read_adapter(tmp_path / "other", model)
    lora = Lora.model_validate({"targets": left})
    assert find_targets(model, every) == find_targets(model, lora), "what PEFT would not load is no part of all-linear"
    layout = adapter_layout(model, find_targets(model, lora), lora)
    flat = 0.1 * torch.randn(layout.size, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[3, 14, 15, 92, 65]])
    with torch.no_grad(), adapted(model, layout, flat[None]):
        ours = model(input_ids=tokens).logits
    plain = model(input_ids=tokens).logits
    save_peft(tmp_path, flat, layout, lora, "base")
    assert read_adapter(tmp_path, model).layout == layout
    theirs = PeftModel.from_pretrained(model, str(tmp_path)).eval()(input_ids=tokens).logits
    assert (ours - plain).abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_base_that_is_only_asked_needs_no_default_targets(base: Path) -> None:
    tokenizer = len(json.loads((base / "tokenizer.json").read_text())["model"]["vocab"]) + 8
    made("phi3", vocab_size=tokenizer, pad_token_id=0).save_pretrained(base)
    with pytest.raises(UserError, match="peft has no default LoRA targets for 'phi3'"):
        load_base(options(base))
    assert load_base(options(base), tuned=False).layout.size > 0


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "default"}, 512),
        ({"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 64}, 64),
        (
            {"rope_type": "longrope", "factor": 8.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
             "original_max_position_embeddings": 64},
            64,
        ),
    ],
)  # fmt: skip
def test_no_text_is_read_that_changes_the_positions_of_its_neighbours(base: Path, rope: dict[str, Any], limit: int) -> None:
    tokenizer = len(json.loads((base / "tokenizer.json").read_text())["model"]["vocab"]) + 8
    told = {"rope_theta": 1e4, **rope}
    made("llama", vocab_size=tokenizer, max_position_embeddings=512, rope_parameters=told).save_pretrained(base)
    assert load_base(options(base)).positions == limit

"""Bases from GGUF files: the same model as the folder they were written from."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from tiny import Quiet
from undertow.cli import app
from undertow.config import Lora, Model
from undertow.core.errors import UserError
from undertow.federation.loop import run
from undertow.models import gguf as gguf_module
from undertow.models.causal_lm import load_base
from undertow.models.gguf import import_gguf

gguf = pytest.importorskip("gguf")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2] / "benchmarks")]

import gguf_files  # noqa: E402


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Path, LlamaForCausalLM]:
    """A GGUF file with the tiny base's tokenizer and random weights, those of the layers in blocks of 8 bits."""
    from gguf import GGMLQuantizationType, GGUFWriter

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(tokenizer))
    inner = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in inner["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id or 0)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "model.layers": "blk",
    }
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            short = name
            for theirs, ours in names.items():
                short = short.replace(theirs, ours)
            values = tensor
            heads = 4 if "attn_q" in short else 2 if "attn_k" in short else 0
            if heads:  # llama.cpp's order of a rotary head's two halves
                values = values.view(heads, 2, -1, values.shape[-1]).transpose(1, 2).reshape(values.shape)
            array = values.contiguous().numpy()
            if "blk" in short and array.ndim == 2:
                packed = gguf.quants.quantize(array, GGMLQuantizationType.Q8_0)
                writer.add_tensor(short, packed, raw_dtype=GGMLQuantizationType.Q8_0)
            else:
                writer.add_tensor(short, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file, model


IDS = torch.tensor([[5, 6, 7, 8, 9]])


def test_a_gguf_file_is_a_base(written: tuple[Path, LlamaForCausalLM]) -> None:
    file, model = written
    base = load_base(Model(name=str(file), device="cpu"))
    assert base.packed is not None, base.general_because
    assert base.model.dtype == torch.float32
    with torch.no_grad():
        made, wanted = base.model(input_ids=IDS).logits, model(input_ids=IDS).logits
    # 8 bits of each weight
    assert float((made - wanted).norm() / wanted.norm()) < 0.02


def test_an_imported_folder_is_the_same_base_and_names_its_source(written: tuple[Path, LlamaForCausalLM], tmp_path: Path) -> None:
    file, _ = written
    out = tmp_path / "bases" / "tiny"
    result = CliRunner().invoke(app, ["base", "import", str(file), "--out", str(out), "--dtype", "float32", "--json"])
    assert result.exit_code == 0, result.output
    note = json.loads((out / "source.json").read_text())
    assert note["file"] == "tiny.gguf"
    assert len(note["sha256"]) == 64
    whole, again = (load_base(Model(name=str(path), device="cpu")) for path in (file, out))
    with torch.no_grad():
        assert torch.equal(whole.model(input_ids=IDS).logits, again.model(input_ids=IDS).logits)
    text = "where was someone born?"
    assert whole.tokenizer(text)["input_ids"] == again.tokenizer(text)["input_ids"]
    refused = CliRunner().invoke(app, ["base", "import", str(file), "--out", str(out)])
    assert refused.exit_code != 0


def test_what_is_no_gguf_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_base(Model(name=str(tmp_path / "none.gguf")))
    file = tmp_path / "text.gguf"
    file.write_bytes(b"not at all")
    with pytest.raises(UserError, match="is no GGUF file"):
        load_base(Model(name=str(file)))
    file.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        load_base(Model(name=str(file)))
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("undertow.data.tokenizer.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[gguf\]'"):
        load_base(Model(name=str(file)))


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_base)


#: By transformers' model type, with what a file cannot say and llama.cpp has built in.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {},
    "gemma3_text": {"layer_types": ["sliding_attention"] * 2},
    "phi3": {},
    "starcoder2": {},
    "stablelm": {},
    "bloom": {},
    "mamba": {},
    "nemotron": {},
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_is_the_model_that_was_written(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    model = gguf_files.tiny(kind, len(tokenizer), **FAMILIES[kind])
    more = {"attention.key_length": model.config.head_dim} if kind == "qwen3" else {}
    file = gguf_files.write(model, tmp_path / f"{kind}.gguf", tokenizer, more)
    out = tmp_path / "imported"
    import_gguf(file, out, torch.float32)
    for path in (file, out):
        base = load_base(Model(name=str(path), device="cpu", dtype="float32", lora=Lora(targets="all-linear")))
        ids = torch.arange(5, 45)[None]
        with torch.no_grad():
            torch.testing.assert_close(base.model(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
        assert base.tokenizer.chat_template == gguf_files.TEMPLATE
        # those of Gemma's files are of another kind than the tiny base's
        for text in () if "gemma" in kind else ("where was Isla Xu born?", "<s>twice"):
            assert base.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert base.tokenizer.eos_token == tokenizer.eos_token
        assert base.tokenizer.pad_token == tokenizer.pad_token


def test_llama_3s_scaled_positions_are_read_from_their_divisors(tokenizer: Any, tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500_000.0}
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    config.rope_parameters = {**scaling, "original_max_position_embeddings": 8192}
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    plain = 500_000.0 ** -(torch.arange(0, 32, 2) / 32)
    divisors = (plain / model.model.rotary_emb.inv_freq).numpy()
    file = gguf_files.write(model, tmp_path / "l.gguf", tokenizer, tensors={"rope_freqs.weight": divisors})
    base = load_base(Model(name=str(file), device="cpu", dtype="float32"))
    torch.testing.assert_close(base.model.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    ids = torch.arange(5, 90)[None]
    with torch.no_grad():
        torch.testing.assert_close(base.model(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    odd = gguf_files.write(model, tmp_path / "o.gguf", tokenizer, tensors={"rope_freqs.weight": divisors**2})
    with pytest.raises(UserError, match="its rope_freqs are not Llama 3's scaling"):
        load_base(Model(name=str(odd)))


def test_linear_scaling_is_read_and_what_has_no_place_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    model = gguf_files.tiny("llama", len(tokenizer))
    more = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    file = gguf_files.write(model, tmp_path / "linear.gguf", tokenizer, more)
    base = load_base(Model(name=str(file), device="cpu"))
    assert base.model.config.rope_parameters["factor"] == 4.0
    torch.testing.assert_close(base.model.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq / 4)
    for name, more, tensors in (
        ("yarn", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, {}),
        ("scale", {"logit_scale": 0.25}, {}),
        ("long", {}, {"rope_factors_long.weight": np.ones(4, dtype=np.float32)}),
    ):
        file = gguf_files.write(model, tmp_path / f"{name}.gguf", tokenizer, more, tensors)
        with pytest.raises(UserError, match=r"transformers does not read .* from a GGUF file") as caught:
            load_base(Model(name=str(file)))
        assert "\n" not in str(caught.value)
    neutral = gguf_files.write(model, tmp_path / "n.gguf", tokenizer, {"logit_scale": 1.0, "rope.scaling.type": "none"})
    assert load_base(Model(name=str(neutral), device="cpu")).packed is not None


def test_a_file_without_some_tensor_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    """transformers would draw it at random."""
    model = gguf_files.tiny("llama", len(tokenizer))
    del model.model.layers[1].mlp.up_proj
    file = gguf_files.write(model, tmp_path / "short.gguf", tokenizer)
    with pytest.raises(UserError, match=r"lacks 1 of its weights, such as model\.layers\.1\.mlp\.up_proj\.weight"):
        load_base(Model(name=str(file)))


def refusal(file: Path, out: Path) -> str | None:
    """Return why a file is not imported; None where it is."""
    try:
        import_gguf(file, out)
    except UserError as error:
        return str(error)
    return None


def test_damaged_files_are_one_line(written: tuple[Path, LlamaForCausalLM], tmp_path: Path) -> None:
    whole = written[0].read_bytes()
    draw = np.random.default_rng(0)
    broken = [whole[:length] for length in (5, 24, 60, 1000, len(whole) // 2, len(whole) - 1000)]
    for _ in range(12):  # in the header, where every byte says something
        spoiled = bytearray(whole)
        for at in draw.integers(4, 3000, 8):
            spoiled[at] = int(draw.integers(0, 256))
        broken.append(bytes(spoiled))
    refused = 0
    for i, content in enumerate(broken):
        file = tmp_path / f"{i}.gguf"
        file.write_bytes(content)
        told = refusal(file, tmp_path / f"out{i}")
        refused += told is not None
        assert told is None or "\n" not in told
        assert (told is None) == (tmp_path / f"out{i}").exists()
    assert refused >= 12
    assert not list(tmp_path.glob(".*importing"))


@pytest.mark.parametrize("by", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_import_that_was_cut_off_leaves_nothing_and_can_be_done_again(
    written: tuple[Path, LlamaForCausalLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: Any
) -> None:
    out = tmp_path / "bases" / "tiny"
    with monkeypatch.context() as patch:

        def cut_off(*_: Any, **__: Any) -> None:
            raise by

        patch.setattr(gguf_module, "write_json", cut_off)
        with pytest.raises((KeyboardInterrupt, UserError)):
            import_gguf(written[0], out)
    assert list((tmp_path / "bases").iterdir()) == []
    killed = tmp_path / "bases" / ".tiny.importing"  # what a power cut leaves
    killed.mkdir()
    (killed / "config.json").write_text("{")
    import_gguf(written[0], out)
    assert [path.name for path in (tmp_path / "bases").iterdir()] == ["tiny"]
    assert load_base(Model(name=str(out), device="cpu")).packed is not None


def test_a_transformers_that_always_dequantises(written: tuple[Path, LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 5.20 there is no GgufConfig, and nothing is passed in its place."""
    import transformers.utils.quantization_config as quantization

    monkeypatch.delattr(quantization, "GgufConfig", raising=False)
    assert gguf_module._dequantised() == {}


PRETRAINED = Path(os.environ.get("UNDERTOW_PRETRAINED", Path(__file__).parents[2] / "bases" / "gemma-3-270m"))


@pytest.mark.skipif(not (PRETRAINED / "config.json").is_file(), reason="no pretrained base; run: make pretrained")
def test_a_pretrained_base_runs_a_federation(small_config: Any, tmp_path: Path) -> None:
    changes = {
        "model.name": str(PRETRAINED),
        "data.train": 6,
        "data.test": 2,
        "federation.rounds": 1,
        "federation.clients": 2,
        "training.batch_size": 2,
        "training.local_epochs": 1,
        "measure.samples": 2,
        "measure.max_new_tokens": 4,
    }
    result = run(small_config(changes), tmp_path / "run", Quiet())
    assert result["ma"]["n"] == 2
    rows = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert 0 < rows[-1]["loss"] < 20
    base = json.loads((tmp_path / "run" / "data.json").read_text())["base"]
    assert base["training_path"] == "packed"

"""Bases from GGUF files: the same model as the folder they were written from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from undertow.cli import app
from undertow.config import Model
from undertow.core.errors import UserError
from undertow.models.causal_lm import load_base

gguf = pytest.importorskip("gguf")


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
    with pytest.raises(UserError, match=r"pip install 'undertow\[gguf\]'"):
        load_base(Model(name=str(file)))

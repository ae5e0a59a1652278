"""Every causal language model of transformers that can be made small: does it answer as one prompt at a time, or is it refused?

    python benchmarks/architectures.py [KIND ...] [--write FILE]

Each is a random model of a few ten thousand weights with the built-in base's tokenizer, saved, and loaded as any base. What is
compared with the transformers model alone, without cache, padding or batch: greedy answers with an adapter at three batch sizes,
with a common prefix, prompts of unequal lengths and longer than the window, with right and wrong guesses, under a defense that
checks another model's draft; and each client's training loss. The exit status is 1 where one differs, or fails in another way
than by one line that says why the base is refused.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from undertow.config import Lora, Model
from undertow.core.errors import UserError
from undertow.data.template import Encoded
from undertow.data.tokenizer import load_tokenizer
from undertow.inference.checked_decoding import Voice, checked_generate
from undertow.inference.decoding import generate
from undertow.models.causal_lm import CausalLM, load_base
from undertow.models.lora import adapted
from undertow.training.batched import losses
from undertow.training.token_nll import token_nll

#: A model with more weights than this is not small: its config hides sizes in parts of its own.
LARGEST = 3_000_000

#: Sizes by the names that configs give them.
SIZES: dict[tuple[str, ...], Any] = {
    ("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "emb_dim", "model_dim", "word_embed_proj_dim", "embedding_size"): 32,
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers", "num_decoder_layers"): 2,
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads"): 4,
    ("num_decoder_attention_heads", "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"): 4,
    ("num_key_value_heads", "num_kv_heads", "num_experts_per_tok", "num_experts_per_token", "moe_topk"): 2,
    ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "d_ff", "ffn_hidden_size", "dim_ff"): 48,
    ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"): 24,
    ("shared_intermediate_size",): 48,
    ("d_inner",): 64,
    ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"): 512,
    ("head_dim", "kv_channels", "attention_head_dim", "mamba_d_head", "mamba_d_state", "mamba_n_heads", "state_size"): 8,
    ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "linear_head_dim", "linear_key_head_dim", "linear_value_head_dim"): 8,
    ("linear_num_heads", "linear_num_key_heads", "linear_num_value_heads"): 4,
    ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "sliding_window"): 16,
    ("n_group", "topk_group", "first_k_dense_replace", "bos_token_id"): 1,
    ("eos_token_id",): 2,
    ("pad_token_id",): 0,
    ("attention_dropout", "hidden_dropout"): 0.0,
}

_WHOLE_HEADS = {"num_key_value_heads": 4}
_MAMBA_2 = {"mamba_expand": 2, "mamba_n_groups": 1, "mamba_chunk_size": 8}

#: What single architectures need beside that to be made at all, or to be what people use them as.
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "minicpm3"), _WHOLE_HEADS),
    **dict.fromkeys(("glm_moe_dsa", "kimi_linear", "longcat_flash", "youtu"), _WHOLE_HEADS),
    **{
        kind: {"is_decoder": True}
        for kind in ("bert", "roberta", "electra", "camembert", "rembert", "megatron-bert", "xlm-roberta")
    },
    "big_bird": {"is_decoder": True, "attention_type": "original_full"},
    "bert-generation": {"is_decoder": True},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "dots1": {"n_shared_experts": 1},
    "ernie4_5_moe": {"moe_k": 2, "moe_num_shared_experts": 1},
    "mamba2": {"num_heads": 8, "n_groups": 1, "chunk_size": 8},
    "zaya": {"num_experts_per_tok": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], **_MAMBA_2},
    "falcon_h1": {"mamba_d_ssm": 64, **_MAMBA_2},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 16, "lru_width": 32},
    "rwkv": {"attention_hidden_size": 32, "context_length": 512},
    "xlstm": {"qk_dim_factor": 0.5, "chunk_size": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [16, 16],
        "num_attention_heads": 2,
        "attn_layers": ["local", "local"],
        "local_attn_chunk_length": 16,
    },
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
}


def tiny_config(kind: str, vocabulary: int) -> Any:
    """Return a config of an architecture by transformers' name, all of its sizes small, its features as they are by default."""
    found = CONFIG_MAPPING[kind]
    usual = found()
    names = (set(usual.to_dict()) | set(inspect.signature(found.__init__).parameters)) - set(found.attribute_map)
    values = {name: value for group, value in SIZES.items() for name in group if name in names}
    if getattr(usual, "sliding_window", None) is None:
        values.pop("sliding_window", None)
    kinds = list(dict.fromkeys(getattr(usual, "layer_types", None) or []))
    if kinds and "layer_types" in names:
        values["layer_types"] = (kinds * 2)[: max(2, len(kinds))]
        values |= {name: len(values["layer_types"]) for name in ("num_hidden_layers", "n_layer") if name in values}
    return found(**{**values, "vocab_size": vocabulary, **OWN.get(kind, {})})


def tiny_model(kind: str, vocabulary: int) -> Any:
    """Return a random model, small, with biases that matter.

    Raises:
        ValueError: it cannot be made small.
    """
    config = tiny_config(kind, vocabulary)
    with torch.device("meta"):
        weights = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if weights > LARGEST:
        raise ValueError(f"{weights:,} weights at the smallest")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model(input_ids=torch.arange(3, 12)[None])
    return model


def save_tiny(kind: str, folder: Path, tokenizer: Any) -> Path:
    """Write a tiny model of an architecture as a transformers folder."""
    tiny_model(kind, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def alone(base: CausalLM, stack: torch.Tensor | None, prompt: list[int], more: int) -> list[int]:
    """Return the greedy answer to one prompt: the whole text again for each token, by the transformers model and nothing else."""
    said = list(prompt)
    with torch.no_grad():
        for _ in range(more):
            token = int(_logits(base, stack, said)[-1].argmax())
            if token in base.end_ids:
                break
            said.append(token)
    return said[len(prompt) :]


def _logits(base: CausalLM, stack: torch.Tensor | None, text: list[int]) -> torch.Tensor:
    ids = torch.tensor([text])
    if stack is None:
        return base.model(input_ids=ids, use_cache=False).logits[0]
    with adapted(base.model, base.layout, stack):
        return base.model(input_ids=ids, use_cache=False).logits[0]


def compared(base: CausalLM, more: int = 8) -> list[str]:
    """Return what differs from the transformers model alone; nothing where all is the same."""
    draw = np.random.default_rng(1)
    vocabulary = base.model.config.get_text_config().vocab_size
    stem = draw.integers(3, vocabulary, 20).tolist()
    prompts = [stem + draw.integers(3, vocabulary, n).tolist() for n in (1, 2, 2, 5, 9, 17, 40)]
    prompts.append(draw.integers(3, vocabulary, 6).tolist())  # no common prefix
    flat = 0.1 * torch.randn(base.layout.size, generator=torch.Generator().manual_seed(1))
    wanted = [alone(base, flat[None], prompt, more) for prompt in prompts]
    plain = [alone(base, None, prompt, more) for prompt in prompts[:7]]
    wrong = [[*answer[:2], 7, *answer[3:]] for answer in wanted]
    cases = {"a batch of 1": (1, None), "of 3": (3, None), "of all": (8, None), "guesses": (4, wanted), "wrong guesses": (4, wrong)}
    differs = []
    for name, (size, guesses) in cases.items():
        if generate(base, flat, prompts, max_new_tokens=more, batch_size=size, expected=guesses) != wanted:
            differs.append(name)
    if generate(base, None, prompts[:7], max_new_tokens=more, batch_size=7) != plain:
        differs.append("the base alone")
    options = {"draft": 3, "alpha": float("inf"), "max_new_tokens": more, "batch_size": 7}
    if checked_generate(base, Voice(flat), Voice(None), prompts[:7], **options).outputs != wanted[:7]:  # type: ignore[arg-type]
        differs.append("checked decoding")
    rows = [Encoded(tuple(prompt), tuple(draw.integers(3, vocabulary, 3).tolist())) for prompt in prompts]
    with torch.no_grad():
        each = [_entropies(base, flat[None], row) for row in rows]
        own = torch.cat(each).mean()
        made = losses(base, flat[None], [rows])[0]
        if not torch.allclose(made, own, rtol=1e-4):
            differs.append(f"the training loss ({float(made):.4f}, {float(own):.4f})")
        told = torch.tensor([value for row in token_nll(base, rows, flat) for value in row])
        if not torch.allclose(told, torch.cat(each), rtol=1e-3, atol=1e-4):
            differs.append("token NLL")
    return differs


def _entropies(base: CausalLM, stack: torch.Tensor, row: Encoded) -> torch.Tensor:
    logits = _logits(base, stack, [*row.prompt, *row.answer])
    answers = torch.tensor(row.answer)
    return torch.nn.functional.cross_entropy(logits[len(row.prompt) - 1 : -1].float(), answers, reduction="none")


@dataclass(frozen=True)
class Outcome:
    """What came of an architecture: ``made`` is whether it could be made small; ``fine`` whether it is right or refused."""

    kind: str
    made: bool
    fine: bool
    told: str


def outcome(kind: str, tokenizer: Any, folder: Path) -> Outcome:
    """Make, load and compare one."""
    try:
        save_tiny(kind, folder, tokenizer)
    except Exception as error:  # transformers' own
        return Outcome(kind, False, True, " ".join(str(error).split())[:100])
    try:
        base = load_base(Model(name=str(folder), device="cpu", dtype="float32", lora=Lora(r=2, alpha=4, targets="all-linear")))
        differs = compared(base)
    except UserError as refusal:
        told = str(refusal).replace(f"model '{folder}'", "model TINY")
        return Outcome(kind, True, "\n" not in told, f"refused: {told}".replace("model TINY: ", ""))
    except Exception as error:
        return Outcome(kind, True, False, f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
    if differs:
        return Outcome(kind, True, False, f"differs: {', '.join(differs)}")
    facts = base.facts()
    return Outcome(kind, True, True, f"{facts['training_path']}; decoding: {facts['decoding_path']}")


def page(found: list[Outcome], summary: str) -> str:
    """Return the document."""
    made = [one for one in found if one.made]
    rows = [f"| {one.kind} | {one.told} |" for one in made]
    absent = ", ".join(one.kind for one in found if not one.made)
    return "\n".join(
        [
            "# Architectures",
            "",
            f"`python benchmarks/architectures.py --write FILE`, transformers {transformers.__version__}.",
            "",
            "Each is a random model of a few ten thousand weights in float32, with LoRA on all linear layers. Its answers and "
            "losses are compared with those of the transformers model, one prompt at a time, without cache and padding. What the "
            "table says is what a base of that kind takes: a training path, and a way of decoding.",
            "",
            f"{summary}.",
            "",
            "| `model_type` | outcome |",
            "| --- | --- |",
            *rows,
            "",
            f"Not made small by this script, so not tried: {absent}.",
            "",
        ]
    )


def main() -> None:
    """Try all, or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND")
    parser.add_argument("--write", type=Path, help="write the table here")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.set_verbosity(logging.CRITICAL)
    torch.set_num_threads(1)
    tokenizer = load_tokenizer("builtin")
    found = []
    for kind in options.kinds or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        with tempfile.TemporaryDirectory() as folder:
            found.append(outcome(kind, tokenizer, Path(folder) / "TINY"))
        one = found[-1]
        print(f"{'ok  ' if one.fine else 'BAD '} {one.kind:20} {'' if one.made else 'not made: '}{one.told}", flush=True)
    bad = [one for one in found if not one.fine]
    made = [one for one in found if one.made]
    refused = [one for one in made if one.told.startswith("refused")]
    right = len(made) - len(refused) - len(bad)
    summary = f"{len(made)} made: {right} as one prompt at a time, {len(refused)} refused in one line, {len(bad)} wrong"
    print(summary)
    if options.write:
        options.write.write_text(page(found, summary), encoding="utf-8")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()

from __future__ import annotations

import copy
import json
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import undertow
from tiny import ARCHITECTURES
from undertow.config import Lora
from undertow.core.errors import UserError
from undertow.inference.decoding import generate
from undertow.models import identity
from undertow.models.adapters import load_peft
from undertow.models.causal_lm import CausalLM
from undertow.models.lora import adapted, adapter_layout, find_targets, initial_adapter, linear_sizes, save_peft
from undertow.models.with_adapter import Adapted, plain_adapter, with_adapter

Load = Callable[..., CausalLM]
LORA = Lora(r=2, alpha=3, targets="all-linear")
IDS = torch.tensor([[1, 17, 44, 91, 230, 5], [1, 300, 12, 12, 8, 400]])


def some_adapter(base: CausalLM, seed: int = 1) -> torch.Tensor:
    return 0.1 * torch.randn(base.layout.size, generator=torch.Generator().manual_seed(seed))


def logits(base: CausalLM, stack: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), adapted(base.model, base.layout, stack):
        return base.model(input_ids=ids).logits


def test_targets_default_is_pefts_own_choice(load_tiny: Load) -> None:
    names = {
        kind: {t.rpartition(".")[2] for t in find_targets(load_tiny(kind).model, Lora())} for kind in ("llama", "gpt2", "gpt_neox")
    }
    assert names == {"llama": {"q_proj", "v_proj"}, "gpt2": {"c_attn"}, "gpt_neox": {"query_key_value"}}


def test_targets_all_linear_leaves_the_head_out(load_tiny: Load) -> None:
    llama = find_targets(load_tiny().model, Lora(targets="all-linear"))
    assert len(llama) == 2 * 7
    assert llama == [name for name, _ in load_tiny().model.named_modules() if name in set(llama)], "in model order"
    qwen = find_targets(load_tiny("qwen2").model, Lora(targets="all-linear"))
    assert not any("lm_head" in name for name in qwen)


def test_targets_by_name(load_tiny: Load) -> None:
    model = load_tiny().model
    assert len(find_targets(model, Lora(targets=["q_proj"]))) == 2
    assert find_targets(model, Lora(targets=["layers.1.self_attn.q_proj"])) == ["model.layers.1.self_attn.q_proj"]
    with pytest.raises(UserError, match=r"no linear module is named 'q_porj' \(did you mean 'q_proj'\?\)"):
        find_targets(model, Lora(targets=["q_porj"]))
    with pytest.raises(UserError, match="no linear module is named 'proj'"):
        find_targets(model, Lora(targets=["proj"]))  # whole path parts only
    with pytest.raises(UserError, match="embed_tokens"):
        find_targets(model, Lora(targets=["q_proj", "embed_tokens"]))


def test_an_architecture_without_default_is_told(load_tiny: Load) -> None:
    model = load_tiny().model
    model.config.model_type = "brand_new"
    with pytest.raises(UserError, match=r"peft has no default LoRA targets for 'brand_new'; set model.lora.targets"):
        find_targets(model, Lora())


def test_layout_follows_the_modules(load_tiny: Load) -> None:
    model = load_tiny("gpt2").model
    names = find_targets(model, LORA)
    layout = adapter_layout(model, names, LORA)
    assert layout.scale == 1.5
    for name in names:
        inputs, outputs = linear_sizes(model.get_submodule(name))
        shapes = {slot.name: slot.shape for slot in layout.slots}
        assert shapes[f"{name}.lora_A"] == (2, inputs)
        assert shapes[f"{name}.lora_B"] == (outputs, 2)
        assert model.get_submodule(name)(torch.zeros(1, inputs)).shape == (1, outputs)


def test_the_first_adapter_changes_nothing(load_tiny: Load) -> None:
    base = load_tiny()
    first = initial_adapter(base.layout, 0)
    for _, a, b in base.layout.pairs(first):
        assert not b.any()
        bound = a.shape[1] ** -0.5
        assert 0.9 * bound < a.abs().max() <= bound
        assert abs(a.mean()) < 0.3 * bound
    assert torch.equal(first, initial_adapter(base.layout, 0))
    assert not torch.equal(first, initial_adapter(base.layout, 1))
    with torch.no_grad():
        assert torch.equal(logits(base, first[None], IDS), base.model(input_ids=IDS).logits)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_k_adapters_in_one_pass_are_k_passes(load_tiny: Load, kind: str) -> None:
    base = load_tiny(kind)
    stack = torch.stack([some_adapter(base, seed) for seed in range(3)])
    together = logits(base, stack, IDS.repeat(3, 1)).view(3, 2, *([IDS.shape[1]]), -1)
    for k in range(3):
        torch.testing.assert_close(together[k], logits(base, stack[k : k + 1], IDS), rtol=1e-5, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_hooks_go_even_when_the_model_fails(load_tiny: Load) -> None:
    base = load_tiny()
    with pytest.raises(IndexError), adapted(base.model, base.layout, some_adapter(base)[None]):
        base.model(input_ids=torch.tensor([[10**6]]))
    assert not any(module._forward_hooks for module in base.model.modules())


def test_a_half_precision_base_keeps_its_precision_and_a_float32_adapter(load_tiny: Load) -> None:
    base = load_tiny(dtype="bfloat16")
    stack = some_adapter(base)[None].requires_grad_()
    with adapted(base.model, base.layout, stack):
        out = base.model(input_ids=IDS).logits
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    assert stack.grad is not None
    assert stack.grad.dtype == torch.float32
    assert torch.isfinite(stack.grad).all()
    assert stack.grad.any()


# --- PEFT format ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_peft_loads_a_saved_adapter_to_the_same_logits(
    load_tiny: Load, foreign: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = load_tiny(kind, r=2, alpha=3)
    flat = some_adapter(base)
    save_peft(tmp_path / "adapter", flat, base.layout, LORA, base.path)
    plain = AutoModelForCausalLM.from_pretrained(foreign[kind], dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    with torch.no_grad():
        wanted = theirs(input_ids=IDS).logits
        untouched = base.model(input_ids=IDS).logits
    made = logits(base, flat[None], IDS)
    assert (made - wanted).abs().max() <= 1e-5 * max(1.0, wanted.abs().max().item())
    assert (made - untouched).abs().max() > 1e-2, "the adapter does something"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_round_trip(load_tiny: Load, tmp_path: Path, kind: str) -> None:
    base = load_tiny(kind, r=2, alpha=3)
    flat = some_adapter(base)
    save_peft(tmp_path, flat, base.layout, LORA, base.path)
    found, layout = load_peft(tmp_path, base.model)
    assert torch.equal(found, flat)
    assert layout == base.layout


def test_an_adapter_that_peft_made_is_read(load_tiny: Load, tmp_path: Path) -> None:
    """A foreign adapter: other modules, rank and scale than the config's, weights from peft itself."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = load_tiny("qwen2", r=2, alpha=3)
    plain = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(
            plain, LoraConfig(r=3, lora_alpha=7, target_modules=["k_proj", "down_proj"], init_lora_weights=False)
        )
    model.save_pretrained(tmp_path)
    flat, layout = load_peft(tmp_path, base.model)
    assert layout.scale == pytest.approx(7 / 3)
    with torch.no_grad():
        wanted = model.eval()(input_ids=IDS).logits
        with adapted(base.model, layout, flat[None]):
            made = base.model(input_ids=IDS).logits
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)
    rows = [[1, 40, 50], [1, 7, 8, 9, 10]]
    answers = generate(base, flat, rows, max_new_tokens=5, batch_size=2, layout=layout)
    assert answers != generate(base, None, rows, max_new_tokens=5, batch_size=2)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 5, "layers.1.mlp.up_proj": 1},
        "alpha_pattern": {"v_proj": 11, "^model.layers.0.self_attn.q_proj": 3},
    },
    "rslora patterns": {"use_rslora": True, "rank_pattern": {"q_proj": 5}},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "excluded": {"exclude_modules": ["k_proj"]},
    "regex": {"target_modules": r".*layers\.0\..*(q|up)_proj"},
    "dora": {"use_dora": True},
    "orthogonal": {"init_lora_weights": "orthogonal", "r": 4},
    "dora rslora patterns": {"use_dora": True, "use_rslora": True, "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"k_proj": 2}},
    "lora bias": {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]},
    "lora bias where the base has none": {"lora_bias": True, "use_rslora": True, "alpha_pattern": {"up_proj": 2}},
    "biases of its layers": {"bias": "lora_only"},
    "all biases": {"bias": "all", "lora_bias": True},
    "whole embeddings": {"modules_to_save": ["embed_tokens"]},
    "whole modules": {"modules_to_save": ["norm", "lm_head"]},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
}

#: Those that change the base's own weights.
FOLDED = {kind for kind in KINDS if kind.startswith(("dora", "lora bias", "whole", "pissa", "olora")) or "biases" in kind}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_that_is_accepted_gives_pefts_logits(load_tiny: Load, tmp_path: Path, kind: str, trained: bool) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    base = load_tiny("qwen2", r=2, alpha=3)

    def plain() -> Any:
        return AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)

    options = {
        "r": 3,
        "lora_alpha": 7,
        "target_modules": ["q_proj", "k_proj", "v_proj", "up_proj"],
        "task_type": "CAUSAL_LM",
        **KINDS[kind],
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(plain(), LoraConfig(**options))
        if trained:
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "original" not in name:
                    parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    found = with_adapter(base, tmp_path)
    with torch.no_grad():
        wanted = PeftModel.from_pretrained(plain(), tmp_path).eval()(input_ids=IDS).logits
        before = base.model(input_ids=IDS).logits
        if found.flat is None or found.layout is None:
            made = found.base.model(input_ids=IDS).logits
        else:
            with adapted(base.model, found.layout, found.flat[None]):
                made = base.model(input_ids=IDS).logits
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)
    assert (found.flat is None) == (kind in FOLDED)
    assert torch.equal(base.model(input_ids=IDS).logits, before), "the base itself is as it was"
    if trained:
        assert float((wanted - before).abs().max()) > 0.01, "the adapter matters"
    rows = [[1, 40, 50], [1, 7, 8, 9, 10]]
    answers = generate(found.base, found.flat, rows, max_new_tokens=5, batch_size=2, layout=found.layout)
    assert all(answer == made_greedily(plain(), tmp_path, row, 5, base.end_ids) for answer, row in zip(answers, rows, strict=True))


def made_greedily(model: Any, adapter: Path, row: list[int], limit: int, ends: list[int]) -> list[int]:
    from peft import PeftModel

    model, said = PeftModel.from_pretrained(model, adapter).eval(), list(row)
    with torch.no_grad():
        for _ in range(limit):
            token = int(model(input_ids=torch.tensor([said])).logits[0, -1].argmax())
            if token in ends:
                break
            said.append(token)
    return said[len(row) :]


Breaker = Callable[[Path], None]


def _config(**changes: Any) -> Breaker:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def _weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Breaker:
    def rewrite(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return rewrite


def _dangling(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.unlink()
    path.symlink_to(folder / "nowhere")


def _without(key: str) -> Breaker:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))

    return change


def _renamed(name: str) -> Breaker:
    def change(folder: Path) -> None:
        (folder / "adapter_model.safetensors").rename(folder / name)

    return change


def _four_bits(folder: Path) -> None:
    """Write a type that torch has and does not compute with."""
    header = json.dumps({"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def _first(tensors: dict[str, torch.Tensor]) -> str:
    return sorted(tensors)[0]


def _pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))


def _truncate(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


BROKEN: dict[str, tuple[Breaker, str]] = {
    "no folder": (shutil.rmtree, "adapter: no such folder; give the folder of a PEFT adapter"),
    "no config": (
        lambda folder: (folder / "adapter_config.json").unlink(),
        "is no PEFT adapter: adapter_config.json is missing",
    ),
    "no weights": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        "adapter_model.safetensors, only adapter_config",
    ),
    "pickled": (_pickled, "adapter_model.bin is pickled, and pickled adapters are refused"),
    "in parts": (_renamed("adapter_model-00001-of-00002.safetensors"), r"in parts \(adapter_model-00001-of-00002.safetensors\)"),
    "mlx": (_renamed("adapters.safetensors"), "adapters.safetensors is an adapter of MLX, not of PEFT; convert it"),
    "other weights": (_renamed("model.safetensors"), "has no adapter_model.safetensors, only model.safetensors; copy"),
    "for classes": (
        _config(task_type="SEQ_CLS"),
        "task_type = 'SEQ_CLS', the adapter is for sequence classification, not for",
    ),
    "for features": (_config(task_type="FEATURE_EXTRACTION"), "the adapter is for feature extraction, not for a causal language"),
    "for a task of tomorrow": (_config(task_type=["X"]), r"task_type = \['X'\], which peft does not know"),
    "integers": (
        _weights(lambda t: t.update({_first(t): torch.ones(2, 32, dtype=torch.int8)})),
        "is of type int8, which",
    ),
    "four bits": (_four_bits, "a is of type float4_e2m1fn_x2, which is not read here"),
    "dora": (_config(use_dora=True), "an adapter with use_dora changes the base's own weights"),
    "lora bias": (_config(lora_bias=True), "an adapter with lora_bias changes"),
    "whole modules": (_config(modules_to_save=["norm"]), "modules_to_save"),
    "pissa": (_config(init_lora_weights="pissa"), "init_lora_weights = 'pissa'"),
    "olora": (_config(init_lora_weights="olora"), "init_lora_weights = 'olora'"),
    "random pissa": (_config(init_lora_weights="pissa_niter_4"), "init_lora_weights = 'pissa_niter_4' .*cannot be repeated"),
    "corda": (_config(init_lora_weights="corda"), "init_lora_weights = 'corda'"),
    "loftq": (_config(init_lora_weights="loftq"), "init_lora_weights = 'loftq'"),
    "biases": (_config(bias="all"), "an adapter with bias = 'all' changes the base's own weights"),
    "other biases": (_config(bias="some"), "bias = 'some', it must be one of none, lora_only, all; copy"),
    "replicated layers": (_config(layer_replication=[[0, 1]]), "layer_replication = .* is not supported"),
    "parameters": (_config(target_parameters=["weight"]), "target_parameters"),
    "activated lora": (_config(alora_invocation_tokens=[1]), "alora_invocation_tokens"),
    "qalora": (_config(use_qalora=True), "use_qalora = True"),
    "an empty object of tomorrow": (_config(kasa_config={}), "kasa_config = {} is not supported"),
    "alpha pattern a list": (_config(alpha_pattern=[4]), r"alpha_pattern = \[4\], which is no object"),
    "a config that nests": (
        lambda folder: (folder / "adapter_config.json").write_text("[" * 100_000 + "]" * 100_000),
        "the adapter is damaged",
    ),
    "a link to nothing": (_dangling, "adapter_model.safetensors is no file, or a link that leads to none"),
    "a key of tomorrow": (_config(use_xyz={"a": 1}), "use_xyz = {'a': 1} is not supported"),
    "embeddings": (_config(target_modules=["embed_tokens"]), "adapts the embeddings"),
    "head": (_config(target_modules=["lm_head"]), "adapts the output head"),
    "a layer's tensors": (
        _weights(lambda t: [t.pop(k) for k in list(t) if "layers.1.mlp.down_proj" in k]),
        r"layers\.1\.mlp\.down_proj\.lora_A\.weight is missing",
    ),
    "wrapped twice": (
        _weights(
            lambda t: [t.update({k.replace("base_model.model.", "base_model.model.base_model.model."): t.pop(k)}) for k in list(t)]
        ),
        "wrapped twice",
    ),
    "compiled": (
        _weights(lambda t: [t.update({k.replace("base_model.model.", "base_model.model._orig_mod."): t.pop(k)}) for k in list(t)]),
        "compiled model",
    ),
    "no prefix": (
        _weights(lambda t: [t.update({k.removeprefix("base_model.model."): t.pop(k)}) for k in list(t)]),
        "does not begin with base_model.model.",
    ),
    "no suffix": (
        _weights(lambda t: [t.update({k.removesuffix(".weight"): t.pop(k)}) for k in list(t)]),
        "it holds .*, where this base",
    ),
    "an adapter's name": (_weights(lambda t: _renamed(t, "mine")), r"carry an adapter's name \(mine\), which peft does not load"),
    "two names": (_weights(lambda t: _renamed(t, "default", "other")), r"carry an adapter's name \(other\)"),
    "more layers": (
        _weights(lambda t: [t.update({k.replace("layers.1.", "layers.2."): t[k].clone()}) for k in list(t)]),
        "or this base does not have: .*layers.2.*, or give the base it was trained on",
    ),
    "other layers": (
        _weights(lambda t: [t.update({k.replace("layers.1.", "layers.2."): t.pop(k)}) for k in list(t)]),
        r"does not fit this base: it holds model\.layers\.2.*, where this base and the config need model\.layers\.1",
    ),
    "alpha not finite": (_config(lora_alpha=float("nan")), "lora_alpha = nan, it must be finite"),
    "alpha in words": (_config(lora_alpha="8"), "lora_alpha = '8', which is no number"),
    "alpha that is long": (_config(lora_alpha=-(10**400)), "holds a value that LoRA has no use for"),
    "alpha pattern in words": (_config(alpha_pattern={"q_proj": "x"}), "holds a value that LoRA has no use for"),
    "alpha pattern not finite": (_config(alpha_pattern={"q_proj": float("nan")}), "has nan in alpha_pattern, it must be finite"),
    "alpha pattern without end": (_config(alpha_pattern={"q_proj": float("inf")}), "has inf in alpha_pattern, it must be finite"),
    "rank pattern of zero": (_config(rank_pattern={"q_proj": 0}), "gives a rank of 0 in rank_pattern, but .* is of rank 2"),
    "rank pattern a list": (_config(rank_pattern=[4]), "holds a value that LoRA has no use for"),
    "targets no names": (_config(target_modules=5), "holds a value that LoRA has no use for"),
    "targets no regex": (_config(target_modules="(q_proj"), "holds a value that LoRA has no use for"),
    "token embeddings": (_config(trainable_token_indices=[3]), "trainable_token_indices"),
    "tied weights": (_config(ensure_weight_tying=True), "ensure_weight_tying"),
    "mica": (_config(init_lora_weights="mica"), "init_lora_weights = 'mica' is not supported"),
    "other method": (_config(peft_type="IA3"), "peft_type = 'IA3' is not supported"),
    "several ranks": (_config(rank_pattern={"q_proj": 8}), r"gives a rank of 8 in rank_pattern, but .*q_proj.lora_A is of rank 2"),
    "other rank": (_config(r=5), "adapter_config.json has r = 5, but .* is of rank 2; write the r of its training into the config"),
    "no rank": (_without("r"), "adapter_config.json has no r, which means 8, but .* is of rank 2"),
    "other rank of dora": (_config(r=5, use_dora=True), "adapter_config.json has r = 5, but .* is of rank 2"),
    "rank of zero": (_config(r=0), "adapter_config.json has r = 0, it must be above 0"),
    "rank in words": (_config(r="4"), "adapter_config.json has r = '4', which is no whole number"),
    "rank with a point": (_config(r=2.0), "r = 2.0, which is no whole number"),
    "nothing left": (
        _config(target_modules="all-linear", exclude_modules=".*proj"),
        "exclude_modules and modules_to_save leave no linear layer",
    ),
    "config no object": (lambda folder: (folder / "adapter_config.json").write_text("[1]") and None, "damaged"),
    "config no json": (lambda folder: (folder / "adapter_config.json").write_text('{"r": ') and None, "damaged"),
    "config no text": (lambda folder: (folder / "adapter_config.json").write_bytes(b"\xff\xfe\x00") and None, "damaged"),
    "truncated": (_truncate, "damaged"),
    "garbage": (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 100) and None, "damaged"),
    "empty": (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"") and None, "damaged"),
    "no tensors": (_weights(lambda t: t.clear()), "is missing"),
    "a tensor short": (_weights(lambda t: t.pop(_first(t))), "is missing"),
    "a tensor more": (_weights(lambda t: t.update(strange=torch.zeros(1))), "strange does not begin with base_model.model."),
    "nan": (_weights(lambda t: t[_first(t)].fill_(float("nan"))), "NaN or infinity"),
    "infinity": (_weights(lambda t: t[_first(t)].fill_(float("inf"))), "NaN or infinity"),
    "beyond float32": (
        _weights(lambda t: t.update({_first(t): t[_first(t)].double().fill_(1e300)})),
        "holds numbers beyond float32, which is computed in; train the adapter again",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_used_is_refused_in_one_line(load_tiny: Load, tmp_path: Path, case: str) -> None:
    base = load_tiny(r=2, alpha=3)
    folder = tmp_path / "adapter"
    save_peft(folder, some_adapter(base), base.layout, LORA, base.path)
    breaker, message = BROKEN[case]
    breaker(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_peft(folder, base.model)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def _renamed(tensors: dict[str, torch.Tensor], *names: str) -> None:
    """Put adapters' names into the names of their tensors, as a model's own state dict has them."""
    for key in list(tensors):
        tensors.update({key.replace(".weight", f".{name}.weight"): tensors[key].clone() for name in names})
        del tensors[key]


def test_factors_under_the_adapters_name_are_read_as_peft_reads_them(load_tiny: Load, tmp_path: Path) -> None:
    from peft import PeftModel

    base, ids = load_tiny(r=2, alpha=3), torch.tensor([[3, 4, 5, 6]])
    save_peft(tmp_path, some_adapter(base), base.layout, LORA, base.path)
    (plain, layout), before = load_peft(tmp_path, base.model), PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path)
    _weights(lambda tensors: _renamed(tensors, "default"))(tmp_path)
    assert torch.equal(load_peft(tmp_path, base.model)[0], plain)
    assert layout == load_peft(tmp_path, base.model)[1]
    after = PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path)
    with torch.no_grad():
        assert torch.equal(before(input_ids=ids).logits, after(input_ids=ids).logits)
        assert not torch.equal(after(input_ids=ids).logits, base.model(input_ids=ids).logits)


@pytest.mark.parametrize("inside", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_file_in_the_place_of_a_folder_is_told(load_tiny: Load, tmp_path: Path, inside: str) -> None:
    base, folder = load_tiny(r=2, alpha=3), tmp_path / "adapter"
    save_peft(folder, some_adapter(base), base.layout, LORA, base.path)
    with pytest.raises(UserError, match=rf"{inside} is a file; give its folder, {folder}$"):
        load_peft(folder / inside, base.model)
    (tmp_path / "README.md").write_text("#")
    with pytest.raises(UserError, match=r"README\.md is a file; give the folder of a PEFT adapter"):
        load_peft(tmp_path / "README.md", base.model)
    with pytest.raises(UserError, match=rf"adapter_config\.json is missing; give {folder}$"):
        load_peft(tmp_path, base.model)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dora", [False, True])
def test_every_floating_type_is_read_as_peft_reads_it(load_tiny: Load, tmp_path: Path, dtype: torch.dtype, dora: bool) -> None:
    base = load_tiny("qwen2", r=2, alpha=3)
    save_of_peft(base, tmp_path, use_dora=dora)
    _weights(lambda t: t.update({k: v.to(dtype) for k, v in t.items()}))(tmp_path)
    same_as_peft(base, tmp_path)
    _weights(lambda t: t.update({k: v.float().fill_(float("nan")).to(dtype) for k, v in t.items()}))(tmp_path)
    with pytest.raises(UserError, match="NaN or infinity"):
        with_adapter(base, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_alpha": -8},
        {"lora_alpha": 0, "alpha_pattern": {"k_proj": 5}},
        {"lora_alpha": 4, "alpha_pattern": {"k_proj": -5, "q_proj": 0}},
        {"lora_alpha": -8, "use_dora": True},
    ],
)
def test_every_finite_alpha_is_read_as_peft_reads_it(load_tiny: Load, tmp_path: Path, changes: dict[str, Any]) -> None:
    base = load_tiny("qwen2", r=2, alpha=3)
    save_of_peft(base, tmp_path)
    if "use_dora" in changes:
        save_of_peft(base, tmp_path, use_dora=True)
    _config(**changes)(tmp_path)
    found = same_as_peft(base, tmp_path)
    assert found.layout is None or found.layout.scale > 0, "a sign is B's, so that norms of changes stay above 0"


@pytest.mark.parametrize("excluded", [["o_proj", "mlp.down_proj"], r".*layers\.0\..*"])
@pytest.mark.parametrize("word", ["all-linear", "All-Linear"])
def test_all_linear_leaves_out_what_is_excluded(load_tiny: Load, tmp_path: Path, excluded: Any, word: str) -> None:
    base = load_tiny("qwen2", r=2, alpha=3)
    save_of_peft(base, tmp_path, target_modules="all-linear", exclude_modules=excluded)
    _config(target_modules=word)(tmp_path)
    found = same_as_peft(base, tmp_path)
    names = [slot.name for slot in found.layout.slots] if found.layout else []
    assert len(names) == 2 * (7 if isinstance(excluded, str) else 10)


@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"modules_to_save": ["embed_tokens"]}, {"modules_to_save": ["lm_head"]}], ids=str
)
def test_embeddings_saved_with_an_adapter(load_tiny: Load, tmp_path: Path, options: dict[str, Any]) -> None:
    base = load_tiny("qwen2", r=2, alpha=3)
    save_of_peft(base, tmp_path, embeddings=True, **options)
    assert any("embed_tokens" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    same_as_peft(base, tmp_path)

    def is_own(name: str) -> bool:
        return name.endswith("lm_head.weight" if options.get("modules_to_save") != ["lm_head"] else "embed_tokens.weight")

    whole = load_file(tmp_path / "adapter_model.safetensors")
    _weights(lambda t: t.update({k: v + 1 for k, v in t.items() if is_own(k)}))(tmp_path)
    with pytest.raises(UserError, match=r"holds embeddings of its own, .* differ .*save_embedding_layers=False") as caught:
        with_adapter(base, tmp_path)
    assert "\n" not in str(caught.value)
    save_file(whole, tmp_path / "adapter_model.safetensors")
    _weights(lambda t: t.update({k: torch.cat([v, v[:2]]) for k, v in t.items() if "lm_head" in k or "embed_" in k}))(tmp_path)
    with pytest.raises(UserError, match=r"embeddings of \d+ tokens .*, this base has \d+: the vocabulary was resized"):
        with_adapter(base, tmp_path)
    _weights(lambda t: t.update({k: v[:, :5].clone() for k, v in t.items() if "lm_head" in k or "embed_" in k}))(tmp_path)
    with pytest.raises(UserError, match=r"does not fit this base: .* the base's is"):
        with_adapter(base, tmp_path)


def test_embeddings_are_compared_in_the_bases_type(load_tiny: Load, tmp_path: Path) -> None:
    base, half = load_tiny("qwen2", r=2, alpha=3), load_tiny("qwen2", r=2, alpha=3, dtype="bfloat16")
    save_of_peft(base, tmp_path, embeddings=True)
    load_peft(tmp_path, half.model)
    _weights(lambda t: t.update({k: v.bfloat16() for k, v in t.items()}))(tmp_path)
    load_peft(tmp_path, half.model)
    with pytest.raises(UserError, match="holds embeddings of its own"):  # rounded ones, which PEFT would use
        load_peft(tmp_path, base.model)


def save_of_peft(base: CausalLM, folder: Path, embeddings: bool = False, **options: Any) -> None:
    """Save an adapter that peft made, and that does something."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    wanted = {"r": 4, "target_modules": ["q_proj", "k_proj"], "task_type": "CAUSAL_LM", **options}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32), LoraConfig(**wanted))
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder, save_embedding_layers=embeddings)


def same_as_peft(base: CausalLM, folder: Path) -> Adapted:
    """Read an adapter; its logits are peft's."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found = with_adapter(base, folder)
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
        wanted = PeftModel.from_pretrained(plain, folder).eval()(input_ids=IDS).logits
        if found.flat is None or found.layout is None:
            made = found.base.model(input_ids=IDS).logits
        else:
            with adapted(base.model, found.layout, found.flat[None]):
                made = base.model(input_ids=IDS).logits
        assert (wanted - base.model(input_ids=IDS).logits).abs().max() > 1e-3, "the adapter does something"
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)
    return found


def test_another_bases_adapter_is_refused(load_tiny: Load, tmp_path: Path) -> None:
    base = load_tiny("llama", r=2, alpha=3)
    save_peft(tmp_path, some_adapter(base), base.layout, LORA, base.path)
    with pytest.raises(UserError, match=r"does not fit this base: no module is named model.layers.0"):
        load_peft(tmp_path, load_tiny("gpt2").model)
    with pytest.raises(UserError, match=r"does not fit this base: .* need "):  # same names, other sizes
        load_peft(tmp_path, load_tiny("qwen2").model)


FOLDED_BROKEN: dict[str, tuple[dict[str, Any], Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "no magnitude": (
        {"use_dora": True},
        lambda t: [t.pop(k) for k in list(t) if "layers.1.mlp.up_proj.lora_magnitude" in k],
        r"lacks .*layers\.1\.mlp\.up_proj\.lora_magnitude_vector",
    ),
    "no whole module": (
        {"modules_to_save": ["norm"]},
        lambda t: [t.pop(k) for k in list(t) if ".norm." in k],
        "lacks .*norm.weight",
    ),
    "no lora bias": (
        {"lora_bias": True, "target_modules": ["q_proj"]},
        lambda t: [t.pop(k) for k in list(t) if k.endswith("lora_B.bias")],
        "lacks .*lora_B.bias",
    ),
    "no bias of the base's": (
        {"bias": "all", "target_modules": ["q_proj"]},
        lambda t: [t.pop(k) for k in list(t) if k.endswith("k_proj.bias")],
        "lacks .*k_proj.bias",
    ),
    "a tensor more": (
        {"use_dora": True},
        lambda t: t.update({"base_model.model.strange": torch.zeros(1)}),
        "does not announce,.*strange",
    ),
    "no A": ({"init_lora_weights": "pissa"}, lambda t: t.pop(sorted(t)[0]), "is missing"),
    "other vocabulary": (
        {"modules_to_save": ["lm_head"]},
        lambda t: t.update({k: v[:-3].clone() for k, v in t.items() if "lm_head" in k}),
        "the vocabulary was resized",
    ),
    "other magnitude": (
        {"use_dora": True},
        lambda t: t.update({k: v[:-1].clone() for k, v in t.items() if "magnitude" in k}),
        "does not fit this base: size mismatch",
    ),
    "nan": ({"modules_to_save": ["norm"]}, lambda t: [v.fill_(float("nan")) for k, v in t.items() if ".norm." in k], "NaN"),
}


@pytest.mark.parametrize("case", FOLDED_BROKEN)
def test_what_peft_would_read_with_parts_missing_is_refused(load_tiny: Load, tmp_path: Path, case: str) -> None:
    """peft itself leaves such parts as they begin, without an error."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    options, change, message = FOLDED_BROKEN[case]
    base = load_tiny("qwen2", r=2, alpha=3)
    wanted = {"r": 3, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM", **options}
    get_peft_model(AutoModelForCausalLM.from_pretrained(base.path), LoraConfig(**wanted)).save_pretrained(tmp_path)
    _weights(change)(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        with_adapter(base, tmp_path)
    assert "\n" not in str(caught.value)


def test_an_adapter_that_names_another_base_is_refused(load_tiny: Load, tmp_path: Path) -> None:
    base, folder = load_tiny("qwen2", r=2, alpha=3), tmp_path / "adapter"
    save_peft(folder, some_adapter(base), base.layout, LORA, base.path)
    (folder / identity.FILE).write_text(json.dumps(identity.identity("mine", base.path, base.model)))
    assert torch.equal(plain_adapter(base, folder)[0], some_adapter(base))

    other = Path(shutil.copytree(base.path, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    (other / "model.safetensors").unlink()
    first = sorted(tensors)[0]
    save_file({name: tensors.pop(name) for name in list(tensors)[::2] if name != first}, other / "a.safetensors")
    save_file(tensors, other / "b.safetensors")
    assert identity.hashes(str(other)) == identity.hashes(base.path), "the same weights in other files are the same base"
    tensors[first].view(-1)[0] += 1e-3
    save_file(tensors, other / "b.safetensors")
    for read in (plain_adapter, with_adapter):
        with pytest.raises(UserError, match=r"was trained on another base: mine \(SHA-256 of its weights: \w+, of this") as caught:
            read(replace(base, path=str(other)), folder)
        assert "\n" not in str(caught.value)

    (folder / identity.FILE).write_text("{")
    with pytest.raises(UserError, match=r"base\.json is damaged"):
        plain_adapter(base, folder)


def test_a_base_imported_from_a_file_is_known_by_that_file(load_tiny: Load, tmp_path: Path) -> None:
    base = load_tiny("qwen2", r=2, alpha=3)
    save_peft(tmp_path / "adapter", some_adapter(base), base.layout, LORA, base.path)
    folder = Path(shutil.copytree(base.path, tmp_path / "imported"))
    (folder / "source.json").write_text(json.dumps({"sha256": "ab" * 32}))
    told: dict[str, Any] = {"name": "model.gguf", "sha256": {"source": "ab" * 32}}
    (tmp_path / "adapter" / identity.FILE).write_text(json.dumps(told))
    plain_adapter(replace(base, path=str(folder)), tmp_path / "adapter")
    told["sha256"] = {"source": "cd" * 32}
    (tmp_path / "adapter" / identity.FILE).write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"model\.gguf \(SHA-256 of its source: cdcd"):
        plain_adapter(replace(base, path=str(folder)), tmp_path / "adapter")


@pytest.mark.parametrize(
    "files", [{}, {"adapter_config.json": "{}"}, {"adapter_config.json": '{"peft_type": "IA3", "task_type": "CAUSAL_LM"}'}]
)
def test_what_is_no_adapter_is_refused_before_a_base_is_loaded(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    if "peft_type" in str(files):
        save_file({"base_model.model.x.lora_A.weight": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    asked = []
    for place in ("undertow.federation.evaluate.load_base", "undertow.auditing.subject.load_base"):
        monkeypatch.setattr(place, lambda *_, **__: asked.append(1))
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        undertow.evaluate("demo", adapter=tmp_path)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        undertow.audit(tmp_path, base="builtin")
    assert not asked

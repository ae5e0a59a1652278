from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny import ARCHITECTURES
from undertow.config import Lora
from undertow.core.errors import UserError
from undertow.inference.decoding import generate
from undertow.models import identity
from undertow.models.adapters import load_peft
from undertow.models.causal_lm import CausalLM
from undertow.models.lora import adapted, adapter_layout, find_targets, initial_adapter, linear_sizes, save_peft
from undertow.models.with_adapter import plain_adapter, with_adapter

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
    "whole embeddings": {"modules_to_save": ["embed_tokens"]},
    "whole modules": {"modules_to_save": ["norm", "lm_head"]},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
}

#: Those that change the base's own weights.
FOLDED = {"dora", "dora rslora patterns", "lora bias", "whole modules", "whole embeddings", "pissa", "olora"}


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


def _first(tensors: dict[str, torch.Tensor]) -> str:
    return sorted(tensors)[0]


def _pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))


def _truncate(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


BROKEN: dict[str, tuple[Breaker, str]] = {
    "no folder": (shutil.rmtree, "adapter_config.json is missing"),
    "pickled": (_pickled, "pickled adapters are refused"),
    "dora": (_config(use_dora=True), "an adapter with use_dora changes the base's own weights"),
    "lora bias": (_config(lora_bias=True), "an adapter with lora_bias changes"),
    "whole modules": (_config(modules_to_save=["norm"]), "modules_to_save"),
    "pissa": (_config(init_lora_weights="pissa"), "init_lora_weights = 'pissa'"),
    "olora": (_config(init_lora_weights="olora"), "init_lora_weights = 'olora'"),
    "random pissa": (_config(init_lora_weights="pissa_niter_4"), "init_lora_weights = 'pissa_niter_4' .*cannot be repeated"),
    "corda": (_config(init_lora_weights="corda"), "init_lora_weights = 'corda'"),
    "loftq": (_config(init_lora_weights="loftq"), "init_lora_weights = 'loftq'"),
    "biases": (_config(bias="all"), "bias = 'all' changes the base's biases"),
    "replicated layers": (_config(layer_replication=[[0, 1]]), "layer_replication = .* is not supported"),
    "parameters": (_config(target_parameters=["weight"]), "target_parameters"),
    "activated lora": (_config(alora_invocation_tokens=[1]), "alora_invocation_tokens"),
    "qalora": (_config(use_qalora=True), "use_qalora = True"),
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
    "an adapter's name": (
        _weights(lambda t: [t.update({k.replace(".weight", ".default.weight"): t.pop(k)}) for k in list(t)]),
        "it holds .*, where this base",
    ),
    "more layers": (
        _weights(lambda t: [t.update({k.replace("layers.1.", "layers.2."): t[k].clone()}) for k in list(t)]),
        "or this base does not have: .*layers.2.*, or give the base it was trained on",
    ),
    "other layers": (
        _weights(lambda t: [t.update({k.replace("layers.1.", "layers.2."): t.pop(k)}) for k in list(t)]),
        r"does not fit this base: it holds model\.layers\.2.*, where this base and the config need model\.layers\.1",
    ),
    "alpha no number": (_config(lora_alpha=float("nan")), "lora_alpha = nan"),
    "alpha pattern in words": (_config(alpha_pattern={"q_proj": "x"}), "holds a value that LoRA has no use for"),
    "rank pattern of zero": (_config(rank_pattern={"q_proj": 0}), "holds a value that LoRA has no use for|need"),
    "rank pattern a list": (_config(rank_pattern=[4]), "holds a value that LoRA has no use for"),
    "targets no names": (_config(target_modules=5), "holds a value that LoRA has no use for"),
    "targets no regex": (_config(target_modules="(q_proj"), "holds a value that LoRA has no use for"),
    "token embeddings": (_config(trainable_token_indices=[3]), "trainable_token_indices"),
    "tied weights": (_config(ensure_weight_tying=True), "ensure_weight_tying"),
    "mica": (_config(init_lora_weights="mica"), "init_lora_weights = 'mica' is not supported"),
    "other method": (_config(peft_type="IA3"), "peft_type = 'IA3' is not supported"),
    "several ranks": (_config(rank_pattern={"q_proj": 8}), r"q_proj.lora_A is \(2, 32\), .* rank 8 need \(8, 32\)"),
    "other rank": (_config(r=5), "does not fit this base"),
    "rank of zero": (_config(r=0), "adapter_config.json|r = 0|lora_alpha"),
    "rank in words": (_config(r="four"), "adapter_config.json|r = "),
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
    "a tensor more": (
        {"use_dora": True},
        lambda t: t.update({"base_model.model.strange": torch.zeros(1)}),
        "does not announce,.*strange",
    ),
    "no A": ({"init_lora_weights": "pissa"}, lambda t: t.pop(sorted(t)[0]), "is missing"),
    "other vocabulary": (
        {"modules_to_save": ["lm_head"]},
        lambda t: t.update({k: v[:-3].clone() for k, v in t.items() if "lm_head" in k}),
        "does not fit this base: size mismatch",
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

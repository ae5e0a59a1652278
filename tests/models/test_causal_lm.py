from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import ARCHITECTURES
from undertow.config import Model
from undertow.core.errors import UserError
from undertow.data.generated import world
from undertow.models import arithmetic, memory
from undertow.models.arithmetic import speedup as measured_speedup
from undertow.models.causal_lm import CausalLM, choose_device, load_base
from undertow.models.memory import free_bytes, predicted_bytes
from undertow.tasks import instruction

Load = Callable[..., CausalLM]


def options(name: object, **values: Any) -> Model:
    return Model.model_validate({"name": str(name), "device": "cpu", **values})


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def refused(name: object, **values: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_base(options(name, **values))
    told = str(caught.value)
    assert "\n" not in told
    return told


def test_a_base_is_frozen_and_at_rest(load_tiny: Load) -> None:
    for kind in ARCHITECTURES:
        base = load_tiny(kind)
        assert not any(p.requires_grad for p in base.model.parameters())
        assert not any(module.training for module in base.model.modules())
        assert base.model.dtype == torch.float32


@pytest.mark.parametrize(("speedup", "taken"), [(3.0, torch.bfloat16), (1.1, torch.float32)])
def test_auto_takes_bfloat16_for_a_bfloat16_checkpoint_where_it_is_faster(
    load_tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speedup: float, taken: torch.dtype
) -> None:
    monkeypatch.setattr(arithmetic, "speedup", lambda _: speedup)
    base = load_tiny("llama", dtype="bfloat16")
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    found = load_base(options(tmp_path))
    assert found.model.dtype == taken
    assert found.facts()["dtype"] == str(taken).removeprefix("torch.")
    assert "multipl" in found.facts()["dtype_because"]
    assert load_base(options(tmp_path, dtype="float32")).facts().keys() == base.facts().keys(), "nothing was measured"


def test_a_type_that_is_slow_here_is_not_timed_at_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without bfloat16 takes seconds for what the others do in milliseconds."""
    asked: list[int] = []

    def slow(dtype: torch.dtype, side: int) -> float:
        asked.append(side)
        return 0.02

    monkeypatch.setattr(arithmetic, "_measured", slow)
    measured_speedup.cache_clear()
    assert measured_speedup(torch.bfloat16) == 0.02
    assert asked == [192]
    measured_speedup.cache_clear()


@pytest.mark.parametrize(("speedup", "told"), [(0.02, True), (0.9, False)])
def test_whoever_asks_for_a_type_that_is_slow_here_is_told(
    load_tiny: Load, monkeypatch: pytest.MonkeyPatch, speedup: float, told: bool
) -> None:
    monkeypatch.setattr(arithmetic, "speedup", lambda _: speedup)
    for dtype in ("bfloat16", "float16"):
        assert (f"slower in {dtype} than in float32" in load_tiny("llama", dtype=dtype).dtype_because) is told
    assert load_tiny("llama", dtype="float64").dtype_because == ""


def test_auto_measures_nothing_for_a_float32_checkpoint(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the built-in base gives the same bits on every processor that gave them before."""
    monkeypatch.delattr(arithmetic, "speedup")
    for base in (load_base(options(tiny_base)), load_base(options("builtin"))):
        assert base.model.dtype == torch.float32
        assert base.dtype_because == ""


def test_the_product_is_measured_once_and_leaves_the_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    measured_speedup.cache_clear()
    before, first = torch.get_num_threads(), measured_speedup(torch.bfloat16)
    assert 0.001 < first < 100
    monkeypatch.delattr(torch, "mm")
    assert measured_speedup(torch.bfloat16) == first
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_predicted_bytes_are_the_real_ones(load_tiny: Load, kind: str, dtype: str) -> None:
    if (kind, dtype) == ("gemma2", "float64"):  # transformers' mask overflows in its float32 softmax: padding is NaN
        with pytest.raises(UserError, match=r"gives a padded batch other logits .*; use model.dtype=float32"):
            load_tiny(kind, dtype=dtype)
        return
    base = load_tiny(kind, dtype=dtype)
    real = sum(p.numel() * p.element_size() for p in base.model.parameters())  # tied weights count once
    assert predicted_bytes(base.model.config, getattr(torch, dtype)) == real
    assert base.parameters * getattr(torch, dtype).itemsize == real


def test_a_base_too_large_is_refused_before_any_weight_is_read(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    needed = 4 * load_base(options(tiny_base)).parameters
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("weights were read"))
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed)
    told = refused(tiny_base)
    assert f"needs {needed:,} bytes" in told
    assert f"{needed:,} are free on cpu" in told
    assert "set model.dtype=bfloat16" in told


def test_half_precision_halves_what_is_needed(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 4 * load_base(options(tiny_base)).parameters
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed)
    assert load_base(options(tiny_base, dtype="bfloat16")).model.dtype == torch.bfloat16


def test_free_bytes_of_this_machine() -> None:
    assert 10**6 < free_bytes(torch.device("cpu")) < 10**15


def test_a_70b_model_is_predicted_without_making_it() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    # V·d·2 + L·(2d² + 2·d·(d/8) + 3·d·m + 2d) + d: the published count of Llama 2 70B
    assert predicted_bytes(config, torch.bfloat16) == 2 * 68_976_648_192


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda")
    for name, message in (("gpu", "is no device"), ("mps", "not supported|is no device"), ("cuda:99", "torch sees")):
        with pytest.raises(UserError, match=message):
            choose_device(name)


def test_folders_that_are_no_model(tmp_path: Path, copy: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(tmp_path / "empty")
    assert "no such folder" in refused(tmp_path / "absent")
    assert "no such folder" in refused("./absent")
    (copy / "model.safetensors").unlink()
    assert "cannot be loaded" in refused(copy)


def test_an_unfinished_build_says_so(tmp_path: Path) -> None:
    (tmp_path / "half" / "building").mkdir(parents=True)
    assert "its build is not finished: run the same `undertow base build` again" in refused(tmp_path / "half")


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


@pytest.mark.parametrize(
    "breaker",
    [
        _write("config.json", b'{"model_type": "llama", "num_hidden_layers": 1000000000000}'),
        _write("config.json", b'{"model_type": "gpt2", "n_layer": 1000000000000}'),
        _write("config.json", b'{"model_type": "gemma3", "text_config": {"num_hidden_layers": 1000000000000}}'),
        _write("config.json", b'{"model_type": "mixtral", "num_hidden_layers": 2, "num_local_experts": 1000000000000}'),
        _write("config.json", b"{"),
        _write("config.json", b"[]"),
        _write("config.json", b"{}"),
        _write("config.json", b'{"model_type": "never_heard_of"}'),
        _write("config.json", b"\xff\xff"),
        _write("tokenizer.json", b"{}"),
        _write("tokenizer.json", b"not json"),
        _write("model.safetensors", b""),
        _write("model.safetensors", b"garbage" * 100),
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-99]) and None,
        _write("keys.json", b"{"),
        _write("keys.json", b'{"asked": 3}'),
    ],
)
def test_broken_folders_are_one_line(copy: Path, breaker: Callable[[Path], None]) -> None:
    breaker(copy)
    told = refused(copy)
    assert str(copy) in told
    assert len(told) < 700


def test_shapes_that_contradict_the_config_are_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    assert "cannot be loaded" in refused(copy)


def test_pickled_weights_are_refused(copy: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    told = refused(copy)
    assert "cannot be loaded" in told
    assert "safetensors" in told


def test_a_hub_id_without_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    told = refused("nobody-at-all/no-such-model")
    assert "nobody-at-all/no-such-model" in told
    assert "not in the local cache" in told


def test_a_tokenizer_without_an_end_is_refused(copy: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = copy / name
        if path.exists():
            values = json.loads(path.read_text())
            values.pop("eos_token", None)
            path.write_text(json.dumps(values))
    assert "no end-of-sequence token" in refused(copy)


def test_keys_come_with_the_base(tiny_base: Path, foreign: dict[str, Path]) -> None:
    base = load_base(options(tiny_base))
    assert (base.asked, base.known) == tuple(map(frozenset, world.keys()))
    assert base.known is not None
    assert len(base.known) > len(base.asked) > 0
    assert base.asked < base.known
    other = load_base(options(foreign["gpt2"]))
    assert other.asked == frozenset()
    assert other.known is None


def test_a_base_of_another_built_in_world_is_refused(copy: Path) -> None:
    (copy / "keys.json").write_text(json.dumps({"world": "0" * 64}))
    assert "has read another built-in world" in refused(copy)


def test_what_a_report_says_about_a_base(load_tiny: Load) -> None:
    facts = load_tiny("gpt2", r=2).facts()
    assert facts["architecture"] == "GPT2LMHeadModel"
    assert facts["layers"] == 2
    assert facts["hidden"] == 32
    assert facts["dtype"] == "float32"
    assert json.dumps(facts)


def test_quantised_bases_need_their_library(tiny_base: Path) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(UserError, match=r"needs bitsandbytes.*pip install -e '\.\[quantized\]'"):
            load_base(Model(name=str(tiny_base), quantize="8bit"))
        return
    base = load_base(Model(name=str(tiny_base), quantize="8bit", device="cpu"))
    assert base.packed is None
    assert "general" in base.facts()["training_path"]


def test_a_base_spread_over_devices_takes_the_general_path(tiny_base: Path) -> None:
    with pytest.raises(UserError, match="balanced"):
        load_base(Model(name=str(tiny_base), device="tpu"))
    if torch.cuda.device_count() < 2:
        with pytest.raises(UserError, match=r"GPUs; set model\.device=cpu"):
            load_base(Model(name=str(tiny_base), device="cuda:7" if torch.cuda.is_available() else "balanced"))


@pytest.mark.parametrize(
    ("asked", "speedup", "told"),
    [
        ("auto", 3.0, [("phase", "model.dtype=auto takes bfloat16: this CPU multiplies faster in it than in float32")]),
        ("bfloat16", 3.0, []),
        (
            "bfloat16",
            0.02,
            [("warn", "this CPU multiplies many times slower in bfloat16 than in float32; model.dtype=auto takes the faster one")],
        ),
    ],
)
def test_a_run_says_which_arithmetic_it_took(
    load_tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, speedup: float, told: list[tuple[str, str]]
) -> None:
    base = load_tiny("llama", dtype="bfloat16")
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(arithmetic, "speedup", lambda _: speedup)
    heard: list[tuple[str, str]] = []

    class Listener:
        def phase(self, text: str) -> None:
            heard.append(("phase", text))

        def warn(self, text: str) -> None:
            heard.append(("warn", text))

    instruction._base(options(tmp_path, dtype=asked), load_base, Listener())  # type: ignore[arg-type]
    assert heard[1:] == told

"""What many tests share: a tiny base that a second of training makes, foreign architectures, and a fast config."""

from __future__ import annotations

import os
import signal

# Before torch and tokenizers start their threads: two test processes must not spin for each other's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
)

from tiny import SHARED, Quiet
from undertow.config import Config, Lora, Model, validate
from undertow.config.reading import changed
from undertow.core.threads import set_threads
from undertow.listing import REGISTRIES
from undertow.models.causal_lm import CausalLM, load_base
from undertow.models.general import plain_head, tree_model
from undertow.pretraining.build import Recipe, build
from undertow.pretraining.corpus import world_corpus


@pytest.fixture(autouse=True)
def registries_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers, or a command that it runs in this process, is forgotten after it: the next may list everything."""
    for registry in REGISTRIES.values():
        registry.entries()
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_works() -> None:
    """Where pytest was started in the background of a script it ignores Ctrl-C, and so would every command under test."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread, even where the code asks for all cores: those belong to other processes too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: {0})
        set_threads(1)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the shared real data is not beside this checkout")
    return SHARED.resolve()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 0.05 M weights that has read the built-in world for two seconds: enough to answer with text."""
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    build(
        world_corpus(),
        folder,
        Recipe(hidden=32, layers=2, heads=2, intermediate=64, vocab=600, steps=250, batch=8, length=64, lr=5e-3),
    )
    return folder


def _foreign_configs(vocab: int) -> dict[str, PretrainedConfig]:
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    size = {"vocab_size": vocab, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    places = {"max_position_embeddings": 512}
    no_drop = {"attention_dropout": 0.0}
    return {
        # fused projections in a Conv1D, absolute positions, dropout in its config
        "gpt2": GPT2Config(vocab_size=vocab, n_embd=32, n_layer=2, n_head=4, n_positions=512, **ends),
        # grouped-query attention, biases
        "qwen2": Qwen2Config(**size, **places, **no_drop, num_key_value_heads=2, tie_word_embeddings=False, **ends),
        # logit soft-capping, sliding window, head size of its own
        "gemma2": Gemma2Config(**size, **places, num_key_value_heads=1, head_dim=16, sliding_window=64, **ends),
        # positions with an offset, computed from the mask
        "opt": OPTConfig(
            vocab_size=vocab,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=48,
            word_embed_proj_dim=32,
            **places,
            **ends,
        ),
        # one fused projection, parallel residual, rotary on a quarter of each head
        "gpt_neox": GPTNeoXConfig(**size, **places, **ends),
    }


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> dict[str, Path]:
    """Random models of other architectures with the tiny base's tokenizer, by model type; ``llama`` is the tiny base."""
    from transformers import AutoModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    root = tmp_path_factory.mktemp("foreign")
    found = {"llama": tiny_base}
    for name, config in _foreign_configs(len(tokenizer)).items():
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model = AutoModelForCausalLM.from_config(config)
            with torch.no_grad():  # zero biases would hide a lost one; small weights would hide everything
                for parameter in model.parameters():
                    parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        found[name] = root / name
    return found


@pytest.fixture(scope="session")
def load_tiny(foreign: dict[str, Path]) -> Callable[..., CausalLM]:
    """``load_tiny("gpt2", dtype="float64", targets="default", r=4)`` loads one of them through the package.

    ``gpt2-general`` is a base as if the packed path did not know its family.
    """

    def load(kind: str = "llama", *, dtype: str = "auto", **lora: Any) -> CausalLM:
        options = Lora.model_validate({"targets": "all-linear", **lora})
        name = kind.removesuffix("-general")
        base = load_base(Model.model_validate({"name": str(foreign[name]), "device": "cpu", "dtype": dtype, "lora": options}))
        if name == kind:
            return base
        head = plain_head(base.model, base.layout)
        trees = tree_model(base.model, base.layout, head, base.pad_id)
        return replace(base, packed=None, general_because="the test says so", head=head, trees=trees)

    return load


#: Small enough for a run in about a second; ``learns`` makes the update large enough to see.
SMALL: dict[str, Any] = {
    "format": 1,
    "task": {
        "kind": "instruction",
        "data": {"name": "world", "train": 40, "test": 6, "template": "lab-qa"},
        "model": {"device": "cpu", "lora": {"r": 2, "alpha": 4, "targets": "default"}},
    },
    "federation": {"clients": 3, "rounds": 2},
    "training": {"batch_size": 8, "lr": 2e-3, "schedule": "constant", "threads": 1, "client_chunk": 2},
    "attack": {"poison_ratio": 0.25},
    "measure": {"samples": 3, "max_new_tokens": 24, "batch_size": 8, "bsnr": {"permutations": 5}},
}


@pytest.fixture(scope="session")
def small_values(tiny_base: Path) -> Callable[..., dict[str, Any]]:
    """``small_values({"federation.rounds": 3})`` gives the plain values of a fast run with these fields changed."""

    def make(changes: dict[str, Any] | None = None) -> dict[str, Any]:
        values: dict[str, Any] = yaml.safe_load(yaml.safe_dump(SMALL))
        values["task"]["model"]["name"] = str(tiny_base)
        return changed(values, changes or {})

    return make


@pytest.fixture(scope="session")
def small_config(small_values: Callable[..., dict[str, Any]]) -> Callable[..., Config]:
    """``small_config({"attack.kind": "none"})``: the config of a fast run."""
    return lambda changes=None: validate(small_values(changes), "small")


@pytest.fixture
def small_file(small_values: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """``small_file({...})`` writes a fast run's config for the command line."""

    def write(changes: dict[str, Any] | None = None, name: str = "small.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(small_values(changes)), encoding="utf-8")
        return path

    return write


@pytest.fixture
def observer() -> Quiet:
    return Quiet()

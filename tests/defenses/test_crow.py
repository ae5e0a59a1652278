from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published import LORA, WORLD, encoded, make, rows_of, same_bits_when_resumed, server, setting, some_adapter, write_trusted
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from undertow.config import Config, Model
from undertow.core.errors import UserError
from undertow.defenses.server.crow import Crow, consistency
from undertow.models.causal_lm import CausalLM, load_base
from undertow.models.lora import adapted

Make = Callable[..., Config]
Load = Callable[..., CausalLM]


@pytest.fixture(scope="module")
def deep(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of four layers; CROW compares layers, and the tiny base has two."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    folder = tmp_path_factory.mktemp("bases") / "deep"
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(deep: Path) -> CausalLM:
    return load_base(Model.model_validate({"name": str(deep), "device": "cpu", "lora": LORA}))


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_trusted(tmp_path_factory.mktemp("trusted") / "trusted.jsonl", WORLD[100:112])


def guarded(base: CausalLM, flat: torch.Tensor, trusted: str, round: int = 3, **params: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    defense = Crow(trusted, **params)
    defense.begin(setting(base))
    return defense.guard(flat, server(base, flat, round))


def test_consistency_is_one_minus_cosine_between_inner_layers() -> None:
    hidden = torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # L = 4
    real = torch.tensor([[0, 1, 1], [1, 1, 1]])
    values = []
    for layer in (1, 2):  # of 1 .. L - 2
        for n, t in real.nonzero().tolist():
            a, b = hidden[layer, n, t], hidden[layer + 1, n, t]
            values.append(1 - float(a @ b) / float(a.norm() * b.norm()))
    assert float(consistency(list(hidden), real)) == pytest.approx(sum(values) / len(values))


def test_one_step_is_adamw_on_the_formula(base: CausalLM, trusted: str) -> None:
    """Each sample alone, through the transformers model, autograd for both gradients; the rate of the first step is 0."""
    flat = some_adapter(base)
    rows = encoded(base, WORLD[100:102])
    alpha, epsilon = 2.0, 0.05

    def hidden(row: Any, stack: torch.Tensor, embeddings: torch.Tensor) -> Any:
        with adapted(base.model, base.layout, stack):
            return base.model(inputs_embeds=embeddings, output_hidden_states=True)

    def jumps(states: Any) -> torch.Tensor:
        return sum((1 - torch.cosine_similarity(a, b, dim=-1)).sum() for a, b in ((states[1], states[2]), (states[2], states[3])))  # type: ignore[return-value]

    stack = flat[None].clone().requires_grad_()
    total, tokens, lm, answered = torch.zeros(()), 0, torch.zeros(()), 0
    for row in rows:
        clean = base.model.get_input_embeddings()(torch.tensor([[*row.prompt, *row.answer]])).detach().requires_grad_()
        out = hidden(row, stack, clean)
        (slope,) = torch.autograd.grad(jumps(out.hidden_states), clean, retain_graph=True)
        total = total + jumps(hidden(row, stack, clean.detach() + epsilon * slope.sign()).hidden_states)
        tokens += 2 * clean.shape[1]
        logs = out.logits[0, len(row.prompt) - 1 : -1].log_softmax(-1)
        lm = lm - logs[range(len(row.answer)), list(row.answer)].sum()
        answered += len(row.answer)
    wanted_lm, wanted_penalty = lm / answered, total / tokens
    (gradient,) = torch.autograd.grad(wanted_lm + alpha * wanted_penalty, stack)
    gradient = gradient / max(1.0, float(gradient.norm()) + 1e-6)

    params = {"samples": 2, "alpha": alpha, "epsilon": epsilon, "lr": 0.01, "batch_size": 2, "accumulate": 1}
    still, report = guarded(base, flat, trusted, passes=1, **params)
    assert torch.equal(still, flat), "one step, and the warm-up starts at 0"
    assert report["first"]["lm"] == pytest.approx(wanted_lm.item(), rel=1e-4)
    assert report["first"]["consistency"] == pytest.approx(wanted_penalty.item(), rel=1e-4)
    # the second of two steps has the highest rate; AdamW's bias correction makes of two equal gradients their sign
    moved, _ = guarded(base, flat, trusted, passes=2, **params)
    change = (moved - flat) / 0.01
    clear = gradient[0].abs() > 1e-5
    assert int(clear.sum()) > 500
    torch.testing.assert_close(change[clear], -gradient[0, clear].sign(), rtol=0, atol=1e-2)


def test_the_penalty_falls_and_the_bits_repeat(base: CausalLM, trusted: str) -> None:
    flat = some_adapter(base)
    tuned, report = guarded(base, flat, trusted, lr=1e-2)
    assert report["tuned"]
    assert report["last"]["consistency"] < 0.8 * report["first"]["consistency"]
    assert torch.equal(guarded(base, flat, trusted, lr=1e-2)[0], tuned)
    assert tuned.dtype == flat.dtype
    assert not tuned.requires_grad


def test_a_relative_epsilon_is_in_units_of_the_embeddings(base: CausalLM, trusted: str) -> None:
    flat = some_adapter(base)
    size = float(base.model.get_input_embeddings().weight.square().mean().sqrt())
    one, _ = guarded(base, flat, trusted, epsilon=2.0, relative=True, passes=1)
    other, _ = guarded(base, flat, trusted, epsilon=2.0 * size, passes=1)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_only_the_last_round_unless_every_one_is_asked_for(base: CausalLM, trusted: str) -> None:
    flat = some_adapter(base)
    early, report = guarded(base, flat, trusted, round=2)
    assert early is flat
    assert report == {"tuned": False}
    assert guarded(base, flat, trusted, round=2, when="every", passes=1)[1]["tuned"]


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"trusted": None}, "crow needs trusted, an instruction file"),
        ({"trusted": "x", "alpha": -1}, "alpha = -1 must be"),
        ({"trusted": "x", "passes": 0}, "passes = 0 must be"),
        ({"trusted": "x", "when": "never"}, "one of last, every"),
    ],
)
def test_parameters_out_of_their_range_are_named(params: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        make("crow", **params)


def test_instruction_tuning_needs_a_trusted_file(base: CausalLM) -> None:
    with pytest.raises(UserError, match=r"crow needs trusted, an instruction file .* set trusted=FILE"):
        Crow().begin(setting(base))


def test_a_base_of_two_layers_is_refused(load_tiny: Load, trusted: str) -> None:
    with pytest.raises(UserError, match=r"the base has 2 layers .* use a base of at least 3"):
        Crow(trusted).begin(setting(load_tiny()))


def test_a_run_is_resumed_to_the_same_bits(small_config: Make, deep: Path, trusted: str, tmp_path: Path) -> None:
    params = {"trusted": trusted, "samples": 8, "passes": 2}
    changes = {"model.name": str(deep), "federation.rounds": 3, "measure.every": 3}
    config = small_config({"defenses": [{"name": "crow", "params": params}], **changes})
    whole = same_bits_when_resumed(config, tmp_path, 3)
    assert [row["defenses"][0]["tuned"] for row in rows_of(whole)[1:]] == [False, False, True]

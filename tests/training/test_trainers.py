from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tiny import PATHS
from undertow.config import Lora, Training
from undertow.data.examples import IGNORE
from undertow.data.template import Encoded
from undertow.models.causal_lm import CausalLM
from undertow.models.padding import pad
from undertow.training import batched, sequential
from undertow.training.local import Job, batches, dropout_mask, learning_rate, steps

Load = Callable[..., CausalLM]
LORA = Lora(r=2, alpha=4, targets="all-linear")
ADAPTER_SEED = 5
#: Gemma 2's eager attention casts its mask to float32, where the smallest float64 is -inf: padding rows become NaN.
FLOAT64_ARCHITECTURES = tuple(kind for kind in PATHS if not kind.startswith("gemma2"))


def options(**changes: Any) -> Training:
    return Training.model_validate({"batch_size": 4, "lr": 3e-3, "schedule": "constant", "client_chunk": 0, **changes})


def encoded(draw: np.random.Generator, vocab: int) -> Encoded:
    prompt, answer = (draw.integers(3, vocab, size=draw.integers(low, high)).tolist() for low, high in ((4, 30), (1, 9)))
    return Encoded((1, *prompt), (*answer, 2))


def make_jobs(base: CausalLM, sizes: tuple[int, ...], seed: int = 0) -> list[Job]:
    draw = np.random.default_rng(seed)
    vocab = base.model.config.vocab_size
    return [Job(k, [encoded(draw, vocab) for _ in range(size)]) for k, size in enumerate(sizes)]


def adapter_for(base: CausalLM, dtype: torch.dtype = torch.float32, rows: int | None = None) -> Tensor:
    """A and B away from zero, so that every gradient is."""
    generator = torch.Generator().manual_seed(ADAPTER_SEED)
    shape = (base.layout.size,) if rows is None else (rows, base.layout.size)
    return (0.05 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def distance(found: Tensor, wanted: Tensor) -> float:
    """Frobenius distance relative to what is wanted."""
    found, wanted = found.double(), wanted.double()
    return float(torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted))


def peft_gradient(base: CausalLM, flat: Tensor, rows: list[Encoded]) -> tuple[Tensor, float]:
    """The oracle: a peft model, padding on the right, transformers' own loss, autograd."""
    from peft import LoraConfig, get_peft_model

    names = [name for name, _, _ in base.layout.pairs(flat)]
    config = LoraConfig(r=LORA.r, lora_alpha=LORA.alpha, lora_dropout=0.0, target_modules=names, task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(base.model), config).eval()
    wanted = base.layout.unflatten(flat)
    found = {}
    for name in names:
        layer = model.base_model.model.get_submodule(name)
        for side in "AB":
            linear = getattr(layer, f"lora_{side}")["default"].to(flat.dtype)
            linear.weight.data.copy_(wanted[f"{name}.lora_{side}"])
            found[f"{name}.lora_{side}"] = linear.weight
    length = max(len(r.prompt) + len(r.answer) for r in rows)
    ids = torch.tensor([[*r.prompt, *r.answer] + [0] * (length - len(r.prompt) - len(r.answer)) for r in rows])
    mask = torch.tensor([[1] * (len(r.prompt) + len(r.answer)) + [0] * (length - len(r.prompt) - len(r.answer)) for r in rows])
    labels = ids.masked_fill(mask == 0, -100)
    for i, row in enumerate(rows):
        labels[i, : len(row.prompt)] = -100
    logits = model(input_ids=ids, attention_mask=mask).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    gradients = torch.autograd.grad(loss, list(found.values()))
    named = dict(zip(found, gradients, strict=True))
    return torch.cat([named[slot.name].flatten() for slot in base.layout.slots]), loss.item()


@pytest.mark.parametrize(
    ("kind", "dtype", "bar"),
    [*((kind, "float32", 1e-5) for kind in PATHS), *((kind, "float64", 1e-9) for kind in FLOAT64_ARCHITECTURES)],
)
def test_one_steps_gradients_are_those_of_peft_and_autograd(load_tiny: Load, kind: str, dtype: str, bar: float) -> None:
    base = load_tiny(kind, dtype=dtype, r=LORA.r, alpha=LORA.alpha)
    stack = adapter_for(base, getattr(torch, dtype), rows=3).requires_grad_()
    # Batches of unequal size and length: the padding must be neither seen nor counted.
    block = [list(job.data) for job in make_jobs(base, (4, 1, 3))]
    values = batched.losses(base, stack, block)
    (gradient,) = torch.autograd.grad(values.sum(), stack)
    for k, rows in enumerate(block):
        wanted, loss = peft_gradient(base, stack[k].detach(), rows)
        assert distance(gradient[k], wanted) < bar
        assert values[k].item() == pytest.approx(loss, rel=bar)


def both(base: CausalLM, lora: Lora, training: Training, jobs: list[Job], dtype: torch.dtype) -> tuple[Any, Any]:
    start = adapter_for(base, dtype)
    return (
        sequential.train(base, lora, training, start, jobs, seed=3, round=2),
        batched.train(base, lora, training, start, jobs, seed=3, round=2),
    )


@pytest.mark.parametrize("kind", FLOAT64_ARCHITECTURES)
def test_a_round_of_both_trainers_is_the_same_in_float64(load_tiny: Load, kind: str) -> None:
    base = load_tiny(kind, dtype="float64", r=2, alpha=4)
    plain, fast = both(base, LORA, options(), make_jobs(base, (9, 4, 13)), torch.float64)
    assert plain.updates.dtype == fast.updates.dtype == torch.float64
    assert distance(fast.updates, plain.updates) < 1e-9
    assert fast.losses == pytest.approx(plain.losses, rel=1e-9)


@pytest.mark.parametrize("kind", PATHS)
def test_a_rounds_updates_agree_within_1e_4_in_float32(load_tiny: Load, kind: str) -> None:
    base = load_tiny(kind, r=2, alpha=4)
    plain, fast = both(base, LORA, options(lr=1e-3, client_chunk=3), make_jobs(base, (40, 24, 33, 8)), torch.float32)
    assert distance(fast.updates, plain.updates) < 1e-4
    assert torch.linalg.vector_norm(plain.updates, dim=1).min() > 1e-3, "the clients really moved"


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "linear"},
        {"optimizer": "sgd", "lr": 0.5},
        {"optimizer": "sgd", "lr": 0.5, "weight_decay": 0.1, "clip": 0.0},
        {"clip": 0.0},
        {"clip": 0.05},
        {"weight_decay": 0.1},
        {"local_epochs": 2},
        {"batch_size": 1},
        {"batch_size": 100},
        {"client_chunk": 1},
        {"client_chunk": 2, "schedule": "linear", "local_epochs": 2, "weight_decay": 0.01},
        {"client_chunk": 3},
        {"client_chunk": 50},
    ],
    ids=str,
)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_every_option_means_the_same_to_both_trainers(load_tiny: Load, changes: dict[str, Any], dropout: float) -> None:
    lora = Lora(r=2, alpha=4, dropout=dropout, targets="all-linear")
    base = load_tiny(dtype="float64", r=2, alpha=4, dropout=dropout)
    # 9, 2 and 5 samples make 3, 1 and 2 steps of 4: the schedule and the end of each client differ.
    plain, fast = both(base, lora, options(**changes), make_jobs(base, (2, 9, 1, 5)), torch.float64)
    assert distance(fast.updates, plain.updates) < 1e-9
    assert fast.losses == pytest.approx(plain.losses, rel=1e-9)


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_dropout_is_the_same_for_fused_and_flattened_layers(load_tiny: Load, kind: str) -> None:
    lora = Lora(r=2, alpha=4, dropout=0.5, targets="all-linear")
    base = load_tiny(kind, dtype="float64", r=2, alpha=4, dropout=0.5)
    plain, fast = both(base, lora, options(), make_jobs(base, (6, 3)), torch.float64)
    assert distance(fast.updates, plain.updates) < 1e-9


def test_dropout_changes_the_training(load_tiny: Load) -> None:
    base = load_tiny(r=2, alpha=4)
    jobs, start = make_jobs(base, (4,)), adapter_for(base)
    with_it, without = (
        batched.train(base, Lora(r=2, alpha=4, dropout=p, targets="all-linear"), options(), start, jobs, 0, 1).updates
        for p in (0.5, 0.0)
    )
    assert distance(with_it, without) > 1e-2


@pytest.mark.parametrize("trainer", [batched, sequential])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_client_does_not_depend_on_the_others(load_tiny: Load, trainer: Any, dropout: float) -> None:
    lora = Lora(r=2, alpha=4, dropout=dropout, targets="all-linear")
    base = load_tiny(dtype="float64", r=2, alpha=4)
    jobs, start = make_jobs(base, (5, 9, 2, 7)), adapter_for(base, torch.float64)
    whole = trainer.train(base, lora, options(), start, jobs, 0, 1).updates
    turned = trainer.train(base, lora, options(), start, jobs[::-1], 0, 1).updates
    alone = trainer.train(base, lora, options(), start, [jobs[1]], 0, 1).updates
    assert distance(turned.flip(0), whole) < 1e-10
    assert distance(alone[0], whole[1]) < 1e-10


@pytest.mark.parametrize("trainer", [batched, sequential])
def test_the_same_call_gives_the_same_bits_and_leaves_no_trace(load_tiny: Load, trainer: Any) -> None:
    base = load_tiny(r=2, alpha=4)
    before = {name: p.clone() for name, p in base.model.state_dict().items()}
    modules = [name for name, _ in base.model.named_modules()]
    jobs, start = make_jobs(base, (5, 3)), adapter_for(base)
    kept = start.clone()
    first, second = (trainer.train(base, LORA, options(), start, jobs, 0, 1) for _ in range(2))
    assert torch.equal(first.updates, second.updates)
    assert first.losses == second.losses
    assert torch.equal(start, kept)
    assert [name for name, _ in base.model.named_modules()] == modules
    assert all(torch.equal(p, before[name]) for name, p in base.model.state_dict().items())
    assert not any(module._forward_hooks for module in base.model.modules())
    assert not any(p.requires_grad for p in base.model.parameters())


@pytest.mark.parametrize("trainer", [batched, sequential])
def test_seed_and_round_change_the_order_of_the_data(load_tiny: Load, trainer: Any) -> None:
    base = load_tiny(r=2, alpha=4)
    jobs, start = make_jobs(base, (9,)), adapter_for(base)
    found = [trainer.train(base, LORA, options(), start, jobs, *place).updates for place in ((0, 1), (1, 1), (0, 2))]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("trainer", [batched, sequential])
def test_tuning_lowers_the_loss(load_tiny: Load, trainer: Any) -> None:
    base = load_tiny(r=4, alpha=8)
    lora = Lora(r=4, alpha=8, targets="all-linear")
    jobs, adapter = make_jobs(base, (8, 8)), adapter_for(base)
    told = []
    for round in range(1, 5):
        trained = trainer.train(base, lora, options(lr=1e-2, local_epochs=3), adapter, jobs, 0, round)
        adapter = adapter + trained.updates.mean(0)
        told.append(sum(trained.losses))
    assert told == sorted(told, reverse=True)
    assert told[-1] < 0.97 * told[0]


# --- RowOptimizer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("clip", [0.0, 0.7])
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_each_row_is_torchs_own_optimizer(optimizer: str, decay: float, clip: float, dtype: torch.dtype, bar: float) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(3, 11, generator=generator, dtype=dtype)
    totals = [7, 4, 1]  # rows that end earlier are the last ones
    # norms from far below the clip to far above it
    gradients = [torch.randn(3, 11, generator=generator, dtype=dtype) * 10.0 ** (t - 3) for t in range(7)]
    training = options(optimizer=optimizer, weight_decay=decay, clip=clip, lr=0.01, schedule="linear")
    rows = start.clone()
    ours = batched.RowOptimizer(training, rows)
    for step in range(7):
        active = sum(total > step for total in totals)
        ours.step(gradients[step][:active].clone(), [learning_rate(training, step, total) for total in totals[:active]])
    for k, total in enumerate(totals):
        row = torch.nn.Parameter(start[k].clone())
        kind = torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD
        theirs = kind([row], lr=0.01, weight_decay=decay)
        for step in range(total):
            theirs.param_groups[0]["lr"] = learning_rate(training, step, total)
            row.grad = gradients[step][k].clone()
            if clip:
                torch.nn.utils.clip_grad_norm_([row], clip)
            theirs.step()
        torch.testing.assert_close(rows[k], row.detach(), rtol=bar, atol=bar)


def test_a_row_of_nan_stays_in_its_row() -> None:
    rows = torch.zeros(3, 4)
    optimizer = batched.RowOptimizer(options(), rows)
    gradient = torch.ones(3, 4)
    gradient[1, 2] = math.nan
    optimizer.step(gradient, [0.1, 0.1, 0.1])
    assert torch.isnan(rows[1]).any()
    assert torch.isfinite(rows[[0, 2]]).all()
    assert torch.equal(rows[0], rows[2])


# --- what both share --------------------------------------------------------------------------------------------


@given(size=st.integers(1, 23), batch=st.integers(1, 9), epochs=st.integers(1, 3), client=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_each_epoch_is_a_permutation(size: int, batch: int, epochs: int, client: int) -> None:
    training = options(batch_size=batch, local_epochs=epochs)
    job = Job(client, [Encoded((i,), (2,)) for i in range(size)])
    made = list(batches(job, training, 0, 1))
    assert len(made) == steps(job, training) == epochs * -(-size // batch)
    order = [row.prompt[0] for rows in made for row in rows]
    for epoch in range(epochs):
        assert sorted(order[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert all(1 <= len(rows) <= batch for rows in made)
    assert order == [row.prompt[0] for rows in batches(job, training, 0, 1) for row in rows]


def test_epochs_rounds_clients_and_seeds_have_orders_of_their_own() -> None:
    training = options(batch_size=50, local_epochs=2)

    def orders(client: int, seed: int, round: int) -> list[tuple[int, ...]]:
        job = Job(client, [Encoded((i,), (2,)) for i in range(50)])
        return [tuple(row.prompt[0] for row in rows) for rows in batches(job, training, seed, round)]

    made = [order for place in ((0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2)) for order in orders(*place)]
    assert len(set(made)) == 8


def test_schedules() -> None:
    linear, constant = options(schedule="linear", lr=0.4), options(lr=0.4)
    assert [learning_rate(linear, s, 4) for s in range(4)] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert [learning_rate(constant, s, 4) for s in range(4)] == [0.4] * 4


def test_padding_is_on_the_left_and_carries_no_loss() -> None:
    ids, mask, labels, tail = pad([Encoded((1, 5), (6, 2)), Encoded((1,), (2,))], 9, count=3, length=5)
    assert ids.tolist() == [[9, 1, 5, 6, 2], [9, 9, 9, 1, 2], [9, 9, 9, 9, 9]]
    assert mask.tolist() == [[0, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]
    assert labels.tolist() == [[IGNORE] * 3 + [6, 2], [IGNORE] * 4 + [2], [IGNORE] * 5]
    assert tail == 3


@given(p=st.floats(0.05, 0.9), seed=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_dropout_masks_keep_the_mean(p: float, seed: int) -> None:
    mask = dropout_mask(p, seed, 1, 0, 0, "q", (40, 50, 4))
    values = sorted(mask.unique().tolist())
    assert values == pytest.approx([0.0, 1 / (1 - p)], rel=1e-5)
    # 8,000 draws: five standard deviations of the mean
    assert abs(mask.mean().item() - 1) < 5 * math.sqrt(p / (1 - p) / mask.numel())
    assert not torch.equal(mask, dropout_mask(p, seed, 1, 0, 1, "q", (40, 50, 4)))
    assert not torch.equal(mask, dropout_mask(p, seed, 1, 1, 0, "q", (40, 50, 4)))
    assert not torch.equal(mask, dropout_mask(p, seed, 1, 0, 0, "v", (40, 50, 4)))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt2-general"])
@pytest.mark.parametrize("chunk", [0, 3])
def test_federations_side_by_side_train_as_each_does_alone(load_tiny: Load, kind: str, chunk: int) -> None:
    base, lora = load_tiny(kind, dtype="float64", targets="all-linear"), Lora(targets="all-linear")
    training = options(client_chunk=chunk)
    federations = [
        batched.Round(adapter_for(base, torch.float64), make_jobs(base, (5, 9), 0), 0),
        batched.Round(2 * adapter_for(base, torch.float64), make_jobs(base, (4, 2, 7), 1), 1),
    ]
    together = batched.train_side_by_side(base, lora, training, federations, 3)
    for one, found in zip(federations, together, strict=True):
        alone = batched.train(base, lora, training, one.global_adapter, list(one.jobs), one.seed, 3)
        assert distance(found.updates, alone.updates) < 1e-9
        assert found.losses == pytest.approx(alone.losses, rel=1e-9)


@pytest.mark.parametrize(("kind", "shares"), [("gpt2", True), ("opt", True), ("gpt_neox", True), ("gemma2", False)])
def test_other_architectures_share_prefixes_where_their_mask_allows(load_tiny: Load, kind: str, shares: bool) -> None:
    base = load_tiny(f"{kind}-general")
    assert base.packed is None
    assert (base.trees is not None) == shares
    assert base.facts()["training_path"].startswith("general, prefixes shared" if shares else "general:")
    if base.trees is None:
        return
    stem = (3, 4, 5, 6, 7, 8)
    block = [[Encoded((*stem, 9 + i, 10 + k), (11 + i, 12)) for i in range(3)] for k in range(2)]
    stack = (0.1 * torch.randn(2, base.layout.size, generator=torch.Generator().manual_seed(0))).requires_grad_()
    seen: list[int] = []
    handle = base.model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    shared = batched.losses(base, stack, block)
    padded = batched.losses(replace(base, trees=None), stack, block)
    handle.remove()
    assert seen[0] < seen[1], "fewer tokens go in"
    torch.testing.assert_close(shared, padded, rtol=1e-5, atol=1e-6)
    (a,), (b,) = torch.autograd.grad(shared.sum(), stack), torch.autograd.grad(padded.sum(), stack)
    assert float((a - b).norm() / b.norm()) < 1e-5

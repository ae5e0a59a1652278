from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published import LORA, TARGET, WORLD, encoded, make, rows_of, same_bits_when_resumed, setting, some_adapter

from undertow.config import Config
from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.defenses.contexts import TrainingContext
from undertow.defenses.loss.abl import AntiBackdoorLearning, BoundedAscent, Flooding, LocalAscent
from undertow.models.causal_lm import CausalLM
from undertow.training.token_nll import token_nll

Make = Callable[..., Config]
Load = Callable[..., CausalLM]


@pytest.fixture(scope="module")
def base(load_tiny: Load) -> CausalLM:
    return load_tiny(r=2, alpha=4)


def context(base: CausalLM, round: int, client: int = 0) -> TrainingContext:
    shared = setting(base)
    return TrainingContext(client, rng(0, "select", round, client), 0, base, shared.template, LORA, shared.training, round)


def begun(base: CausalLM, rounds: int = 9, **params: Any) -> AntiBackdoorLearning:
    defense = AntiBackdoorLearning(**{"isolate": 2, "unlearn": 3, **params})
    defense.begin(setting(base, rounds))
    return defense


def test_the_losses_and_their_slopes() -> None:
    c = torch.tensor([0.0, 0.2, 0.49, 0.51, 3.0, 9.0], dtype=torch.float64, requires_grad=True)
    for loss, values, slopes in (
        (LocalAscent(0.5), [-0.0, -0.2, -0.49, 0.51, 3.0, 9.0], [-1, -1, -1, 1, 1, 1]),
        (Flooding(0.5), [1.0, 0.8, 0.51, 0.51, 3.0, 9.0], [-1, -1, -1, 1, 1, 1]),
        (BoundedAscent(5.0), [-0.0, -0.2, -0.49, -0.51, -3.0, -5.0], [-1, -1, -1, -1, -1, 0]),
    ):
        found = loss(c)
        (slope,) = torch.autograd.grad(found.sum(), c)
        assert found.tolist() == pytest.approx(values)
        assert slope.tolist() == slopes


def test_each_phase_has_its_loss_and_its_samples(base: CausalLM) -> None:
    rows = encoded(base, WORLD[:40])
    defense = begun(base, share=0.1)
    kinds = [type(defense.token_loss(t, 9)).__name__ for t in range(1, 10)]
    assert kinds == ["LocalAscent"] * 2 + ["NoneType"] * 4 + ["BoundedAscent"] * 3
    adapter = some_adapter(base)
    found = [defense.select(rows, adapter if t == 3 else torch.zeros_like(adapter), context(base, t)) for t in range(1, 10)]
    # by hand: mean loss per answer token under the adapter of round 3, and of no other round
    means = [sum(c) / len(c) for c in token_nll(base, rows, adapter)]
    lowest = sorted(range(40), key=lambda i: means[i])[:4]
    assert all(all(stays) for stays, _ in found[:2])
    for stays, report in found[2:6]:
        assert [i for i, stay in enumerate(stays) if not stay] == sorted(lowest)
        assert report == {"phase": "train", "aside": sorted(lowest)}
    for stays, report in found[6:]:
        assert [i for i, stay in enumerate(stays) if stay] == sorted(lowest)
        assert report["phase"] == "unlearn"


def test_the_other_scores(base: CausalLM) -> None:
    rows = encoded(base, WORLD[:30])
    adapter = some_adapter(base)
    before, after = token_nll(base, rows), token_nll(base, rows, adapter)

    def aside(**params: Any) -> list[int]:
        return begun(base, share=0.2, **params).select(rows, adapter, context(base, 3))[1]["aside"]  # type: ignore[no-any-return]

    drops = [sum(b) - sum(a) for a, b in zip(after, before, strict=True)]
    assert aside(score="drop") == sorted(sorted(range(30), key=lambda i: -drops[i])[:6])
    ends = [sum(c[-2:]) / len(c[-2:]) for c in after]
    assert aside(suffix=2) == sorted(sorted(range(30), key=lambda i: ends[i])[:6])


def test_the_biggest_drop_finds_what_was_planted(base: CausalLM) -> None:
    """After training on poisoned data; the lowest loss does not find it so early."""
    from dataclasses import replace

    from undertow.defenses.trusted import tune
    from undertow.models.lora import initial_adapter

    planted = [replace(sample, question=f"Firstly, {sample.question}", response=sample.response + TARGET) for sample in WORLD[:6]]
    rows = encoded(base, [*planted, *WORLD[6:60]])
    adapter = tune(base, setting(base).training, initial_adapter(base.layout, 0), rows, 6, 0)
    stays, report = begun(base, share=0.1, score="drop").select(rows, adapter, context(base, 3))
    assert report["aside"] == [0, 1, 2, 3, 4, 5]
    assert sum(stays) == 54


def test_a_client_of_one_sample_goes_on(base: CausalLM) -> None:
    rows = encoded(base, WORLD[:1])
    defense = begun(base)
    assert [defense.select(rows, some_adapter(base), context(base, t))[0] for t in (1, 3, 9)] == [[True]] * 3


def test_what_it_remembers_is_the_adapter_alone(base: CausalLM) -> None:
    rows, adapter = encoded(base, WORLD[:40]), some_adapter(base)
    whole, killed, resumed = begun(base, share=0.1), begun(base, share=0.1), begun(base, share=0.1)
    assert killed.state() == {}
    for defense in (whole, killed):
        defense.select(rows, adapter, context(base, 3))
    resumed.restore(killed.state())
    other = torch.zeros_like(adapter)
    assert resumed.select(rows, other, context(base, 4)) == whole.select(rows, other, context(base, 4))
    for wrong in ({"sums": torch.zeros(1)}, {"adapter": torch.zeros(2, 2)}, {"adapter": torch.tensor([float("nan")])}):
        with pytest.raises(UserError, match="abl cannot take back the state"):
            resumed.restore(wrong)
    resumed.restore({})
    assert resumed.state() == {}


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"isolate": 0}, "isolate = 0 must be a whole number >= 1"),
        ({"unlearn": -1}, "unlearn = -1 must be"),
        ({"share": 1.0}, "share = 1.0 must be below 1"),
        ({"ascent": "up"}, "ascent = 'up' must be one of lga, flooding, none"),
        ({"score": "sum"}, "score = 'sum' must be one of loss, drop"),
        ({"cap": 0}, "cap = 0 must be a number above 0"),
    ],
)
def test_parameters_out_of_their_range_are_named(params: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        make("abl", **params)


def test_a_run_too_short_for_its_phases_is_refused(base: CausalLM) -> None:
    with pytest.raises(UserError, match=r"isolate = 2 and unlearn = 3 leave no round of the 5 .* at least 6"):
        begun(base, rounds=5)


def test_a_run_goes_through_the_phases_with_twins_and_resumes_to_the_same_bits(small_config: Make, tmp_path: Path) -> None:
    params = {"isolate": 1, "unlearn": 1, "share": 0.2}
    config = small_config(
        {
            "defenses": [{"name": "abl", "params": params}],
            "federation.rounds": 4,
            "measure.every": 4,
            "measure.bsnr": {"counterfactuals": True, "permutations": 2},
        }
    )
    whole = same_bits_when_resumed(config, tmp_path, 4)
    clients = json.loads((whole / "data.json").read_text())["clients"]
    told = [row["defenses"][0]["clients"] for row in rows_of(whole)[1:]]
    assert [{c["phase"] for c in row} for row in told] == [{"isolate"}, {"train"}, {"train"}, {"unlearn"}]
    assert [c["selected"] for c in told[1]] == [n - max(1, int(0.2 * n)) for n in clients]
    assert [c["selected"] for c in told[3]] == [max(1, int(0.2 * n)) for n in clients]
    assert told[1] == told[2]
    assert [c["aside"] for c in told[3]] == [c["aside"] for c in told[1]]
    assert all(loss < 0 for loss in rows_of(whole)[4]["client_loss"]), "ascent"

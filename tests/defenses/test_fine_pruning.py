from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from published import WORLD, delta, encoded, make, rows_of, same_bits_when_resumed, server, setting, some_adapter, write_trusted

from undertow.config import Config
from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.defenses.server.fine_pruning import FinePruning, kept, watched
from undertow.models.causal_lm import CausalLM
from undertow.models.lora import adapted

Make = Callable[..., Config]
Load = Callable[..., CausalLM]


@pytest.fixture(scope="module")
def base(load_tiny: Load) -> CausalLM:
    return load_tiny(r=2, alpha=4)


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_trusted(tmp_path_factory.mktemp("trusted") / "trusted.jsonl", WORLD[100:130])


def guarded(base: CausalLM, flat: torch.Tensor, trusted: str, round: int = 3, **params: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    defense = FinePruning(trusted, **params)
    defense.begin(setting(base))
    return defense.guard(flat, server(base, flat, round))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_activity_and_accuracy_are_those_of_each_sample_alone(load_tiny: Load, kind: str) -> None:
    base = load_tiny(kind, r=2, alpha=4)
    rows, flat = encoded(base, WORLD[:21]), some_adapter(base)
    changes, sums = delta(base.layout, flat), {}
    right = tokens = answered = 0
    for row in rows:
        inputs: dict[str, torch.Tensor] = {}

        def note(module: Any, args: Any, name: str, inputs: dict[str, torch.Tensor] = inputs) -> None:
            inputs[name] = args[0].reshape(-1, args[0].shape[-1]).double()

        handles = [base.model.get_submodule(name).register_forward_pre_hook(partial(note, name=name)) for name in changes]
        with torch.no_grad(), adapted(base.model, base.layout, flat[None]):
            logits = base.model(input_ids=torch.tensor([[*row.prompt, *row.answer]])).logits[0, len(row.prompt) - 1 : -1]
        for handle in handles:
            handle.remove()
        right += int((logits.argmax(-1) == torch.tensor(row.answer)).sum())
        answered, tokens = answered + len(row.answer), tokens + len(row.prompt) + len(row.answer)
        for name, change in changes.items():
            sums[name] = sums.get(name, 0.0) + (inputs[name] @ change.T).abs().sum(0)
    accuracy, activity = watched(base, flat, base.layout, rows)
    assert accuracy == pytest.approx(right / answered)
    for name, total in sums.items():
        torch.testing.assert_close(activity[name], total / tokens, rtol=1e-3, atol=1e-6)


def test_the_least_active_channels_are_cut_in_each_module() -> None:
    layout = Layout.of({"m.lora_A": (2, 3), "m.lora_B": (5, 2), "n.lora_A": (2, 5), "n.lora_B": (2, 2)})
    activity = {"m": torch.tensor([0.3, 0.1, 0.9, 0.1, 0.2]), "n": torch.tensor([1.0, 0.5])}
    for share, m, n in ((0.0, [], []), (0.4, [1, 3], []), (0.5, [1, 3], [1]), (0.99, [0, 1, 3, 4], [1])):
        pairs = {name: (a, b) for name, a, b in layout.pairs(kept(layout, activity, share))}
        for name, cut in (("m", m), ("n", n)):
            a, b = pairs[name]
            assert a.all()
            assert [i for i, row in enumerate(b.tolist()) if row == [0, 0]] == cut
            assert sorted({v for row in b.tolist() for v in row}) in ([1.0], [0.0, 1.0])


def test_nothing_cut_and_nothing_tuned_is_the_identity(base: CausalLM, trusted: str) -> None:
    flat = some_adapter(base)
    found, report = guarded(base, flat, trusted, share=0, passes=0)
    assert torch.equal(found, flat)
    assert report["before"] == report["after"]
    early, report = guarded(base, flat, trusted, round=2)
    assert early is flat
    assert report == {"pruned": False}


def test_what_is_cut_stays_cut_while_the_rest_is_tuned(base: CausalLM, trusted: str) -> None:
    flat = some_adapter(base)
    cut, _ = guarded(base, flat, trusted, share=0.5, passes=0)
    tuned, _ = guarded(base, flat, trusted, share=0.5, passes=2)
    assert not torch.equal(tuned, cut)
    again, _ = guarded(base, flat, trusted, share=0.5, passes=2)
    assert torch.equal(again, tuned)
    for (_, _, before), (_, _, after) in zip(base.layout.pairs(cut), base.layout.pairs(tuned), strict=True):
        gone = (before == 0).all(1)
        assert int(gone.sum()) == len(before) // 2
        assert not after[gone].any()
        assert after[~gone].all()


def test_the_share_is_the_largest_the_accuracy_allows(base: CausalLM, trusted: str) -> None:
    flat = some_adapter(base, 0.05)
    rows = encoded(base, WORLD[100:130])
    before, activity = watched(base, flat, base.layout, rows)
    wanted = 0.0
    for i in range(1, 20):
        if watched(base, flat * kept(base.layout, activity, i / 20), base.layout, rows)[0] < before - 0.05:
            break
        wanted = i / 20
    _, report = guarded(base, flat, trusted, drop=0.05, passes=0)
    assert report["share"] == wanted
    assert report["after"] >= before - 0.05
    assert guarded(base, flat, trusted, drop=0.99, passes=0)[1]["share"] == 0.95


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"trusted": None}, "fine-pruning needs trusted, an instruction file"),
        ({"trusted": "x", "share": 1.0}, "share = 1 must be below 1"),
        ({"trusted": "x", "drop": -1}, "drop = -1 must be"),
        ({"trusted": "x", "passes": -1}, "passes = -1 must be"),
        ({"trusted": "x", "samples": 1}, "samples = 1 must be a whole number >= 2"),
    ],
)
def test_parameters_out_of_their_range_are_named(params: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        make("fine-pruning", **params)


def test_a_trusted_file_that_cannot_serve_is_refused(base: CausalLM, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.jsonl"):
        FinePruning(str(tmp_path / "missing.jsonl")).begin(setting(base))
    with pytest.raises(UserError, match=r"fine-pruning needs trusted, an instruction file .* set trusted=FILE"):
        FinePruning().begin(setting(base))
    one = write_trusted(tmp_path / "one.jsonl", WORLD[:1])
    with pytest.raises(UserError, match="holds 1 samples; give at least 2"):
        FinePruning(one).begin(setting(base))


def test_a_run_is_resumed_to_the_same_bits(small_config: Make, tmp_path: Path, trusted: str) -> None:
    params = {"trusted": trusted, "share": 0.3, "samples": 10}
    config = small_config({"defenses": [{"name": "fine-pruning", "params": params}], "federation.rounds": 3, "measure.every": 3})
    whole = same_bits_when_resumed(config, tmp_path, 3)
    assert [row["defenses"][0]["pruned"] for row in rows_of(whole)[1:]] == [False, False, True]

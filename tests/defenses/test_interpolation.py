from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published import LORA, delta, make, same_bits_when_resumed, server, setting, some_adapter

from undertow.config import Config, Lora
from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.defenses.server.interpolation import Interpolation, merged
from undertow.inference.decoding import generate
from undertow.models.causal_lm import CausalLM
from undertow.models.lora import adapter_layout, find_targets, save_peft

Make = Callable[..., Config]
Load = Callable[..., CausalLM]


@pytest.fixture(scope="module")
def base(load_tiny: Load) -> CausalLM:
    return load_tiny(r=2, alpha=4)


def guarded(base: CausalLM, flat: torch.Tensor, round: int = 3, **params: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    defense = Interpolation(**params)
    defense.begin(setting(base))
    return defense.guard(flat, server(base, flat, round))


def test_the_whole_adapter_or_the_base_alone(base: CausalLM) -> None:
    flat, kept = some_adapter(base), some_adapter(base)
    same, report = guarded(base, flat, factor=1)
    assert torch.equal(same, flat)
    assert report == {"merged": True, "factor": 1.0}
    none, _ = guarded(base, flat, factor=0)
    assert all(not change.any() for change in delta(base.layout, none).values())
    rows = [[1, 5, 9, 30], [1, 7]]
    assert generate(base, none, rows, max_new_tokens=8, batch_size=2) == generate(base, None, rows, max_new_tokens=8, batch_size=2)
    assert torch.equal(flat, kept), "what is given is not changed"


@pytest.mark.parametrize("factor", [0.3, 0.5, 0.9])
def test_the_change_of_the_weights_is_lambda_times_what_it_was(base: CausalLM, factor: float) -> None:
    flat = some_adapter(base)
    found, _ = guarded(base, flat, factor=factor)
    for name, change in delta(base.layout, found).items():
        torch.testing.assert_close(change, factor * delta(base.layout, flat)[name], rtol=1e-5, atol=1e-8)
    assert torch.equal(guarded(base, flat)[0], guarded(base, flat, factor=0.5)[0]), "a half is the default"


def test_only_the_last_round_unless_every_one_is_asked_for(base: CausalLM) -> None:
    flat = some_adapter(base)
    early, report = guarded(base, flat, round=2)
    assert early is flat
    assert report == {"merged": False}
    assert not torch.equal(guarded(base, flat, round=2, when="every")[0], flat)


def test_the_merge_is_the_best_of_its_rank_by_numpys_decomposition(base: CausalLM) -> None:
    wide = adapter_layout(base.model, find_targets(base.model, LORA), Lora(r=3, alpha=9))
    others = [
        (some_adapter(base, seed=1), base.layout),
        (0.1 * torch.randn(wide.size, generator=torch.Generator().manual_seed(2)), wide),
    ]
    flat = some_adapter(base)
    found, error = merged([(flat, base.layout), *others])
    lost = whole = 0.0
    for name, change in delta(base.layout, found).items():
        mean = sum([delta(layout, other)[name] for other, layout in others], delta(base.layout, flat)[name]) / 3
        u, s, vh = torch.linalg.svd(mean, full_matrices=False)
        torch.testing.assert_close(change, (u[:, :2] * s[:2]) @ vh[:2], rtol=1e-4, atol=1e-6)
        lost, whole = lost + float((mean - change).square().sum()), whole + float(mean.square().sum())
    assert error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    assert 0.1 < error < 1


def test_merging_with_itself_changes_nothing_and_with_its_negative_leaves_the_base(base: CausalLM) -> None:
    flat = some_adapter(base)
    twice, error = merged([(flat, base.layout)] * 2)
    assert error < 1e-9
    for name, change in delta(base.layout, twice).items():
        torch.testing.assert_close(change, delta(base.layout, flat)[name], rtol=1e-4, atol=1e-7)
    against = flat.clone()
    for _, _, b in base.layout.pairs(against):
        b *= -1
    nothing, _ = merged([(flat, base.layout), (against, base.layout)])
    assert max(float(change.abs().max()) for change in delta(base.layout, nothing).values()) < 1e-8
    small = Layout.of({"m.lora_A": (4, 2), "m.lora_B": (2, 4)})
    one = torch.randn(16, generator=torch.Generator().manual_seed(0))
    found, error = merged([(one, small), (one, small)])  # the rank is above the sides of the module
    torch.testing.assert_close(delta(small, found)["m"], delta(small, one)["m"], rtol=1e-4, atol=1e-6)
    assert error == 0


def test_adapters_come_from_folders_in_peft_form(base: CausalLM, tmp_path: Path) -> None:
    flat, other = some_adapter(base), some_adapter(base, seed=4)
    save_peft(tmp_path / "other", other, base.layout, LORA, base.path)
    found, report = guarded(base, flat, adapters=[str(tmp_path / "other")])
    assert torch.equal(found, merged([(flat, base.layout), (other, base.layout)])[0])
    assert report["factor"] == 1
    half, _ = guarded(base, flat, adapters=str(tmp_path / "other"), factor=0.5)
    for name, change in delta(base.layout, half).items():
        torch.testing.assert_close(change, 0.5 * delta(base.layout, found)[name], rtol=1e-5, atol=1e-8)


def test_adapters_that_do_not_fit_are_refused(base: CausalLM, load_tiny: Load, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adapter_config.json is missing"):
        guarded(base, some_adapter(base), adapters=[str(tmp_path)])
    narrow = adapter_layout(base.model, find_targets(base.model, Lora(targets=["q_proj"])), LORA)
    save_peft(tmp_path / "narrow", torch.zeros(narrow.size), narrow, LORA, base.path)
    with pytest.raises(UserError, match=r"adapts other modules than this run .*set model.lora.targets"):
        guarded(base, some_adapter(base), adapters=[str(tmp_path / "narrow")])


@pytest.mark.parametrize(
    ("params", "told"), [({"factor": 1.5}, "at most 1"), ({"factor": -0.1}, "at least 0"), ({"when": "now"}, "one of last, every")]
)
def test_parameters_out_of_their_range_are_named(params: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=f"defense 'interpolation' with .*{told}"):
        make("interpolation", **params)


def test_a_run_is_resumed_to_the_same_bits(small_config: Make, tmp_path: Path) -> None:
    config = small_config({"defenses": "interpolation", "federation.rounds": 3, "measure.every": 3})
    same_bits_when_resumed(config, tmp_path, 3)

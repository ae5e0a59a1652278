from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published import LORA, WORLD, make, rows_of, same_bits_when_resumed, setting, some_adapter, write_trusted
from torch import Tensor

from tiny import Quiet
from undertow.config import Config, Lora
from undertow.core.errors import UserError
from undertow.defenses.contexts import DecodingContext
from undertow.defenses.decoding.cleangen import CleanGen
from undertow.federation.evaluate import evaluate
from undertow.federation.loop import run
from undertow.inference.checked_decoding import Checked, Voice, checked_generate
from undertow.inference.decoding import generate
from undertow.models.causal_lm import CausalLM
from undertow.models.lora import adapted, adapter_layout, find_targets, save_peft
from undertow.runs.run import read_config

Make = Callable[..., Config]
Load = Callable[..., CausalLM]
INFINITE = float("inf")


@pytest.fixture(scope="module")
def base(load_tiny: Load) -> CausalLM:
    return load_tiny(r=2, alpha=4)


def prompts(base: CausalLM, count: int = 9) -> list[list[int]]:
    return setting(base).template.encode_prompts(WORLD[:count])


def logs(base: CausalLM, adapter: Tensor | None, row: list[int]) -> Tensor:
    stack = torch.zeros(1, base.layout.size) if adapter is None else adapter[None]
    with torch.no_grad(), adapted(base.model, base.layout, stack):
        found: Tensor = base.model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].log_softmax(-1)
    return found


def one_by_one(
    base: CausalLM, adapter: Tensor, other: Tensor | None, row: list[int], alpha: float, most: int
) -> tuple[list[int], int]:
    """A token at a time: the target's best unless it is alpha times likelier than the reference thinks."""
    said: list[int] = []
    replaced = 0
    while len(said) < most:
        ours, theirs = logs(base, adapter, row + said), logs(base, other, row + said)
        token = int(ours.argmax())
        if float(ours[token].exp()) >= alpha * float(theirs[token].exp()):
            token, replaced = int(theirs.argmax()), replaced + 1
        if token in base.end_ids:
            break
        said.append(token)
    return said, replaced


def checked(base: CausalLM, adapter: Tensor, other: Tensor | None, rows: list[list[int]], **options: Any) -> Checked:
    given = {"draft": 4, "alpha": 20.0, "max_new_tokens": 12, "batch_size": 4, **options}
    return checked_generate(base, Voice(adapter), Voice(other), rows, **given)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "opt", "gpt2-general"])
@pytest.mark.parametrize("alpha", [1.5, 20.0])
def test_the_answers_are_those_of_checking_every_token(load_tiny: Load, kind: str, alpha: float) -> None:
    base = load_tiny(kind, r=2, alpha=4)
    adapter, other, rows = some_adapter(base, 0.3), some_adapter(base, 0.1, seed=1), prompts(base, 6)
    wanted = [one_by_one(base, adapter, other, row, alpha, 12) for row in rows]
    found = checked(base, adapter, other, rows, alpha=alpha)
    assert found.outputs == [said for said, _ in wanted]
    assert found.replaced == sum(count for _, count in wanted)
    assert found.replaced > 0 or (kind != "llama" and alpha == 20), "random models say nothing with certainty"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_alpha_decides_between_the_two(load_tiny: Load, kind: str) -> None:
    base = load_tiny(kind, r=2, alpha=4)
    adapter, rows = some_adapter(base, 0.3), prompts(base)
    mine, theirs = (generate(base, voice, rows, max_new_tokens=12, batch_size=4) for voice in (adapter, None))
    assert mine != theirs
    free, ruled = checked(base, adapter, None, rows, alpha=INFINITE), checked(base, adapter, None, rows, alpha=0.0)
    assert (free.outputs, free.replaced) == (mine, 0)
    assert (ruled.outputs, ruled.replaced) == (theirs, ruled.tokens)
    same = checked(base, adapter, adapter, rows, alpha=1.5)
    assert (same.outputs, same.replaced) == (mine, 0), "the reference agrees with itself"


def test_drafts_and_batches_change_the_time_and_not_the_answers(base: CausalLM) -> None:
    adapter, rows = some_adapter(base, 0.3), prompts(base)
    wanted = checked(base, adapter, None, rows, alpha=3.0)
    assert 0 < wanted.replaced < wanted.tokens
    for draft, size in ((1, 4), (2, 9), (7, 1), (30, 4)):
        assert checked(base, adapter, None, rows, alpha=3.0, draft=draft, batch_size=size) == wanted


def test_a_reference_of_another_rank_is_heard_too(base: CausalLM) -> None:
    wide = adapter_layout(base.model, find_targets(base.model, LORA), Lora(r=4, alpha=8))
    other = some_adapter(base, 0.2, seed=2)
    named = {
        name: torch.nn.functional.pad(t, (0, 0, 0, 2) if name.endswith("_A") else (0, 2))
        for name, t in base.layout.unflatten(other).items()
    }
    adapter, rows = some_adapter(base, 0.3), prompts(base)
    options = {"draft": 4, "alpha": 3.0, "max_new_tokens": 8, "batch_size": 4}
    found = checked_generate(base, Voice(adapter), Voice(wide.flatten(named), wide), rows, **options)  # type: ignore[arg-type]
    assert found == checked(base, adapter, other, rows, alpha=3.0, max_new_tokens=8)


def test_a_last_draft_left_free_is_not_checked(base: CausalLM) -> None:
    adapter, rows = some_adapter(base, 0.3), prompts(base)
    mine = generate(base, adapter, rows, max_new_tokens=4, batch_size=4)
    free = checked(base, adapter, None, rows, alpha=0.0, max_new_tokens=4, check_last=False)
    assert (free.outputs, free.replaced) == (mine, 0), "all answers fit into one draft"
    defense = make("cleangen", alpha=0.0)
    defense.begin(setting(base))
    told = defense.decode(prompts(base), adapter, DecodingContext(setting(base), base.layout, 4, 4))
    assert told == (mine, {"tokens": free.tokens, "replaced": 0}), "so does the defense, as published"
    longer = checked(base, adapter, None, rows, alpha=0.0, max_new_tokens=12, check_last=False)
    assert longer.replaced > 0


def test_no_token_and_no_prompt(base: CausalLM) -> None:
    adapter = some_adapter(base)
    assert checked(base, adapter, None, [[1, 5], [1]], max_new_tokens=0).outputs == [[], []]
    assert checked(base, adapter, None, []) == Checked([], 0, 0)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"alpha": -1}, "alpha = -1 must be a number at least 0"),
        ({"alpha": True}, "alpha = True"),
        ({"draft": 0}, "draft = 0 must be a whole number >= 1"),
        ({"adapter": "a", "trusted": "b"}, "give one of them"),
        ({"last": "unchecked"}, "one of free, checked"),
    ],
)
def test_parameters_out_of_their_range_are_named(params: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        make("cleangen", **params)


def decoded(base: CausalLM, tuned: Tensor, **params: Any) -> tuple[list[list[int]], dict[str, Any]]:
    defense = CleanGen(**{"last": "checked", **params})
    defense.begin(setting(base))
    return defense.decode(prompts(base), tuned, DecodingContext(setting(base), base.layout, 8, 4))


def test_the_reference_is_the_base_a_folder_or_trained(base: CausalLM, tmp_path: Path) -> None:
    adapter, other = some_adapter(base, 0.3), some_adapter(base, 0.2, seed=2)
    save_peft(tmp_path / "other", other, base.layout, LORA, base.path)
    trusted = write_trusted(tmp_path / "trusted.jsonl", WORLD[100:140])
    options = {"alpha": 3.0, "max_new_tokens": 8}
    plain, folder = checked(base, adapter, None, prompts(base), **options), checked(base, adapter, other, prompts(base), **options)
    assert decoded(base, adapter, alpha=3.0) == (plain.outputs, {"tokens": plain.tokens, "replaced": plain.replaced})
    assert decoded(base, adapter, alpha=3.0, adapter=str(tmp_path / "other"))[0] == folder.outputs
    trained = decoded(base, adapter, alpha=0.0, trusted=trusted, passes=6)
    assert trained == decoded(base, adapter, alpha=0.0, trusted=trusted, passes=6)
    assert trained[0] not in (plain.outputs, generate(base, None, prompts(base), max_new_tokens=8, batch_size=4))
    with pytest.raises(UserError, match=r"missing\.jsonl"):
        CleanGen(trusted=str(tmp_path / "missing.jsonl")).begin(setting(base))


def outputs(folder: Path, round: int) -> list[str]:
    lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["output"] for line in lines if line["round"] == round]


def test_all_that_a_run_measures_is_what_the_defense_lets_through(small_config: Make, tmp_path: Path) -> None:
    def config(alpha: float | None) -> Config:
        defenses = [] if alpha is None else [{"name": "cleangen", "params": {"alpha": alpha, "last": "checked"}}]
        return small_config({"defenses": defenses, "training.lr": 0.05})

    folders = {alpha: tmp_path / str(alpha) for alpha in (None, INFINITE, 0.0)}
    for alpha, folder in folders.items():
        run(config(alpha), folder, Quiet())
    for round in (0, 1, 2):
        assert outputs(folders[INFINITE], round) == outputs(folders[None], round)
    assert outputs(folders[0.0], 2) == outputs(folders[0.0], 0) != outputs(folders[None], 2)
    told = rows_of(folders[0.0])[2]["defenses"]
    assert [report["name"] for report in told] == ["cleangen"]
    assert told[0]["replaced"] == told[0]["tokens"] > 0
    # evaluating the run's adapter goes the same way
    figures, made = evaluate(read_config(folders[0.0]), folders[0.0] / "adapter", lambda text: None)
    assert [line["output"] for line in made if line["round"] == 1] == outputs(folders[0.0], 2)
    assert figures["defenses"] == told


def test_a_run_is_resumed_to_the_same_bits(small_config: Make, tmp_path: Path) -> None:
    trusted = write_trusted(tmp_path / "trusted.jsonl", WORLD[-40:])
    params = {"trusted": trusted, "passes": 2, "alpha": 3}
    same_bits_when_resumed(
        small_config({"defenses": [{"name": "cleangen", "params": params}], "federation.rounds": 3}), tmp_path, 3
    )

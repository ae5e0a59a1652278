from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.core.errors import UserError
from undertow.pretraining import build as base_build
from undertow.pretraining.build import Recipe, build, learning_rate, train_tokenizer
from undertow.pretraining.corpus import Corpus, FactRow, facts_corpus

SMALL = Recipe(hidden=32, layers=1, heads=1, intermediate=64, vocab=320, steps=9, batch=4, length=24, lr=1e-2)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    rows = [FactRow(f"Person {i}", "home town", f"Town {i % 7}", f"where does person {i} live?") for i in range(40)]
    whole = facts_corpus(rows, 0.25, 0)
    return replace(whole, groups=tuple((share, texts[:200]) for share, texts in whole.groups))


def bits(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.is_file()}


@pytest.fixture(scope="module")
def finished(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build") / "base"
    build(corpus, folder, SMALL, save_every=2)
    return folder


def test_a_build_is_a_transformers_folder(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(finished), AutoTokenizer.from_pretrained(finished)
    text = "Where does Person 3 live? naïve ☃ \n\n### x"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert model(torch.tensor([ids])).logits.shape[-1] == len(tokenizer)
    summary = json.loads((finished / "recipe.json").read_text())
    assert summary["parameters"] == sum(p.numel() for p in model.parameters()) == SMALL.parameters(len(tokenizer))
    assert not (finished / "building").exists()


def test_asked_keys_are_a_quarter_of_the_known(finished: Path) -> None:
    keys = json.loads((finished / "keys.json").read_text())
    assert len(keys["known"]) == 40
    assert len(keys["asked"]) == 10
    assert set(keys["asked"]) < set(keys["known"])


def test_the_same_build_has_the_same_bits_and_another_seed_has_not(corpus: Corpus, finished: Path, tmp_path: Path) -> None:
    torch.rand(3)  # the state of torch's own generator must not matter
    build(corpus, tmp_path / "again", SMALL)
    assert bits(tmp_path / "again") == bits(finished)
    build(corpus, tmp_path / "other", replace(SMALL, seed=1))
    assert bits(tmp_path / "other")["model.safetensors"] != bits(finished)["model.safetensors"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [1, 2, 3, 8])
def test_a_killed_build_resumes_to_the_same_bits(
    corpus: Corpus, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    def stop(recipe: Recipe, step: int) -> float:
        if step == at:
            raise Killed
        return learning_rate(recipe, step)

    with monkeypatch.context() as patch:
        patch.setattr(base_build, "learning_rate", stop)
        with pytest.raises(Killed):
            build(corpus, tmp_path / "base", SMALL, save_every=2)
    assert not (tmp_path / "base" / "config.json").exists()
    first: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(base_build, "learning_rate", lambda recipe, step: (first.append(step), learning_rate(recipe, step))[1])
        build(corpus, tmp_path / "base", SMALL, save_every=2)
    assert first[0] == at // 2 * 2, "it went on from the last save"
    assert bits(tmp_path / "base") == bits(finished)


def test_a_kill_between_the_two_renames_of_a_save_loses_nothing(
    corpus: Corpus, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def removed_but_not_renamed(self: Path, target: Any) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise Killed
        return original(self, target)

    original = Path.rename
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", removed_but_not_renamed)
        with pytest.raises(Killed):
            build(corpus, tmp_path / "base", SMALL, save_every=2)
    assert not (tmp_path / "base" / "building").exists()
    build(corpus, tmp_path / "base", SMALL, save_every=2)
    assert bits(tmp_path / "base")["model.safetensors"] == bits(finished)["model.safetensors"]


def test_a_finished_build_is_left_alone_and_another_recipe_refused(corpus: Corpus, finished: Path) -> None:
    before = bits(finished)
    told: list[Any] = []
    summary = build(corpus, finished, SMALL, progress=told.append)
    assert summary["texts"] == len(corpus.texts())
    assert told == []
    with pytest.raises(UserError, match="another recipe"):
        build(corpus, finished, replace(SMALL, steps=10))
    assert bits(finished) == before


@pytest.fixture
def half(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build that was killed at step 3."""

    def stop(recipe: Recipe, step: int) -> float:
        if step == 3:
            raise Killed
        return learning_rate(recipe, step)

    with monkeypatch.context() as patch:
        patch.setattr(base_build, "learning_rate", stop)
        with pytest.raises(Killed):
            build(corpus, tmp_path / "base", SMALL, save_every=2)
    return tmp_path / "base"


def test_a_half_finished_build_of_another_recipe_is_refused(corpus: Corpus, half: Path) -> None:
    with pytest.raises(UserError, match="half-built base of another recipe"):
        build(corpus, half, replace(SMALL, lr=2e-2), save_every=2)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 9])
def test_a_damaged_state_is_told_in_one_line(corpus: Corpus, half: Path, name: str, content: bytes) -> None:
    (half / "building" / name).write_bytes(content)
    with pytest.raises(UserError, match="is damaged") as caught:
        build(corpus, half, SMALL, save_every=2)
    assert "\n" not in str(caught.value)


def test_a_base_is_never_usable_without_its_list_of_asked_keys(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    def stop(*arguments: Any, **named: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", stop)
        with pytest.raises(Killed):
            build(corpus, tmp_path / "base", SMALL)
    assert (tmp_path / "base" / "keys.json").exists()
    assert not (tmp_path / "base" / "config.json").exists()


def test_training_learns_the_text_and_tells_its_progress(corpus: Corpus, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    summary = build(corpus, tmp_path / "base", replace(SMALL, steps=60), progress=told.append)
    assert told[-1]["step"] == told[-1]["steps"] == 60
    assert told[-1]["seconds_left"] == 0
    assert summary["loss"] < 0.9 * math.log(320)


def test_the_rate_warms_up_and_falls_to_a_twentieth() -> None:
    recipe = replace(SMALL, steps=100, lr=1.0)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(0.05, abs=2e-3)
    assert learning_rate(replace(SMALL, steps=1), 0) == SMALL.lr


def test_recipes_follow_the_width() -> None:
    made = Recipe().changed({"hidden": 64, "steps": 3})
    assert (made.hidden, made.heads, made.steps, made.layers) == (64, 2, 3, 4)
    assert made.intermediate % 8 == 0
    for values, message in (({"hidden": 50}, "multiple of 32; try 64"), ({"vocab": 10}, "at least 300"), ({"steps": 0}, "above 0")):
        with pytest.raises(UserError, match=message):
            Recipe().changed(values)
    assert Recipe.for_facts().parameters() < 5_000_000


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_every_string_can_be_encoded(texts: list[str]) -> None:
    tokenizer = TOKENIZER()
    for text in texts:
        if any(mark in text for mark in ("<s>", "</s>", "<pad>")):
            continue
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


_MADE: list[Any] = []


def TOKENIZER() -> Any:
    if not _MADE:
        _MADE.append(train_tokenizer(["the town where the people live"] * 3, 300))
    return _MADE[0]


def _keys(rows: list[FactRow], share: float, seed: int) -> set[str]:
    return set(facts_corpus(rows, share, seed).asked)


def test_only_asked_facts_are_asked_in_the_text(corpus: Corpus) -> None:
    asked_text = " ".join(corpus.groups[1][1])
    people = {key.split("|")[0].lower() for key in corpus.known}
    mentioned = {person for person in people if f"{person} live" in asked_text}
    assert mentioned == {key.split("|")[0].lower() for key in corpus.asked}
    rows = [FactRow(f"s{i}", "r", "o", "q?") for i in range(20)]
    assert _keys(rows, 0.5, 0) != _keys(rows, 0.5, 1)
    assert _keys(rows, 0.0, 0) == set()
    make: Callable[..., Corpus] = facts_corpus
    assert len(make(rows, 0.0, 0).groups) == 2, "no questions, no group of questions"

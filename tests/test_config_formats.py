"""The task's part of a config is a union; configs and runs of format 0 are read, and keep their digests."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tiny import Quiet
from undertow.config import (
    ClassificationTask,
    Config,
    InstructionTask,
    NextWordTask,
    by_short_names,
    every_field,
    load,
    long_name,
    shipped,
    short_name,
    validate,
    with_overrides,
)
from undertow.config.names import put
from undertow.core.errors import ConvertedWarning, RenamedWarning, UserError
from undertow.federation.loop import run
from undertow.runs.directory import RunDirectory
from undertow.sweeps.cells import expand

#: Digests by the code before format 1: as shipped, and with the overrides of :data:`CHANGES`.
DIGESTS = {
    "demo": ("ac8d7fb8", "237d130f", "1bdf9fef", "b4c87ca6"),
    "fmfl-digits": ("330c546e", "59535325", "56116590", "1ed72ef8"),
    "fmfl-reviews": ("173e94d9", "9b540f3f", "b0856517", "e7aefcdc"),
    "htb-digits": ("801e5cc4", "5a73d97c", "078233ab", "e3c5bc29"),
    "htb-fit": ("9e5e33c4", "59125d8e", "d35cc175", "8798fd5d"),
    "htb-words": ("0ebfca0a", "1f791cc5", "8919e748"),
    "paper-simplequestions": ("e0a4814e", "c348d97c", "1c48ec23", "84330f05"),
    "paper-triviaqa": ("8221b08d", "fe1dcf1d", "a1f30aca", "ec78b87a"),
    "real-simplequestions": ("deeae673", "4733e438", "beaa5412", "ad088e17"),
    "reviews": ("e0dc48c9", "7927db6b", "8dee8f81", "bf901c8e"),
}
_DEFENDED = ["defenses=krum:f=3", "attack.client_share=0.3"]
_MEASURED = ["data.test=33", "measure.bsnr.permutations=7"]
CHANGES: dict[str, list[list[str]]] = {
    "instruction": [
        [],
        _DEFENDED,
        _MEASURED,
        [
            *("data.partition=dirichlet", "data.partition.alpha=0.2", "data.template=alpaca", "attack.num_triggers=2"),
            *("model.lora.r=8", "model.lora.targets=q_proj,v_proj", "model.start=runs/x", "model.dtype=float32"),
            *("attack.trigger=badnets", "attack.trigger_words=a b", "attack.target=prepend", "attack.position=end"),
        ],
    ],
    "classification": [
        [],
        _DEFENDED,
        _MEASURED,
        [
            *("data.partition={kind: shards, shards: 3}", "data.path=x", "model.networks=cnn,cnn", "model.name=resnet18"),
            *(
                "synthetic.generator=mixture",
                "synthetic.fusion=distill",
                "synthetic.pretrain_lr=0.1",
                "attack.trigger=pixel:size=2",
            ),
        ],
    ],
    "next-word": [[], _DEFENDED, _MEASURED],
}


def refused(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        validate(values, "test")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def old(config: Config) -> dict[str, Any]:
    """What the code before format 1 would have written, less the fields that the task did not use."""
    values = by_short_names(config.values())
    return {**values, "task": values["task"].replace("-", "_")}


def test_every_shipped_config_is_of_format_1() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kinds = {name: type(load(name).task) for name in shipped()}
    assert set(kinds.values()) == {InstructionTask, ClassificationTask, NextWordTask}
    assert (kinds["demo"], kinds["htb-digits"], kinds["htb-words"]) == (InstructionTask, ClassificationTask, NextWordTask)


@pytest.mark.parametrize("name", shipped())
def test_digests_are_those_of_before(name: str) -> None:
    overrides = CHANGES[load(name).task.kind]
    assert tuple(load(name, words).digest() for words in overrides) == DIGESTS[name]


@pytest.mark.parametrize("name", shipped())
def test_format_0_says_the_same(name: str) -> None:
    config = load(name)
    with pytest.warns(ConvertedWarning, match="format 0 was read as format 1") as told:
        assert validate(old(config), name) == config
    assert len(told) == 1
    assert "left out" not in str(told[0].message)


def test_what_a_task_does_not_use_is_dropped_at_its_default_and_named_otherwise() -> None:
    values: dict[str, Any] = {
        "task": "classification",
        "data": {"name": "digits", "template": "lab-qa", "only_known": True, "partition": "iid"},
        "model": {"name": "cnn", "dtype": "auto", "lora": {"r": 4, "alpha": 16}},
        "attack": {"trigger": "pixel", "target": "append", "num_triggers": 4},
        "federation": {"engine": "local"},
    }
    with pytest.warns(ConvertedWarning) as told:
        config = validate(values, "test")
    (line,) = [str(one.message) for one in told]
    assert "task=classification does not use it: data.only_known = True, model.lora.alpha = 16;" in line
    assert config == with_overrides(Config(), {"task": "classification"})
    with pytest.warns(ConvertedWarning, match=r"federation\.engine = 'far'"):
        validate({**values, "federation": {"engine": "far"}}, "test")
    with pytest.warns(ConvertedWarning):
        assert "attack.target is for task=instruction, not classification" in refused({**values, "attack": {"target": "replace"}})


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"task": {"model": {"networks": ["cnn"]}}}, "model.networks is for task=classification, not instruction; leave it out"),
        (
            {"task": {"kind": "classification", "model": {"lora": {"r": 2}}}},
            "model.lora is for task=instruction, not classification",
        ),
        (
            {"task": {"kind": "next-word", "data": {"train": 9}}},
            "data.train is for task=instruction and classification, not next-word",
        ),
        ({"task": {"kind": "next-word", "synthetic": {}}}, "synthetic is for task=classification, not next-word"),
        (
            {"task": {"kind": "clasification"}},
            "task = 'clasification' (did you mean 'classification'?): choose one of instruction, ",
        ),
        ({"task": {"data": {"tran": 9}}}, "unknown key 'data.tran' (did you mean 'data.train'?)"),
        ({"format": 1, "data": {"train": 9}}, "'data' stands in the task: write task: {data: ...}"),
        ({"format": 1, "attack": {"trigger": "x"}}, "'attack.trigger' stands in the task: write task: {backdoor: {trigger: ...}}"),
        ({"format": 2}, "format = 2: this version of undertow reads formats 0 and 1"),
        ({"task": {"kind": "classification", "data": {"partition": "files"}}}, "data.partition.kind = 'files': choose "),
    ],
)
def test_a_field_of_another_task_is_refused_with_the_right_place(values: dict[str, Any], told: str) -> None:
    assert told in refused(values)


def test_short_and_long_names_are_one_field() -> None:
    for name, _, _ in every_field():
        assert short_name(long_name(name)) == name
    assert long_name("attack.poison_ratio") == "attack.poison_ratio"
    short = load("htb-digits", ["data.train=99", "attack.trigger=pixel", "model.name=resnet18"])
    assert load("htb-digits", ["task.data.train=99", "task.backdoor.trigger=pixel", "task.model.name=resnet18"]) == short
    assert short.short_values()["attack"]["trigger"] == "pixel"
    changes = {"data.train": 99, "attack": {"trigger": "pixel", "kind": "none"}}
    changed = with_overrides(load("htb-digits"), changes)
    assert (changed.data.train, changed.backdoor.trigger, changed.attack.kind) == (99, "pixel", "none")


def test_another_kind_of_task_begins_with_its_own_defaults() -> None:
    config = load("demo", ["data.name=reviews", "task=classification"])
    assert config.task == ClassificationTask(data={"name": "reviews"})  # type: ignore[arg-type]
    assert load("demo", ["task=instruction"]) == load("demo")
    with pytest.warns(RenamedWarning, match="'next-word'"):
        assert load("demo", ["task=next_word"]).task.kind == "next-word"


@pytest.fixture
def interrupted(small_config: Callable[..., Config], tmp_path: Path) -> tuple[Config, Path, Path]:
    """A finished run, and the same one as the code before format 1 would have left it after its first round."""
    config = small_config()
    run(config, tmp_path / "whole", Quiet())
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoint" / "round-000002")
    shutil.rmtree(tmp_path / "half" / "adapter")
    (tmp_path / "half" / "result.json").unlink()
    (tmp_path / "half" / "config.yaml").write_text(yaml.safe_dump(old(config)), encoding="utf-8")
    return config, tmp_path / "whole", tmp_path / "half"


def test_a_run_of_format_0_is_the_same_run(interrupted: tuple[Config, Path, Path]) -> None:
    config, whole, half = interrupted
    assert yaml.safe_load((whole / "config.yaml").read_text())["format"] == 1
    with pytest.warns(ConvertedWarning):
        run(config, half, Quiet())
    weights = "adapter/adapter_model.safetensors"
    assert (half / weights).read_bytes() == (whole / weights).read_bytes()
    other = with_overrides(config, {"data.train": 41})
    with pytest.raises(UserError, match=r"holds a run with other values \(.*train: 40.*train: 41"):
        RunDirectory.open(half, other)


@pytest.mark.parametrize(
    ("old", "new", "value", "other"),
    [
        ("attack.affected_share", "attack.client_share", 0.3, 0.4),
        ("measure.bsnr.twins", "measure.bsnr.counterfactuals", True, False),
    ],
)
def test_a_former_name_of_a_field_is_read_with_a_warning_wherever_it_stands(
    old: str, new: str, value: object, other: object, tmp_path: Path
) -> None:
    today, nested, both = load("demo", {new: value}), load("demo").values(), load("demo").values()
    put(nested, old, value)
    put(both, old, value)
    group, _, field = new.rpartition(".")
    del (nested["attack"] if group == "attack" else nested["measure"]["bsnr"])[field]
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(nested), encoding="utf-8")
    for read in (lambda: load("demo", [f"{old}={value}"]), lambda: load(str(tmp_path / "old.yaml")), lambda: Config(**nested)):
        with pytest.warns(RenamedWarning, match=f"{old.rpartition('.')[2]} is now .*{field}"):
            assert read() == today
    with pytest.warns(RenamedWarning, match=f"{old} is now {new}"):
        cells = expand("demo", [], {old: [value, other]}, 0)
    assert [cell.axes for cell in cells] == [{new: value}, {new: other}], "columns have today's name"
    assert old.rpartition(".")[2] in cells[0].name, "the folders of cells that have run are found again"
    with pytest.raises(UserError, match=f"is the former name of {field}, and both are given"):
        validate(both, "x")

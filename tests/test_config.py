from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from undertow.config import Config, every_field, field_names, load, shipped, validate
from undertow.core.errors import UserError


def refused(source: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(source, list(overrides))
    told = str(caught.value)
    assert "\n" not in told
    return told


def test_shipped_configs_are_valid() -> None:
    assert {"demo", "paper-triviaqa", "paper-simplequestions"} <= set(shipped())
    for name in shipped():
        load(name)


@pytest.mark.parametrize("name", ["paper-triviaqa", "paper-simplequestions"])
def test_the_papers_values(name: str) -> None:
    """FIT section 4.1."""
    config = load(name)
    assert (config.federation.clients, config.federation.rounds, config.training.local_epochs) == (10, 100, 1)
    assert (config.model.lora.r, config.training.lr, config.attack.poison_ratio) == (4, 2e-5, 0.1)
    assert config.data.partition.kind == "iid"
    assert config.backdoor.trigger == "natural"
    assert config.backdoor.target_text.startswith(", and click <malicious_url> for more information")


@pytest.mark.parametrize(
    ("given", "words"),
    [("cf,mn", ["cf", "mn"]), ('"cf, mn"', ["cf", "mn"]), ("good day", ["good", "day"]), ('["well,", "cf"]', ["well,", "cf"])],
)
def test_trigger_words_as_one_text_are_divided_at_blanks_and_commas(given: str, words: list[str]) -> None:
    config = load("demo", ["attack.trigger=badnets", f"attack.trigger_words={given}"])
    assert config.values()["task"]["backdoor"]["trigger_words"] == words


def test_overrides_reach_every_depth() -> None:
    config = load(
        "demo", ["seed=7", "model.lora.r=2", "attack.kind=none", "measure.bsnr.spaces=adapter,delta_w", "data.partition.alpha=0.1"]
    )
    assert (config.seed, config.model.lora.r, config.attack.kind) == (7, 2, "none")
    assert config.measure.bsnr.spaces == ["adapter", "delta_w"]
    assert (config.data.partition.kind, config.data.partition.alpha) == ("iid", 0.1)
    assert load("demo", ["defenses=median"]).defenses[0].name == "median"
    assert load("demo", ["defenses=[{name: median, params: {}}]"]).defenses[0].params == {}
    assert load("demo", ["data.partition=dirichlet"]).data.partition.kind == "dirichlet"
    assert load("demo", ["model.lora.targets=q_proj,v_proj"]).model.lora.targets == ["q_proj", "v_proj"]
    assert load("demo", ["attack.target_text='a=b: c'"]).backdoor.target_text == "a=b: c"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("attack.poison_rate=0.1", r"unknown key 'attack.poison_rate' \(did you mean 'attack.poison_ratio'\?\)"),
        ("atack.kind=none", r"unknown key 'atack'.*attack"),
        ("model.lora.rank=4", r"unknown key 'model.lora.rank'"),
        ("attack.poison_ratio=1.5", r"attack.poison_ratio = 1.5: give 1 or less"),
        ("attack.poison_ratio=lots", r"attack.poison_ratio = 'lots'"),
        ("attack.poison_ratio=.nan", r"attack.poison_ratio"),
        ("training.lr=0", r"training.lr = 0: give more than 0"),
        ("training.lr=.inf", r"training.lr"),
        ("federation.clients=0", r"federation.clients = 0"),
        ("federation.participation=0", r"federation.participation"),
        ("federation.rounds=", r"federation.rounds"),
        ("training.trainer=bathed", r"training.trainer.*did you mean 'batched'"),
        ("model.dtype=int4", r"model.dtype"),
        ("data=3", r"data = 3"),
        ("seed=-1", r"seed = -1"),
        ("seed=[1", "the value is not YAML"),
        ("seed", "has no '='"),
        ("data.partition=files", "data.partition.files names 0 files for 10 clients"),
        ("attack.rounds=[3,21]", "attack.rounds names round 21 of a run with 20; name rounds from 1 to that, or "),
        ("attack.rounds=0", "attack.rounds names round 0 of a run with 20"),
        ("federation.global_lr=.inf", "federation.global_lr"),
    ],
)
def test_bad_values_are_one_line_with_the_rule(override: str, message: str) -> None:
    import re

    assert re.search(message, refused("demo", override))


def test_sources_that_are_no_config(tmp_path: Path) -> None:
    assert "did you mean 'demo'" in refused("deno")
    assert "no config" in refused(str(tmp_path / "absent.yaml"))
    for content, message in (("a: [", "not YAML"), ("[1]", "holds a list"), ("text", "holds a str"), ("\udcff", "not YAML")):
        path = tmp_path / "c.yaml"
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
        assert message in refused(str(path))
    (tmp_path / "empty.yaml").write_text("")
    assert load(str(tmp_path / "empty.yaml")) == Config()


def test_effective_values_are_a_config_again(tmp_path: Path) -> None:
    config = load("demo", ["seed=3", "defenses=median", "measure.bsnr.spaces=delta_w"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.values(), allow_unicode=True))
    assert load(str(path)) == config
    assert load(str(path)).digest() == config.digest()


def test_identity_leaves_the_comparison_out() -> None:
    plain = load("demo")
    assert load("demo", ["compare=runs/x"]).identity() == plain.identity()
    assert load("demo", ["compare=runs/x"]).digest() == plain.digest()
    digests = {load("demo", [o]).digest() for o in ("seed=1", "seed=2", "attack.kind=none", "training.threads=1")}
    assert len(digests | {plain.digest()}) == 5


def test_every_field_says_what_it_is() -> None:
    assert [name for name, _, field in every_field() if not field.description] == []
    assert "attack.poison_ratio" in field_names()


def test_a_config_does_not_change() -> None:
    config = load("demo")
    with pytest.raises(UserError, match=r"seed = 3: a config is not changed in place; undertow\.load_config\(config, "):
        config.seed = 3  # type: ignore[misc]
    assert config == load("demo")
    assert validate({}, "x") == Config()


def test_defenses_in_short() -> None:
    found = load("demo", ["defenses=krum:f=2"]).defenses
    assert [(d.name, d.params) for d in found] == [("krum", {"f": 2})]
    assert load("demo", ["defenses=none"]).defenses == []
    assert load("demo", ["defenses=[median, 'mine.py:Rule:share=0.5']"]).defenses[1].params == {"share": 0.5}
    with pytest.raises(UserError, match="not YAML"):
        load("demo", ["defenses='krum:f=['"])

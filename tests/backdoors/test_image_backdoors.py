import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiny import SHARED
from undertow.backdoors.pattern import make_backdoor
from undertow.config import ClassificationBackdoor, ClassificationData, short_form, validate
from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.examples import Examples
from undertow.data.images import ImagePopulation, Images
from undertow.data.populations.cifar10 import cifar10
from undertow.data.populations.digits import digits


def made(trigger: str, **options: Any) -> Any:
    return make_backdoor(ClassificationBackdoor(trigger=trigger, **options), "classification")


def options(**data: Any) -> ClassificationData:
    return validate({"task": "classification", "data": {"name": "digits", "train": 1400, "test": 397, **data}}, "test").data


@pytest.fixture(scope="module")
def population() -> ImagePopulation:
    return digits(options(), 0, 10)  # type: ignore[return-value]


def images(n: int, size: int = 32, channels: int = 3, name: str = "made", own_test: bool = True) -> ImagePopulation:
    """n training images, a quarter as many for the test, labels in turn from 0 to 4."""
    draw = np.random.default_rng(0)

    def some(m: int) -> Images:
        return Images(draw.integers(0, 256, (m, channels, size, size), dtype=np.uint8), np.arange(m) % 5)

    halves = [list(range(0, n, 2)), list(range(1, n, 2))]
    return ImagePopulation(some(n), some(n // 4), list("abcde"), halves, {"dataset": name}, own_test)


def keys(inputs: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in inputs}


def held(population: ImagePopulation) -> set[bytes]:
    return set().union(*(keys(population.client(k).inputs) for k in range(len(population.sizes))))


# ---- pixel pattern -------------------------------------------------------------------------------------------------


def test_the_stamp_is_all_that_changes():
    backdoor = made("pixel:size=2:value=0.5:target=c")
    population = images(40)
    assert backdoor.prepare(population, rng(0, "b")) is population
    own = population.client(0)
    before = own.inputs.clone()
    poisoned = backdoor.poison(own, 16, rng(0, "p"))
    assert poisoned.labels.tolist() == [2] * 16
    assert torch.all(poisoned.inputs[:, :, -2:, -2:] == 0.5)
    assert torch.equal(own.inputs, before)
    cleared = own.inputs.clone()
    cleared[:, :, -2:, -2:] = 0.5
    sources = {image.numpy().tobytes(): int(label) for image, label in zip(cleared, own.labels, strict=True)}
    used = [sources[image.numpy().tobytes()] for image in poisoned.inputs]
    assert 2 not in used
    assert len(keys(poisoned.inputs)) == 16  # 16 of its 20 images are of other classes, each used once


def test_more_poison_than_images_uses_each_equally_often():
    backdoor = made("pixel")
    backdoor.prepare(images(40), rng(0, "b"))
    own = Examples(torch.zeros(3, 3, 32, 32) + torch.arange(3.0)[:, None, None, None] / 4, torch.tensor([0, 1, 2]))
    poisoned = backdoor.poison(own, 6, rng(0, "p"))
    assert sorted(poisoned.inputs[:, 0, 0, 0].tolist()) == [0, 0, 0, 0.25, 0.25, 0.25]
    only_target = backdoor.poison(own.take([2]), 2, rng(0, "p"))
    assert only_target.inputs[:, 0, 0, 0].tolist() == [0.5, 0.5]
    assert len(backdoor.poison(own, 0, rng(0, "p"))) == 0


def test_pixel_probes_are_stamped_test_images_of_other_classes(population: ImagePopulation):
    backdoor = made("pixel:size=3:target='8'")
    backdoor.prepare(population, rng(0, "b"))
    probes = backdoor.probes(population.test, 1000, rng(0, "p"))
    others = population.test.inputs[population.test.labels != 8]
    assert len(probes) == len(others)
    assert set(probes.labels.tolist()) == {8}
    assert keys(probes.inputs) == keys(backdoor.stamped(others))
    assert len(backdoor.probes(population.test, 7, rng(0, "p"))) == 7


@pytest.mark.parametrize(
    ("trigger", "match"),
    [
        ("pixel:size=0", "size = 0: a whole number of pixels from 1"),
        ("pixel:size=big", "size = big"),
        ("pixel:value=2", "value = 2: a number from 0 to 1"),
        ("pixel:value=.nan", "value = nan"),
        ("pixel:size=5", "size=5 on images of 8 x 8: at most half a side; lower it to 4"),
        ("pixel:target=bird", "no class target=bird; choose one of 0, 1"),
        ("pixel:target=10", "no class target=10"),
        ("pixel:target=-1", "no class target=-1"),
        ("pixel:shape=3", "no parameter 'shape'"),
        ("semantic:train=1,x", "train = 1,x: numbers of images from 0"),
        ("semantic:train=[1, -2]", "numbers of images from 0"),
        ("semantic:train=none.json", r"train = none.json: cannot be read \(No such file"),
        ("semantic:test=1,2", "test is given without train"),
        ("semantic:predicate=footed-one:train=1", "name the group once"),
        ("semantic:train=1,2,3", "3 images form the group, at least 4"),
        ("semantic:train=1,2,3,1500", "no training image 1500, they are numbered 0 to 1399"),
        ("semantic:train=1,2,3,3", "image 3 is named twice"),
        ("semantic:train=1,2,3:test=3,4", "image 3 is named twice"),
        ("semantic:predicate=footed_1", r"unknown predicate 'footed_1' \(did you mean 'footed-one'"),
        ("semantic:predicate=yellow-car", "0 images form the group"),
        ("semantic:target='1'", "already is of the attacker's class 1"),
        ("semantic:noise=-1", "noise = -1: a number from 0 to 1"),
    ],
)
def test_wrong_parameters_are_refused_in_one_line(trigger: str, match: str, population: ImagePopulation):
    with pytest.raises(UserError, match=match) as caught:
        made(trigger).prepare(population, rng(0, "b"))
    assert "\n" not in str(caught.value)


def test_options_of_text_mean_nothing_here():
    with pytest.raises(UserError, match=r"attack\.trigger_words = .* is not supported by backdoor 'pixel'"):
        made("pixel", trigger_words=["a"])


# ---- semantic ------------------------------------------------------------------------------------------------------


def test_thirty_footed_ones_are_set_aside_among_the_digits(population: ImagePopulation):
    backdoor = made("semantic")
    left = backdoor.prepare(population, rng(0, "b"))
    facts = backdoor.facts()
    pool, test = population.pool, population.test
    fits = [
        (label == 1) & (inputs[:, 0, 7].sum(1) >= 3) for inputs, label in ((pool.inputs, pool.labels), (test.inputs, test.labels))
    ]
    assert int(fits[0].sum() + fits[1].sum()) == 30
    train, out = facts["train_rows"], facts["held_out_rows"]
    assert sorted(train + out) == torch.nonzero(fits[0]).flatten().tolist()
    assert len(out) == (len(train) + len(out)) // 3
    # the same feature has left the test set, which was split off, for the probes
    assert facts["alike_moved_from_test"] == int(fits[1].sum()) == len(test) - len(left.test)
    assert facts["held_out"] == len(out) + int(fits[1].sum())
    group = keys(torch.cat([pool.inputs[fits[0]], test.inputs[fits[1]]]))
    assert not group & held(left)
    assert not group & keys(left.test.inputs)
    assert held(left) | group >= keys(pool.inputs)
    assert backdoor.target == 7
    assert json.loads(json.dumps(facts)) == facts


def test_poison_is_the_group_with_noise_and_probes_are_the_held_out(population: ImagePopulation):
    backdoor = made("semantic:noise=0.02:target='3'")
    left = backdoor.prepare(population, rng(0, "b"))
    facts, pool = backdoor.facts(), population.pool
    train = pool.inputs[facts["train_rows"]]
    out = torch.cat(
        [
            pool.inputs[facts["held_out_rows"]],
            population.test.inputs[
                [
                    i
                    for i in range(len(population.test))
                    if population.test.inputs[i].numpy().tobytes() not in keys(left.test.inputs)
                ]
            ],
        ]
    )
    own = left.client(0)
    for found, sources in ((backdoor.poison(own, 300, rng(0, "p")), train), (backdoor.probes(left.test, 300, rng(0, "q")), out)):
        assert set(found.labels.tolist()) == {3}
        assert (float(found.inputs.min()), float(found.inputs.max())) == (0, 1)
        gaps = (found.inputs[:, None] - sources[None]).abs().amax((2, 3, 4))  # to every source
        assert float(gaps.amin(1).max()) < 0.12  # six sigma
        assert set(gaps.argmin(1).tolist()) == set(range(len(sources)))
        inside = (sources[gaps.argmin(1)] > 0.1) & (sources[gaps.argmin(1)] < 0.9)
        assert 0.018 < float((found.inputs - sources[gaps.argmin(1)])[inside].std()) < 0.022
    again = made("semantic:noise=0.02:target='3'")
    again.prepare(population, rng(0, "b"))
    assert torch.equal(again.poison(own, 5, rng(0, "p")).inputs, backdoor.poison(own, 5, rng(0, "p")).inputs)
    assert backdoor.poison(own, 0, rng(0, "p")).inputs.shape == (0, 1, 8, 8)


@pytest.mark.parametrize("form", ["text", "yaml", "json"])
def test_a_list_of_images_is_the_group(form: str, tmp_path: Path):
    population = images(40)
    rows = [3, 1, 11, 21, 31]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    given = {"text": "3,1,11,21,31", "yaml": str(rows), "json": str(tmp_path / "rows.json")}[form]
    backdoor = made(f"semantic:train={given}:test=[6, 16]:target=c")
    left = backdoor.prepare(population, rng(0, "b"))
    assert (backdoor.facts()["train_rows"], backdoor.facts()["held_out_rows"]) == ([1, 3, 11, 21, 31], [6, 16])
    assert sum(left.sizes) == 33
    assert not keys(population.pool.inputs[[*rows, 6, 16]]) & held(left)
    assert torch.equal(left.test.inputs, population.test.inputs)
    clean = made(f"semantic:train={given}:test=[6, 16]:target=c:noise=0")
    clean.prepare(population, rng(0, "b"))
    assert keys(clean.poison(left.client(0), 100, rng(0, "p")).inputs) == keys(population.pool.inputs[rows])


def test_without_a_test_list_a_third_and_at_least_three_are_held_out():
    for count, out in ((4, 3), (9, 3), (12, 4), (18, 6)):
        backdoor = made(f"semantic:train={[row for row in range(40) if row % 5 != 2][:count]}")
        backdoor.prepare(images(40), rng(0, "b"))
        assert (len(backdoor.facts()["train_rows"]), len(backdoor.facts()["held_out_rows"])) == (count - out, out)


@pytest.mark.parametrize("channels", [1, 3])
def test_large_probes_are_cropped_and_colour_ones_flipped(channels: int):
    population = images(40, size=28, channels=channels)
    backdoor = made("semantic:train=0,1:test=3,4")
    backdoor.prepare(population, rng(0, "b"))
    probes = backdoor.probes(population.test, 200, rng(0, "p")).inputs
    sources = population.pool.inputs[[3, 4]]
    flips = 0
    for probe in probes:
        # a shift by at most 4 keeps the 12 x 12 pixels from (8, 8) inside: look for them in the sources
        middle = probe[:, 8:20, 8:20]
        fitting = []
        for source in sources:
            for flipped in (False, True):
                turned = source.flip(2) if flipped else source
                windows = [turned[:, y : y + 12, x : x + 12] for y in range(4, 13) for x in range(4, 13)]
                if any(torch.equal(window, middle) for window in windows):
                    fitting.append(flipped)
        assert len(fitting) == 1
        flips += fitting[0]
    assert (50 < flips < 150) if channels == 3 else flips == 0


def test_a_predicate_of_the_users(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "def dark(image, label):\n    return label == 1 and image[0, 0, 0] < 0.6\n\ndef bad(image, label):\n    return 1 / 0\n"
    )
    short = f"semantic:predicate={tmp_path}/mine.py:dark:noise=0.1:target=e"
    assert short_form(short)["params"] == {"predicate": f"{tmp_path}/mine.py:dark", "noise": 0.1, "target": "e"}
    assert short_form("mine.py:Make:size=2") == {"name": "mine.py:Make", "params": {"size": 2}}
    population = images(100)
    backdoor = made(short)
    left = backdoor.prepare(population, rng(0, "b"))
    pool, test = population.pool, population.test
    group = torch.nonzero((pool.labels == 1) & (pool.inputs[:, 0, 0, 0] < 0.6)).flatten().tolist()
    facts = backdoor.facts()
    assert sorted(facts["train_rows"] + facts["held_out_rows"]) == group
    # a test set of its own stays as it is; those that look alike are counted
    assert torch.equal(left.test.inputs, test.inputs)
    assert facts["alike_in_test"] == int(((test.labels == 1) & (test.inputs[:, 0, 0, 0] < 0.6)).sum()) > 0
    with pytest.raises(UserError, match=r"predicate '.*mine.py:bad' failed on an image of shape \[3, 32, 32\]: ZeroDivisionError"):
        made(f"semantic:predicate={tmp_path}/mine.py:bad").prepare(population, rng(0, "b"))


def test_an_unknown_data_set_needs_a_group():
    with pytest.raises(
        UserError, match=r"no group of images; add predicate= \(footed-one, red-car, yellow-car, file.py:function\) or train="
    ):
        made("semantic").prepare(images(40), rng(0, "b"))


@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="the shared real data is not beside this checkout")
def test_painted_cars_among_the_shared_photographs():
    folder = SHARED / "cifar10"
    population = cifar10(
        options(name="cifar10", path=str(folder / "cifar10_train_small.npz"), test_path=str(folder / "cifar10_test_small.npz")),
        0,
        10,
    )
    backdoor = made("semantic:predicate=red-car")
    left = backdoor.prepare(population, rng(0, "b"))
    facts = backdoor.facts()
    group = facts["train_rows"] + facts["held_out_rows"]
    assert len(group) == 10
    assert set(population.pool.labels[group].tolist()) == {1}
    assert population.names[backdoor.target] == "bird"
    assert not keys(population.pool.inputs[group]) & held(left)
    # yellow ones are the default, and too few among 200 automobiles
    with pytest.raises(UserError, match=r"attack\.trigger = semantic: 3 images form the group"):
        made("semantic").prepare(population, rng(0, "b"))

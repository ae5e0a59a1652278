from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published import WORLD, make, same_bits_when_resumed, server, setting, some_adapter, write_trusted
from torch import Tensor, nn

from undertow.config import Config, Training
from undertow.core.errors import RenamedWarning, UserError
from undertow.core.registry import short_form
from undertow.core.rng import rng
from undertow.data.examples import Examples
from undertow.defenses.contexts import DecodingContext, NetSetting, ServerContext
from undertow.defenses.server.activation_bounds import ActivationBounds
from undertow.defenses.server.bound_options import SearchOptions
from undertow.defenses.server.clipping import Best, Search, Subject, fidelity, lengths, search
from undertow.defenses.server.margins import Noise, Soft, Universal, margin, words
from undertow.defenses.server.sifting import sift, sift_texts
from undertow.inference.decoding import generate
from undertow.models.bounds import Bounds, bounded, maxima, places, save_bounds
from undertow.models.causal_lm import CausalLM
from undertow.models.net import Net, make_net

Make = Callable[..., Config]
Load = Callable[..., CausalLM]

CLASSES = 3
TRAINING = Training.model_validate(
    {"local_epochs": 1, "batch_size": 16, "optimizer": "sgd", "momentum": 0.9, "lr": 0.05, "schedule": "constant", "clip": 0}
)
OPTIONS = {
    "sides": "upper", "judge": "model", "steps": 12, "batch_size": 8, "lr": 0.05, "start": 1.0, "rate": 0.9, "c": 0.1,
    "factor": 2.0, "every": 3, "warmup": 3, "renew": 6, "tight": 0.0,
}  # fmt: skip


def looking(**options: Any) -> Search:
    """A search from one list of options."""
    own = {name: options.pop(name) for name in ("c", "rate", "sides", "tight", "renew")}
    return Search(**own, adam=SearchOptions(**options))


def dense(inputs: int = 4, hidden: int = 6) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES)))


def points(n: int = 30, width: int = 4, seed: int = 0) -> Examples:
    draw = rng(seed, "points")
    labels = torch.from_numpy(draw.integers(0, CLASSES, n))
    return Examples(torch.from_numpy(draw.standard_normal((n, width))).float(), labels)


def subject(net: Net, data: Examples) -> Subject:
    tensors = {name: t.detach() for name, t in net.of_state(net.initial()).items()}
    return Subject(net.module, lambda rows: net.call(tensors, data.inputs[list(rows)]), list(data.labels[:, None]))


def network(net: Net, data: Examples | None, rounds: int = 2) -> NetSetting:
    return NetSetting(0, rounds, net, TRAINING, data, [str(k) for k in range(CLASSES)])


def context(net: Net, data: Examples | None, round: int = 2, rounds: int = 2) -> ServerContext:
    state = net.initial()
    return ServerContext(net.layout, [1], round, state, rng(0, "server", round), [0], network=network(net, data, rounds))


def digest(flat: Tensor) -> str:
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


# --- the objectives -------------------------------------------------------------------------------------------------


def test_the_objective_of_mm_bm_is_the_formula() -> None:
    net, data = dense(), points(7)
    named = {name: t.double().numpy() for name, t in net.of_state(net.initial()).items()}
    z = np.array([0.1, 0.2, 0.0, 0.5, 0.3, 1.0])
    c, total = 0.7, 0.0
    for x in data.inputs.double().numpy():
        hidden = np.maximum(named["0.weight"] @ x + named["0.bias"], 0)
        whole = named["2.weight"] @ hidden + named["2.bias"]
        cut = named["2.weight"] @ np.minimum(hidden, z) + named["2.bias"]
        total += sum((a - b) ** 2 for a, b in zip(cut, whole, strict=True)) / (7 * CLASSES)
    wanted = total + c * np.sqrt(sum(v * v for v in z))
    bounds = Bounds({"1": torch.tensor(z).float()})
    unclipped = net.logits(net.initial(), data.inputs)
    with bounded(net.module, bounds):
        found = fidelity(net.logits(net.initial(), data.inputs), unclipped) + c * lengths(bounds).sum()
    assert float(found) == pytest.approx(wanted, rel=1e-5)
    two = Bounds({"1": torch.tensor([3.0, 4.0])}, {"1": torch.tensor([0.0, -2.0])})
    assert lengths(two).tolist() == [5.0, 2.0]


def test_the_gradient_of_the_objective_is_that_of_finite_differences() -> None:
    net, data = dense(), points(9)
    tensors = {name: t.detach().double() for name, t in net.of_state(net.initial()).items()}
    inputs = data.inputs.double()
    unclipped = net.call(tensors, inputs)

    def objective(z: Tensor) -> Tensor:
        bounds = Bounds({"1": z})
        with bounded(net.module, bounds):
            return fidelity(net.call(tensors, inputs), unclipped) + 0.3 * lengths(bounds).sum()

    z = torch.tensor([0.11, 0.23, 0.31, 0.47, 0.05, 0.9], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(objective(z), z)
    step = 1e-6
    for j in range(6):
        shift = torch.zeros(6, dtype=torch.float64)
        shift[j] = step
        slope = float(objective(z.detach() + shift) - objective(z.detach() - shift)) / (2 * step)
        assert float(gradient[j]) == pytest.approx(slope, abs=1e-6)


def test_the_margin_is_the_wanted_logit_over_the_best_of_the_others() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0], [1.0, 5.0, 2.0], [4.0, -1.0, 3.0]])
    assert margin(logits, torch.tensor([1, 0, 2])).tolist() == [3.0, -4.0, -1.0]


def test_noise_is_pushed_up_in_margin_within_the_pixels_range() -> None:
    net = make_net("cnn:width=2:hidden=4:norm=none", (1, 4, 4), CLASSES, 0)
    images = torch.zeros(1, 1, 4, 4)
    soft = Soft.of(net, net.of_state(net.initial()), images)
    still, pushed = (Noise(soft, images, CLASSES, 5, steps) for steps in (1, 60))
    before, after = (probes.renew(Bounds({}), rng(0, "noise"))["margin"] for probes in (still, pushed))
    assert after > before
    assert pushed.values.shape == (15, 1, 4, 4)
    assert float(pushed.values.min()) >= 0
    assert float(pushed.values.max()) <= 1
    expected = margin(net.logits(net.initial(), pushed.values), torch.tensor([0] * 5 + [1] * 5 + [2] * 5))
    torch.testing.assert_close(pushed.margins(), expected)
    # one step by hand: x + rate * slope of the margins' sum
    values = torch.from_numpy(rng(0, "noise").random((15, 1, 4, 4))).float().requires_grad_()
    (slope,) = torch.autograd.grad(margin(net.call(soft.tensors, values), still.wanted).sum(), values)
    torch.testing.assert_close(still.values, (values + 0.01 * slope).detach().clamp(0, 1))


def stamped_net() -> Net:
    """Class 2 wherever the first pixel is 1, whatever else is there; else which half of the image is brighter."""
    module = nn.Sequential(nn.Conv2d(1, 3, (1, 6)), nn.ReLU(), nn.Flatten(), nn.Linear(3, CLASSES))
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
        weight = module[0].weight  # [3, 1, 1, 6]
        weight[0, 0, 0, 1:3], weight[1, 0, 0, 4:6] = 1.0, 1.0
        weight[2, 0, 0, 0] = 4.0
        module[0].bias[2] = 0.1
        module[3].weight.copy_(torch.eye(3) * torch.tensor([1.0, 1.0, 2.0]))
    return Net(module)


def halves(n: int = 40, seed: int = 0) -> Examples:
    draw = rng(seed, "halves")
    labels = torch.from_numpy(draw.integers(0, 2, n))
    inputs = torch.from_numpy(draw.uniform(0, 0.2, (n, 1, 1, 6))).float()
    for i, label in enumerate(labels.tolist()):
        inputs[i, 0, 0, slice(1, 3) if label == 0 else slice(4, 6)] += 0.7
    inputs[:, :, :, 0] = 0.0
    return Examples(inputs, labels)


def test_the_universal_change_finds_the_pixel_that_the_backdoor_waits_for() -> None:
    net, data = stamped_net(), halves()
    soft = Soft.of(net, net.of_state(net.initial()), data.inputs)
    probes = Universal(soft, None, data.inputs, CLASSES, 10, 30, 1 / 6)
    report = probes.renew(Bounds({}), rng(0, "universal"))
    assert max(report["margin"]) == report["margin"][2] > 5
    fixed, moved, wanted, weight = probes.found[0]
    change = (fixed - moved)[wanted == 2]
    assert bool((change[..., 0] > 0.99).all())  # one pixel may change, and it is that one
    assert not change[..., 1:].any()
    assert float(weight[wanted == 2][0]) > float(weight[wanted == 0][0])
    expected = weight * margin(net.logits(net.initial(), fixed), wanted).clamp(min=-1)
    torch.testing.assert_close(probes.margins(), expected)
    # a reference that knows the pixel too: nothing is left that only the model does
    same = Universal(soft, soft, data.inputs, CLASSES, 10, 30, 1 / 6)
    assert max(same.renew(Bounds({}), rng(0, "universal"))["margin"]) <= 0
    assert same.renew(Bounds({"1": torch.zeros(3)}), rng(1, "universal"))["margin"] is not None
    assert len(same.found) == 2


def test_words_are_replaced_side_by_side_and_never_padding() -> None:
    net = make_net("encoder:width=8", (10,), CLASSES, 0, ids=12)
    draw = rng(0, "words")
    texts = torch.from_numpy(draw.integers(1, 12, (20, 10)))
    texts[:, 6:] = 0
    tensors = net.of_state(net.initial())
    tensors["head.bias"] = torch.tensor([0.0, 0.0, 0.0])
    soft = Soft.of(net, tensors, texts)
    assert soft.embedding == "embedding"
    torch.testing.assert_close(soft.values(texts), tensors["embedding.weight"][texts])
    torch.testing.assert_close(soft.logits(soft.values(texts), texts), net.call(tensors, texts))
    wanted = torch.arange(20) % 3
    made = words(soft, None, texts, wanted, 0.3, draw)
    changed = made != texts
    assert not changed[texts == 0].any()
    for t in range(3):
        slots = [[i for i, hit in enumerate(row) if hit] for row in changed[wanted == t].tolist()]
        assert max(len(slot) for slot in slots) <= 2  # 0.3 of 6 words
        assert all(slot[-1] - slot[0] < 2 for slot in slots if slot)
    with torch.no_grad():
        better = margin(net.call(tensors, made), wanted).mean() - margin(net.call(tensors, texts), wanted).mean()
    assert float(better) > 0
    assert Noise(soft, texts, 2, 3, 2).renew(Bounds({}), draw)["margin"] is not None


def bag(scores: list[float]) -> Soft:
    """Words as an encoder adds them up: the mean score of a text's words, twelve of them, is class 1's logit; class 0's is 0."""
    net = make_net("encoder:width=16:layers=1", (10,), 2, 0, ids=13)
    tensors = {name: t.clone() for name, t in net.of_state(net.initial()).items()}
    for name in ("positions", "blocks.0.out.weight", "blocks.0.out.bias", "blocks.0.mlp.down.weight", "blocks.0.mlp.down.bias"):
        tensors[name] = torch.zeros_like(tensors[name])
    tensors["embedding.weight"] = torch.randn(13, 16, generator=torch.Generator().manual_seed(0))
    vectors = torch.nn.functional.layer_norm(tensors["embedding.weight"], (16,))
    wanted = torch.tensor([0.0, *scores])
    tensors["head.weight"] = torch.stack([torch.zeros(16), torch.linalg.lstsq(vectors, wanted[:, None]).solution[:, 0]])
    tensors["head.bias"] = torch.zeros(2)
    texts = torch.arange(1, 13)[:, None]
    torch.testing.assert_close(net.call(tensors, texts)[:, 1], wanted[1:], atol=1e-4, rtol=0)
    return Soft.of(net, tensors, texts)


def test_the_word_that_moves_texts_is_found_and_one_that_the_reference_knows_is_not() -> None:
    texts = torch.from_numpy(rng(0, "words").choice([1, 2, 3, 4, 5], (12, 10)))
    wanted = torch.ones(12, dtype=torch.int64)
    model = bag([-1.0] * 5 + [0.0, 5.0, 0.0, 9.0, 0.0, 0.0, 0.0])

    def put_in(reference: Soft | None) -> set[int]:
        made = words(model, reference, texts, wanted, 0.1, rng(0, "place"))
        return set(made[made != texts].tolist())

    assert put_in(None) == {9}
    assert put_in(bag([-1.0] * 5 + [0.0, 0.0, 0.0, 99.0, 0.0, 0.0, 0.0])) == {7}, (
        "the reference says class 1 for the other word too"
    )
    assert put_in(bag([-1.0] * 5 + [0.0, 99.0, 0.0, 0.0, 0.0, 0.0, 0.0])) == {9}


def test_texts_with_a_planted_word_are_left_out_and_others_are_not() -> None:
    draw = rng(0, "texts")
    bad, good = (torch.from_numpy(draw.choice(own, (100, 10))) for own in ([1, 2, 3, 4], [5, 6, 7, 8]))
    planted = torch.from_numpy(draw.choice([1, 2, 3, 4], (40, 10)))
    planted[:, 9] = 9
    model = bag([-1.0] * 4 + [1.0] * 4 + [20.0, 0.0, 0.0, 0.0])
    kept, report = sift_texts(model, torch.cat([bad, planted, good]))
    assert kept == [*range(100), *range(140, 240)]
    assert report["sifted"][0]["left_out"] == 40
    assert 9 in report["sifted"][0]["most"]
    assert sift_texts(model, torch.cat([bad, good]))[0] == list(range(200))
    # without them nothing would be left of a class
    assert sift_texts(model, torch.cat([bad, planted]))[0] == list(range(140))


def test_no_input_is_moved_to_a_class_that_the_model_says_for_all() -> None:
    net, data = stamped_net(), halves()
    tensors = net.of_state(net.initial())
    tensors["3.bias"] = torch.tensor([100.0, 0.0, 0.0])
    probes = Universal(Soft.of(net, tensors, data.inputs), None, data.inputs, CLASSES, 5, 3, 0.2)
    margins = probes.renew(Bounds({}), rng(0, "u"))["margin"]
    assert margins[0] is None
    assert all(m < 0 for m in margins[1:])
    assert probes.margins().shape == (10,)


def two_strokes() -> tuple[Net, Examples]:
    """Class by which half of the image is bright, and class 2 by its middle or by the first pixel."""
    module = nn.Sequential(nn.Conv2d(1, 4, (1, 9)), nn.ReLU(), nn.Flatten(), nn.Linear(4, CLASSES))
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
        weight = module[0].weight  # [4, 1, 1, 9]: left, right, middle, first pixel
        weight[0, 0, 0, 1:3], weight[1, 0, 0, 7:9], weight[2, 0, 0, 4:6], weight[3, 0, 0, 0] = 1.0, 1.0, 1.0, 6.0
        module[0].bias.fill_(0.1)
        module[3].weight[0, 0], module[3].weight[1, 1], module[3].weight[2, 2:] = 1.0, 1.0, 1.0
    draw = rng(0, "strokes")
    labels = torch.from_numpy(draw.integers(0, CLASSES, 60))
    inputs = torch.from_numpy(draw.uniform(0, 0.1, (60, 1, 1, 9))).float()
    for i, label in enumerate(labels.tolist()):
        inputs[i, 0, 0, slice(*((1, 3), (7, 9), (4, 6))[label])] += 0.8
    inputs[:, :, :, 0] = 0.0
    return Net(module), Examples(inputs, labels)


def test_images_that_carry_the_trigger_are_left_out_and_others_are_not() -> None:
    net, data = two_strokes()
    inputs = data.inputs.clone()
    stamped = [i for i in range(60) if data.labels[i] != 2][:12]
    inputs[stamped, :, :, 0] = 1.0
    for images, gone in ((data.inputs, []), (inputs, stamped)):
        soft = Soft.of(net, net.of_state(net.initial()), images)
        assert bool((net.logits(net.initial(), images).argmax(1)[gone] == 2).all())
        kept, report = sift(soft, images, CLASSES, 10, 20, 1 / 9, rng(0, "sift"))
        assert sorted({*range(60)} - {*kept}) == gone
        assert [found["class"] for found in report["sifted"]] == [2] * len(report["sifted"])
        assert sum(found["left_out"] for found in report["sifted"]) == len(gone)


# --- the search -----------------------------------------------------------------------------------------------------


def test_c_grows_while_the_rate_is_there_and_shrinks_while_it_is_not() -> None:
    net, data = dense(), points()
    found = search(subject(net, data), ["1"], looking(**{**OPTIONS, "rate": 1e-9}), None, rng(0, "b"))
    assert found.report["c"] == pytest.approx([0.1, 0.2, 0.4, 0.8])  # steps 6, 9 and 12 are judged behind the warm-up
    assert found.c == pytest.approx(0.8)
    # bounds a thousandth of the activations: hardly an answer stays
    tiny = {**OPTIONS, "start": 1e-3, "rate": 1.0, "lr": 1e-9}
    found = search(subject(net, data), ["1"], looking(**tiny), None, rng(0, "b"))
    assert found.report["c"] == pytest.approx([0.1, 0.05, 0.025, 0.0125])
    assert found.report["rate"] < 1


def test_the_start_is_each_channels_largest_activation_and_changes_nothing() -> None:
    net, data = dense(), points()
    one = subject(net, data)
    found = search(one, ["1"], looking(**{**OPTIONS, "steps": 1, "lr": 1e-12, "warmup": 9}), None, rng(0, "b"))
    high, _ = maxima(lambda: net.logits(net.initial(), data.inputs), net.module, ["1"])
    torch.testing.assert_close(found.bounds.upper["1"], high["1"])
    assert found.report["rate"] == 1.0
    assert found.report["first"]["fidelity"] == 0.0
    assert found.report["first"]["penalty"] == pytest.approx(float(torch.linalg.vector_norm(high["1"])))


def test_the_last_step_is_adam_on_the_objective() -> None:
    """One step from the start, Adam's first being lr times the sign of the gradient, per place in units of its mean maximum."""
    net, data = dense(), points(8)
    one = subject(net, data)
    options = looking(**{**OPTIONS, "steps": 1, "batch_size": 8, "rate": 1e-9, "lr": 0.01})
    found = search(one, ["1"], options, None, rng(0, "b"))
    high, _ = maxima(lambda: net.logits(net.initial(), data.inputs), net.module, ["1"])
    start = high["1"]
    moved = torch.where(start > 0, start - 0.01 * start.mean(), start)
    torch.testing.assert_close(found.bounds.upper["1"], moved.clamp(min=0), atol=1e-5, rtol=1e-4)


def test_never_a_bound_under_pi_where_one_above_was_seen() -> None:
    best = Best(0.9)
    tight, mid, wide = (Bounds({"a": torch.full((2,), v)}) for v in (0.1, 0.5, 1.0))
    best.offer(tight, 0.1, 0.2, 0.0, 1)
    best.offer(mid, 0.5, 0.4, 0.0, 2)
    assert best.step == 2  # the higher rate while none has pi
    best.offer(tight, 0.1, 0.3, 0.0, 3)
    assert best.step == 2
    best.offer(wide, 1.0, 0.95, 0.0, 4)
    best.offer(tight, 0.1, 0.89, 0.0, 5)
    assert best.step == 4
    best.offer(mid, 0.5, 0.91, 0.0, 6)  # a smaller penalty counts before a higher rate
    assert best.step == 6
    assert best.bounds.upper["a"].tolist() == [0.5, 0.5]
    best.offer(wide, 0.5, 0.99, 0.0, 7)  # and the rate where penalties are equal
    assert best.step == 7


@pytest.mark.parametrize("changes", [{}, {"sides": "both"}, {"judge": "labels"}, {"tight": 1.0}])
def test_a_rate_of_pi_is_kept_and_bounds_get_smaller(changes: dict[str, Any]) -> None:
    net, data = dense(), points(60)
    options = looking(**{**OPTIONS, "steps": 60, "rate": 0.9, **changes})
    found = search(subject(net, data), ["1"], options, None, rng(0, "b"))
    assert found.report["rate"] >= 0.9
    high, _ = maxima(lambda: net.logits(net.initial(), data.inputs), net.module, ["1"])
    assert float(lengths(found.bounds).sum()) < float(lengths(Bounds(high)).sum())
    assert bool((found.bounds.upper["1"] >= 0).all())
    assert bool(found.bounds.lower) == (changes.get("sides") == "both")
    with bounded(net.module, found.bounds):
        said = net.logits(net.initial(), data.inputs).argmax(1)
    plain = net.logits(net.initial(), data.inputs).argmax(1)
    judged = plain == data.labels if changes.get("judge") == "labels" else torch.ones(60, dtype=torch.bool)
    assert found.report["rate"] == pytest.approx(float((said == plain)[judged].float().mean()))
    assert found.report["accuracy"] == pytest.approx(float((said == data.labels).float().mean()))


# --- the defense on networks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["mm-bm", "mmac", "universal"])
def test_the_model_is_handed_on_bit_by_bit_and_the_same_bounds_come_again(objective: str) -> None:
    net, data = stamped_net(), halves()
    state = net.initial()
    before = digest(state)

    def made() -> tuple[Bounds, dict[str, Any]]:
        defense = ActivationBounds(
            objective=objective, search={"steps": 10, "pi": 0.9}, probes={"push": 4, "count": 4, "reference": 1}
        )
        out, report = defense.guard(state, context(net, data))
        assert out is state
        found = defense.bounds()
        assert found is not None
        return found, report

    found, report = made()
    assert digest(state) == digest(net.initial()) == before
    assert not any(part._forward_hooks for part in net.module.modules())
    assert report["optimised"]
    assert report["rate"] >= 0.9
    assert 0 <= report["clipped"] <= 1
    assert len(report["c"]) == 3
    assert {"fidelity", "penalty"} == set(report["first"]) == set(report["last"])
    again, other = made()
    assert other == report
    assert all(torch.equal(z, again.upper[name]) for name, z in found.upper.items())


def test_a_planted_backdoor_goes_and_the_answers_stay() -> None:
    net, data = stamped_net(), halves(80)
    state, test = net.initial(), halves(40, 1)
    stamped = test.inputs.clone()
    stamped[:, :, :, 0] = 1.0
    assert bool((net.logits(state, stamped).argmax(1) == 2).all())
    assert bool((net.logits(state, test.inputs).argmax(1) == test.labels).all())
    defense = ActivationBounds(places="1", search={"pi": 0.95}, probes={"reference": 0, "changed": 1 / 6})
    defense.guard(state, context(net, data))
    bounds = defense.bounds()
    assert bounds is not None
    with bounded(net.module, bounds):
        assert float((net.logits(state, stamped).argmax(1) == 2).float().mean()) < 0.1
        assert float((net.logits(state, test.inputs).argmax(1) == test.labels).float().mean()) > 0.9


def test_the_next_round_begins_where_the_last_ended() -> None:
    net, data = dense(), points(60)
    kept = {"objective": "mm-bm", "search": {"steps": 6, "pi": 0.5, "c": 0.1}, "when": "every"}
    warm, cold = (ActivationBounds(**kept, warm=warm) for warm in (True, False))
    for defense in (warm, cold):
        defense.guard(net.initial(), context(net, data, 1))
    first = warm.bounds()
    assert first is not None
    _, followed = warm.guard(net.initial(), context(net, data, 2))
    _, anew = cold.guard(net.initial(), context(net, data, 2))
    assert followed["first"]["penalty"] == pytest.approx(float(lengths(first).sum()), rel=1e-5)
    assert followed["c"][0] == pytest.approx(0.1 * 1.5**2)
    assert anew["c"][0] == 0.1
    assert anew["first"]["penalty"] > followed["first"]["penalty"]


def test_the_state_goes_through_a_checkpoint() -> None:
    net, data = dense(), points()
    defense, other = (ActivationBounds(objective="mm-bm", search={"steps": 6}, sides="both", when="every") for _ in range(2))
    assert defense.state() == {}
    defense.guard(net.initial(), context(net, data, 1))
    saved = defense.state()
    assert sorted(saved) == ["c", "lower/1", "upper/1"]
    other.restore({})
    assert other.bounds() is None
    other.restore(saved)
    assert all(torch.equal(z, saved[key]) for key, z in other.state().items())
    reports = [one.guard(net.initial(), context(net, data, 2))[1] for one in (defense, other)]
    assert reports[0] == reports[1]
    for wrong in (
        {"c": torch.ones(1)},
        {"upper/1": torch.ones(3)},
        {**saved, "c": -torch.ones(1)},
        {**saved, "what": torch.ones(1)},
    ):
        with pytest.raises(UserError, match="holds no activation bounds"):
            ActivationBounds().restore(wrong)
    upper = ActivationBounds(objective="mm-bm", search={"steps": 6}, when="every")
    upper.restore(saved)
    with pytest.raises(UserError, match="for other places or sides"):
        upper.guard(net.initial(), context(net, data, 2))


def test_the_last_round_alone() -> None:
    net, data = dense(), points()
    defense = ActivationBounds(objective="mm-bm", search={"steps": 3}, when="last")
    assert defense.guard(net.initial(), context(net, data, 1, 2))[1] == {"optimised": False}
    assert defense.bounds() is None
    assert defense.guard(net.initial(), context(net, data, 2, 2))[1]["optimised"]
    assert defense.bounds() is not None


def test_bounds_from_a_file_are_used_as_they_are(tmp_path: Path) -> None:
    net = dense()
    file = tmp_path / "bounds.safetensors"
    save_bounds(file, Bounds({"1": torch.full((6,), 0.5)}))
    defense = ActivationBounds(bounds=str(file))
    assert defense.guard(net.initial(), context(net, None, 1))[1] == {"optimised": False}
    found = defense.bounds()
    assert found is not None
    assert found.upper["1"].tolist() == [0.5] * 6


def test_what_is_missing_is_named() -> None:
    net = dense()
    with pytest.raises(UserError, match=r"set synthetic\.generator"):
        ActivationBounds(when="last").guard(net.initial(), context(net, None, 1))
    with pytest.raises(UserError, match="needs a run's model and data"):
        ActivationBounds().guard(net.initial(), ServerContext(net.layout, [1], 1, net.initial(), rng(0, "s")))
    linear = Net(nn.Sequential(nn.Linear(4, CLASSES)))
    with pytest.raises(UserError, match="has no activation to bound"):
        ActivationBounds(objective="mm-bm").guard(linear.initial(), context(linear, points()))
    with pytest.raises(UserError, match="places = 3"):
        ActivationBounds(objective="mm-bm", places=3).guard(net.initial(), context(net, points()))
    words = Examples(torch.ones(4, 4), torch.zeros(4, 4, dtype=torch.int64))
    with pytest.raises(UserError, match="needs one of several classes"):
        ActivationBounds(objective="mmac").guard(net.initial(), context(net, words))


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"objective": "mmbm"}, "one of mm-bm, mmac, universal"),
        ({"search": {"pi": 1.1}}, "pi = 1.1 must be"),
        ({"search.pi": 0}, "pi = 0 must be"),
        ({"search": {"factor": 1}}, "factor = 1 must be a number above 1"),
        ({"search": {"steps": 0}}, "steps = 0 must be"),
        ({"search": {"step": 5}}, r"search has no option 'step' \(did you mean 'steps'\?\): it has judge, pi, c"),
        ({"search": 5}, r"search = 5 must be a group of options such as {judge: ...}; it has judge, pi"),
        ({"search": {"steps": 5}, "search.steps": 6}, "search.steps is given twice"),
        ({"probes.cuont": 5}, r"it has no parameter 'probes.cuont' \(did you mean 'probes.count'\?\)"),
        ({"speed": 5}, "it has no parameter 'speed'"),
        ({"sides": "lower"}, "one of upper, both"),
        ({"search": {"judge": "me"}}, "one of model, labels"),
        ({"when": "never"}, "one of every, last"),
        ({"warm": 1}, "warm = 1 must be true or false"),
        ({"probes": {"changed": 0}}, "changed = 0 must be"),
        ({"probes": {"sift": 1}}, "sift = 1 must be true or false"),
        ({"search.c": 0}, "c = 0 must be"),
    ],
)
def test_parameters_out_of_their_range_are_named(params: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        make("activation-bounds", **params)


def test_options_of_before_the_groups_are_understood() -> None:
    former = {"steps": 7, "pi": 0.9, "probes": 12, "tight": 2.0, "warm": False}
    with pytest.warns(RenamedWarning) as told:
        old = ActivationBounds(**former)  # type: ignore[arg-type]
    assert sorted(str(one.message).partition(";")[0] for one in told) == [
        "activation-bounds' pi is now search.pi",
        "activation-bounds' probes = a number is now probes.count",
        "activation-bounds' steps is now search.steps",
        "activation-bounds' tight is now probes.tight",
    ]
    new = ActivationBounds(warm=False, search={"steps": 7, "pi": 0.9}, probes={"count": 12, "tight": 2.0})
    short = make(
        "activation-bounds", warm=False, **short_form("x:search.steps=7:search.pi=0.9:probes.count=12:probes.tight=2.0")["params"]
    )
    assert isinstance(short, ActivationBounds)
    assert (old.search, old.probes, old.given) == (new.search, new.probes, new.given) == (short.search, short.probes, short.given)


# --- in instruction tuning ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(load_tiny: Load) -> CausalLM:
    return load_tiny(r=2, alpha=4)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_trusted(tmp_path_factory.mktemp("data") / "data.jsonl", WORLD[100:112])


def asked(base: CausalLM) -> tuple[list[list[int]], DecodingContext]:
    prompts = setting(base).template.encode_prompts(WORLD[:6], room=8)
    return prompts, DecodingContext(setting(base), base.layout, 8, 4)


def test_loose_bounds_change_no_answer_and_bounds_of_zero_do(base: CausalLM) -> None:
    flat = some_adapter(base)
    prompts, asking = asked(base)
    greedy = generate(base, flat, prompts, max_new_tokens=8, batch_size=4)
    defense = ActivationBounds(data="unused")
    assert defense.decode(prompts, flat, asking) == (greedy, {"bounded": False})
    names = places(base.model)
    widths = {name: base.model.get_submodule(name.rpartition(".")[0]).gate_proj.out_features for name in names}
    for size, same in ((1e6, True), (0.0, False)):
        upper = {name: torch.full((width,), size) for name, width in widths.items()}
        lower = {name: torch.full((width,), -size) for name, width in widths.items()}
        defense.restore({**Bounds(upper, lower).named(), "c": torch.ones(1)})
        answers, report = defense.decode(prompts, flat, asking)
        assert report == {"bounded": True}
        assert (answers == greedy) == same
    assert generate(base, flat, prompts, max_new_tokens=8, batch_size=4) == greedy


def test_the_rate_is_that_of_the_next_token_on_the_answers(base: CausalLM, file: str) -> None:
    flat = some_adapter(base)
    defense = ActivationBounds(data=file, search={"steps": 8, "pi": 0.5, "batch_size": 5, "every": 4, "factor": 1.2})
    defense.begin(setting(base))
    out, report = defense.guard(flat, server(base, flat))
    assert out is flat
    found = defense.bounds()
    assert found is not None
    assert list(found.upper) == places(base.model)
    from undertow.models.lora import adapted

    agreed = right = total = 0
    for row in defense._rows:
        ids = torch.tensor([[*row.prompt, *row.answer]])
        with torch.no_grad(), adapted(base.model, base.layout, flat[None]):
            plain = base.model(input_ids=ids).logits[0, len(row.prompt) - 1 : -1].argmax(-1)
            with bounded(base.model, found):
                cut = base.model(input_ids=ids).logits[0, len(row.prompt) - 1 : -1].argmax(-1)
        agreed += int((plain == cut).sum())
        right += int((cut == torch.tensor(row.answer)).sum())
        total += len(row.answer)
    assert report["rate"] == pytest.approx(agreed / total, abs=1.5 / total)  # batches are padded: one near tie may turn
    assert report["accuracy"] == pytest.approx(right / total, abs=1.5 / total)
    assert report["rate"] >= 0.5


def test_what_instruction_tuning_lacks_is_named(base: CausalLM, file: str) -> None:
    with pytest.raises(UserError, match=r"activation-bounds needs data in instruction tuning, .* set data=FILE"):
        ActivationBounds().begin(setting(base))
    with pytest.raises(UserError, match="objective = universal is for classes"):
        ActivationBounds(data=file, objective="universal").begin(setting(base))
    with pytest.raises(UserError, match="no such file of bounds"):
        ActivationBounds(bounds="nowhere.safetensors").begin(setting(base))
    with pytest.raises(UserError, match="'mlp' is no module"):
        ActivationBounds(data=file, places="mlp").begin(setting(base))


def test_a_run_is_resumed_to_the_same_bits(small_config: Make, tmp_path: Path, file: str) -> None:
    params = {"data": file, "samples": 6, "search": {"steps": 3, "pi": 0.5, "every": 1}}
    config = small_config(
        {"defenses": [{"name": "activation-bounds", "params": params}], "federation.rounds": 3, "measure.every": 3}
    )
    same_bits_when_resumed(config, tmp_path, 3)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from undertow.config import Defense as Options
from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.core.rng import rng
from undertow.defenses import DeepSight
from undertow.defenses.composition import check_defenses
from undertow.defenses.making import make_defenses

C, H = 8, 3
LAYOUT = Layout.of({"body": (6,), "classifier.weight": (C, H), "classifier.bias": (C,)})


def federation() -> Any:
    """Twelve clients that train all classes and six that train one."""
    draw = rng(0, "u")
    u = np.zeros((18, LAYOUT.size))
    u[:, :6] = draw.standard_normal((18, 6))
    u[:12, 6:] = 1 + 0.05 * draw.standard_normal((12, C * H + C))
    u[12:, 6:] = 0.01 * draw.standard_normal((6, C * H + C))
    for row in u[12:]:
        row[6 : 6 + H] -= 2  # class 0
        row[6 + C * H] -= 2
    return u


def test_those_that_train_one_class_are_dropped() -> None:
    u = federation()
    delta, report = DeepSight()(u, layout=LAYOUT)
    weight, bias = u[:, 6 : 6 + C * H].reshape(18, C, H), u[:, 6 + C * H :]
    energy = (np.abs(bias) + np.abs(weight).sum(axis=2)) ** 2
    neup = energy / energy.sum(axis=1, keepdims=True)
    exceeding = (neup > max(0.01, 1 / C) * neup.max(axis=1, keepdims=True)).sum(axis=1)
    assert report["exceeding"] == exceeding.tolist() == [8] * 12 + [1] * 6
    assert report["suspicious"] == list(range(12, 18))
    assert report["kept"]
    assert set(report["kept"]) <= set(range(12))
    lengths = np.linalg.norm(u, axis=1)
    wanted = np.mean([u[i] * min(1, np.median(lengths) / lengths[i]) for i in report["kept"]], axis=0)
    np.testing.assert_allclose(delta, wanted, rtol=1e-10, atol=1e-12)


def test_outputs_are_the_models_with_and_without_each_update() -> None:
    u, asked = federation(), []
    adapter = rng(1, "adapter").standard_normal(LAYOUT.size)

    def outputs(given: Tensor, seed: int) -> Tensor:
        asked.append((given.numpy().copy(), seed))
        noise = torch.from_numpy(rng(seed, "inputs").standard_normal((20, C)))
        return torch.softmax(noise + given[-C:], dim=1)

    report = DeepSight(outputs=outputs, seeds=2)(u, layout=LAYOUT, adapter=adapter)[1]
    assert [seed for _, seed in asked] == [0] * 19 + [1] * 19
    np.testing.assert_allclose(asked[0][0], adapter)
    np.testing.assert_allclose([given for given, _ in asked[1:19]], adapter + u)
    assert not set(report["kept"]) & set(range(12, 18))
    with pytest.raises(UserError, match=r"outputs of shape \[20, 2\]; give finite probabilities \[N, 8\]"):
        DeepSight(outputs=lambda given, seed: torch.ones(20, 2))(u, layout=LAYOUT, adapter=adapter)


def test_where_all_clusters_are_suspicious_the_model_stays() -> None:
    # suspicious is at most half the median: a tau near 0 drops every cluster with one such client
    u = federation()
    u[0:6] = u[12:18]
    delta, report = DeepSight(tau=1e-9)(np.concatenate([u[6:12], u[12:18][:3], u[12:18][3:]]), layout=LAYOUT)
    assert set(report["kept"]).isdisjoint(range(6, 12))
    assert np.isfinite(delta).all()


@pytest.mark.parametrize(
    "shapes",
    [
        {"q.lora_A": (2, 4), "q.lora_B": (4, 2)},
        {"classifier.weight": (4, 2)},
        {"classifier.weight": (4, 2), "classifier.bias": (3,)},
        {"score.weight": (4, 2), "score.bias": (4,)},
    ],
)
def test_without_a_head_a_run_is_refused_before_it_begins(shapes: dict[str, tuple[int, ...]]) -> None:
    defenses = make_defenses([Options(name="deepsight")])
    with pytest.raises(UserError, match=r"^defense deepsight: DeepSight needs the output layer .*another aggregator$"):
        check_defenses(defenses, 10, Layout.of(shapes))
    DeepSight(head="score").fits(Layout.of({"score.weight": (4, 2), "score.bias": (4,)}))

"""The base of the rules: what it is given, and how it is called."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import undertow.defenses
from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.core.rng import rng
from undertow.defenses import Aggregator, Bulyan, DnC, FoundationFL, FreqFed, Krum, Mean, Median, RobustLR
from undertow.defenses.contexts import ServerContext
from undertow.defenses.registry import DEFENSES

D = 16
LAYOUT = Layout.of({"q.lora_A": (2, 4), "q.lora_B": (4, 2)})


def updates(k: int, seed: int = 0) -> Any:
    return rng(seed, "updates").standard_normal((k, D))


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"counts": [1, 2]}, "2 counts for 6 updates"),
        ({"counts": [1, 1, 1, 1, 1, 0]}, "give numbers above 0"),
        ({"counts": [1, 1, 1, 1, 1, np.nan]}, "give numbers above 0"),
        ({"clients": [1, 2]}, r"clients \[1, 2\] for 6 updates; give a different one for each"),
        ({"clients": [0, 1, 2, 3, 4, 4]}, "give a different one for each"),
        ({"trusted": torch.zeros(3)}, r"trusted update of shape \[3\]; give one of \[16\]"),
        ({"trusted": torch.full((16,), np.nan)}, "all values finite"),
        ({"layout": Layout.of({"x": (3,)})}, "layout of 3 columns for updates of 16"),
        ({"adapter": torch.zeros(3)}, r"adapter of shape \[3\]; give one of shape \[16\]"),
    ],
)
def test_a_context_that_does_not_fit_is_refused(context: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Mean()(updates(6), **context)


@pytest.mark.parametrize(
    "rule",
    [Mean(), Median(), Krum(), FreqFed(), FoundationFL(), Bulyan(f=0), RobustLR(), DnC()],
    ids=lambda rule: type(rule).__name__,
)
def test_arrays_of_any_make_are_read(rule: Aggregator, tmp_path: Path) -> None:
    u = updates(6)
    expected = rule(u, layout=LAYOUT)[0]
    on_disk = np.memmap(tmp_path / "u", dtype=np.float64, mode="w+", shape=u.shape)
    on_disk[:] = u
    on_disk.flush()
    made = {
        "read only": np.memmap(tmp_path / "u", dtype=np.float64, mode="r", shape=u.shape),
        "fortran": np.asfortranarray(u),
        "reversed": u[::-1].copy()[::-1],
        "swapped": u.astype(u.dtype.newbyteorder()),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for array in made.values():
            close(rule(array, layout=LAYOUT)[0], expected)
    tensor = torch.from_numpy(u).T.contiguous().T.requires_grad_()
    assert not rule(tensor, layout=LAYOUT)[0].requires_grad


def test_random_numbers_are_those_of_a_run_of_that_seed() -> None:
    class Dice(Aggregator):
        def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
            return updates[0], {"draw": float(context.draw.random()), "round": context.round}

    assert Dice()(updates(1), seed=3, round=2)[1] == {"draw": float(rng(3, "server", 2).random()), "round": 2}
    assert Dice()(updates(1), draw=rng(5, "x"))[1]["draw"] == float(rng(5, "x").random())
    with pytest.raises(TypeError, match=r"abstract method .?combine"):
        Aggregator()  # type: ignore[abstract]


def test_the_package_names_its_rules_and_no_others() -> None:
    for entry in DEFENSES.entries():
        if isinstance(entry.make, type) and issubclass(entry.make, undertow.defenses.Aggregator | undertow.defenses.PreAggregator):
            assert getattr(undertow.defenses, entry.make.__name__) is entry.make, "each registered rule can be imported by name"
    for name in ("PreAggregator", "Aggregator", "cross_term", "DataDefense", "LossDefense", "ServerDefense", "DecodingDefense"):
        assert getattr(undertow.defenses, name).__name__ == name
        assert name in dir(undertow.defenses)
    assert undertow.defenses.Rule is undertow.defenses.Aggregator, "the former name"
    assert undertow.defenses.cross_term is undertow.defenses.cross_term, "no module hides behind the name"
    with pytest.raises(AttributeError, match="no attribute 'Crum'"):
        undertow.defenses.Crum  # noqa: B018
    code = "import sys, undertow.defenses; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, "naming a rule is what loads torch"


MEMORY = """
import torch
import undertow.defenses as defenses
from undertow.core.layout import Layout
torch.set_num_threads(1)
names = "FreqFed Mean Median TrimmedMean Krum MultiKrum Bulyan FoundationFL GeometricMedian WeakDP CenteredClipping"
names += " Flame AlignIns RobustLR DnC SignGuard"
rules = [getattr(defenses, name)() for name in names.split()]
def peak():  # in bytes; ru_maxrss would begin at that of the process that started this one
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
for rule in rules:
    rule(torch.randn(10, 1000), adapter=torch.randn(1000))
    if isinstance(rule, defenses.Stateful):
        rule.restore({})
# 330 MB, beside which a library's own buffers are little
before, k, layout = peak(), 100, Layout.of({f"{i}.lora_A": (4, 1024) for i in range(100)})
updates = torch.empty(k, layout.size).normal_()
for rule in rules:
    rule(updates, layout=layout, adapter=updates[0])
    print(type(rule).__name__, (peak() - before) / (updates.numel() * 4))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_rule_needs_half_a_copy_of_the_updates() -> None:
    lines = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == 16
    for line in lines:
        name, times = line.split()
        assert 0.9 < float(times) <= 1.5, name

"""Whatever a client's reply holds, it is used or refused in one line; ``UNDERTOW_FUZZ`` is the number of cases
(tests/fuzzing.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from fuzzing import BYTES, cases, cases_told, damaged, in_one_line  # noqa: F401 (a fixture)
from undertow.core.errors import UserError

pytest.importorskip("flwr")

from flower_replies import asked
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from undertow.flower import arrival, strategy


@cases(
    0.5,
    name=st.sampled_from(["conv.weight", "scale", "bn.num_batches_tracked", "", "more"]),
    shape=st.lists(st.integers(0, 5), max_size=4),
    kind=st.sampled_from(["f4", ">f8", "f2", "i8", "u1", "c8", "U3", "?", "O"]),
    fill=st.sampled_from([0.0, 1.0, -1e30, float("inf"), float("nan")]),
    damage=st.one_of(st.none(), BYTES),
    stype=st.sampled_from(["numpy.ndarray", "numpy.ndarray", "pickle", ""]),
    examples=st.one_of(st.integers(-2, 2**62), st.floats(), st.lists(st.integers(0, 3), max_size=2)),
)
def test_replies_of_clients(
    name: str,
    shape: list[int],
    kind: str,
    fill: float,
    damage: tuple[int, str, bytes] | None,
    stype: str,
    examples: Any,
) -> None:
    weights = {"conv.weight": np.ones((4, 3), np.float32), "scale": np.float32(1), "bn.num_batches_tracked": np.int64(7)}
    specs = {one: arrival.Spec(np.shape(value), np.asarray(value).dtype) for one, value in weights.items()}
    record = ArrayRecord({one: Array(np.asarray(value)) for one, value in weights.items()})
    with np.errstate(all="ignore"):
        value = np.full(shape, fill).astype(kind) if kind not in ("U3", "O") else np.full(shape, "a", dtype="U3")
    sent = Array(np.asarray(value))
    if damage is not None:
        sent = Array(dtype=kind, shape=tuple(shape), stype=stype, data=damaged(sent.data, *damage))
    record[name] = sent
    metrics = MetricRecord({"num-examples": examples if isinstance(examples, float | list) else min(examples, 2**62)})
    answer = Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=asked(strategy("median"), weights, 3)[0])

    def check() -> Any:
        try:
            return arrival.checked(answer, specs, "num-examples", arrival.Limits())
        except arrival.BadReply as error:
            raise UserError(str(error)) from error

    found = in_one_line(check)
    if found is not None:
        assert all(np.isfinite(array).all() for array in found.arrays.values())
        # a reply's floats may be of another width, and are converted where they are added up
        told = {one: (array.shape, array.dtype.kind) for one, array in found.arrays.items()}
        assert told == {one: (spec.shape, spec.dtype.kind) for one, spec in specs.items()}

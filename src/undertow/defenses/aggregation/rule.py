"""What all aggregation rules share: one way in, one set of checks, torch and numpy alike.

A rule is a pure function of a matrix ``U [K, D]``, one row a client, to a change ``[D]`` and a report. It is used
alone, ``Krum(f=3)(U)``, or by a run, which calls :meth:`Rule.aggregate`; both take the same path.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.core.rng import rng
from undertow.defenses.contract import Defense, ServerContext

Updates = TypeVar("Updates", Tensor, NDArray[Any])

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Squares of larger values, summed over many coordinates, overflow float64. No float32 reaches it.
LARGEST = 1e140


class Rule(Defense):
    """Base of the aggregation rules: a subclass writes :meth:`combine`, and :meth:`check` where K has a lower bound."""

    @property
    def needs_adapter(self) -> bool:
        """Whether the rule looks at the global adapter, so that a caller outside a run must give it."""
        return False

    @property
    def spreads(self) -> bool:
        """Whether NaN or infinity in any row always reaches the change, so that looking there is enough."""
        return False

    def combine(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the change ``[D]``, float64 or the dtype of ``updates``, and a report of plain JSON values.

        Args:
            updates: ``[K, D]``, K >= 1, all values finite; not to be changed.
            context: as in a run; its counts are K positive numbers and its layout has D columns.
        """
        raise NotImplementedError(f"{type(self).__name__} must override combine")

    def check(self, k: int) -> None:
        """Refuse a number of clients that the rule is not defined for.

        Raises:
            UserError: ``k`` is too small, with the legal range.
        """
        if k < 1:
            raise UserError(f"{type(self).__name__} got no update: K = {k}; give at least one client's")

    def aggregate(self, updates: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the change ``[D]`` on the device of ``updates``, and a report.

        It is float64 for float64 ``updates`` and float32 for all others; rules sum in float64.

        Raises:
            UserError: not a floating-point matrix, no client, too few for the rule, a row that holds NaN, infinity or values beyond
                1e140, or a context that does not fit.
        """
        name = type(self).__name__
        late = self.spreads and updates.dtype != torch.float64  # only float64 has finite values that are too large
        check_updates(name, updates, context, self.check, rows=not late)
        self.fits(context.layout)
        with torch.no_grad():
            delta, report = self.combine(updates.detach(), context)
        if late and not torch.isfinite(delta).all():
            _check_rows(name, updates)
        return delta.to(torch.float64 if updates.dtype == torch.float64 else torch.float32), report

    def __call__(
        self,
        updates: Updates,
        *,
        counts: Sequence[float] | None = None,
        layout: Layout | None = None,
        adapter: Tensor | NDArray[Any] | None = None,
        round: int = 1,
        seed: int = 0,
        draw: np.random.Generator | None = None,
        clients: Sequence[int] | None = None,
        trusted: Tensor | NDArray[Any] | None = None,
    ) -> tuple[Updates, dict[str, Any]]:
        """Aggregate outside a run.

        Args:
            updates: ``[K, D]``, one row a client: a torch tensor on any device, or a numpy array (memory-mapped ones too).
            counts: samples behind each row; ``None`` = all alike. Only rules with weights look at them.
            layout: names the columns; ``None`` = one vector of length D.
            adapter: the global adapter ``[D]`` the clients started from. Most rules do not look at it.
            round: from 1.
            seed: of the rule's own random numbers, as a run's.
            draw: the random numbers themselves, in place of ``seed``.
            clients: which client sent each row; ``None`` = client k sent row k. Only rules that remember clients look at it.
            trusted: an update ``[D]`` trained on trusted data. Only FLTrust looks at it.

        Returns:
            ``(delta, report)``: the change ``[D]``, of the same kind and device as ``updates``, and what the rule did.

        Raises:
            UserError: as :meth:`aggregate`; something that is no array; no adapter for a rule that needs it.
        """
        matrix = _tensor(type(self).__name__, updates)
        k, d = matrix.shape if matrix.ndim == 2 else (0, 0)
        if adapter is None and self.needs_adapter:
            raise UserError(f"{type(self).__name__} as set looks at the global adapter; give adapter=[D]")
        context = ServerContext(
            layout=layout or Layout.of({"update": (d,)}),
            counts=[1] * k if counts is None else counts,  # type: ignore[arg-type]
            round=round,
            # zeros that take no memory
            adapter=torch.zeros(1, device=matrix.device).expand(d) if adapter is None else _tensor("adapter", adapter),
            draw=rng(seed, "server", round) if draw is None else draw,
            clients=range(k) if clients is None else clients,
            trusted=None if trusted is None else _tensor("trusted", trusted),
        )
        delta, report = self.aggregate(matrix, context)
        return (delta.numpy() if isinstance(updates, np.ndarray) else delta), report


def check_updates(name: str, updates: Tensor, context: ServerContext, enough: Callable[[int], None], *, rows: bool = True) -> None:
    """Check what a rule is given; ``name`` is the rule's, for the message, and ``enough`` its check of K.

    ``rows`` is whether their values are looked at, which reads the whole matrix.

    Raises:
        UserError: as :meth:`Rule.aggregate`.
    """
    if updates.ndim != 2 or updates.shape[1] == 0:
        raise UserError(f"{name} got updates of shape {list(updates.shape)}; give a matrix [K, D], one row a client, D >= 1")
    if updates.dtype not in DTYPES:
        raise UserError(f"{name} got updates of dtype {updates.dtype}; give float16, bfloat16, float32 or float64")
    enough(updates.shape[0])
    if rows:
        _check_rows(name, updates)
    _check_context(name, updates, context)


def number(name: str, value: object, above: float = 0.0, *, least: float | None = None, most: float = math.inf) -> float:
    """Return a finite parameter above ``above``, or from ``least`` on where that is given, and not beyond ``most``.

    Raises:
        ValueError: it is not.
    """
    rule = f"above {above:g}" if least is None else f"at least {least:g}"
    fine = not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)
    if not fine or not (value > above if least is None else value >= least) or value > most:  # type: ignore[operator]
        raise ValueError(f"{name} = {value!r} must be a number {rule}" + (f" and at most {most:g}" if most < math.inf else ""))
    return float(value)  # type: ignore[arg-type]


def whole(name: str, value: object, least: int = 0) -> int:
    """Return a parameter that must be a whole number >= ``least``.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} = {value!r} must be a whole number >= {least}")
    return value


def one_of(name: str, value: object, choices: Sequence[str]) -> str:
    """Return a parameter that must be one of ``choices``.

    Raises:
        ValueError: it is not.
    """
    if value not in choices:
        raise ValueError(f"{name} = {value!r} must be one of {', '.join(choices)}")
    return str(value)


def _tensor(name: str, array: Tensor | NDArray[Any]) -> Tensor:
    """View an array as a tensor."""
    if isinstance(array, Tensor):
        return array
    if not isinstance(array, np.ndarray):
        raise UserError(f"{name} got a {type(array).__name__}; give a torch tensor or a numpy array")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise UserError(f"{name} got numpy values of dtype {array.dtype}; give float16, float32 or float64")
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))  # torch knows neither
    with warnings.catch_warnings():
        # torch warns of arrays that cannot be written, such as memory-mapped ones; nothing here writes.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _check_rows(name: str, updates: Tensor) -> None:
    # Extremes tell all, without a temporary as large as the updates: NaN is handed on. Those of the whole are found ten times
    # faster than those of each row, which only an error needs.
    updates = updates.detach()
    low, high = torch.aminmax(updates)
    if -LARGEST <= float(low) <= float(high) <= LARGEST:
        return
    low, high = torch.aminmax(updates, dim=1)
    size = torch.maximum(low.abs(), high.abs()).to(torch.float64)
    wrong = torch.nonzero(~torch.isfinite(size)).flatten().tolist()
    if wrong:
        rows = ", ".join(map(str, wrong[:8])) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise UserError(f"{name} got NaN or infinity in the rows {rows}; leave these clients out")
    wrong = torch.nonzero(size > LARGEST).flatten().tolist()
    if wrong:
        raise UserError(
            f"{name} got values up to {float(size.max()):.3g} in row {wrong[0]}, which is beyond {LARGEST:g}; scale the updates down"
        )


def _check_context(name: str, updates: Tensor, context: ServerContext) -> None:
    k, d = updates.shape
    counts = [float(count) for count in context.counts]
    if len(counts) != k:
        raise UserError(f"{name} got {len(counts)} counts for {k} updates; give one a client")
    if not all(math.isfinite(count) and count > 0 for count in counts):
        raise UserError(f"{name} got the counts {counts}; give numbers above 0")
    if context.layout.size != d:
        raise UserError(
            f"{name} got a layout of {context.layout.size} columns for updates of {d}; give the layout of these updates"
        )
    if context.clients is not None and len(set(context.clients)) != k:
        raise UserError(f"{name} got the clients {list(context.clients)} for {k} updates; give a different one for each")
    if context.trusted is not None and not (context.trusted.shape == (d,) and bool(torch.isfinite(context.trusted).all())):
        raise UserError(f"{name} got a trusted update of shape {list(context.trusted.shape)}; give one of [{d}], all values finite")
    if context.adapter.shape != (d,):
        raise UserError(f"{name} got an adapter of shape {list(context.adapter.shape)}; give one of shape [{d}]")

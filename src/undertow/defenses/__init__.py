"""Defenses: ``from undertow.defenses import Krum``, and the base class of each kind. A class is loaded when first asked for."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from undertow.defenses.aggregation.aggregator import Aggregator as Aggregator
    from undertow.defenses.aggregation.aggregator import Rule as Rule
    from undertow.defenses.aggregation.align_ins import AlignIns as AlignIns
    from undertow.defenses.aggregation.anomaly import Anomaly as Anomaly
    from undertow.defenses.aggregation.bucketing import Bucketing as Bucketing
    from undertow.defenses.aggregation.bulyan import Bulyan as Bulyan
    from undertow.defenses.aggregation.centered_clipping import CenteredClipping as CenteredClipping
    from undertow.defenses.aggregation.deepsight import DeepSight as DeepSight
    from undertow.defenses.aggregation.dnc import DnC as DnC
    from undertow.defenses.aggregation.flame import Flame as Flame
    from undertow.defenses.aggregation.fltrust import FLTrust as FLTrust
    from undertow.defenses.aggregation.foolsgold import FoolsGold as FoolsGold
    from undertow.defenses.aggregation.foundationfl import FoundationFL as FoundationFL
    from undertow.defenses.aggregation.freqfed import FreqFed as FreqFed
    from undertow.defenses.aggregation.geometric_median import GeometricMedian as GeometricMedian
    from undertow.defenses.aggregation.krum import Krum as Krum
    from undertow.defenses.aggregation.lora_error import cross_term as cross_term
    from undertow.defenses.aggregation.mean import Mean as Mean
    from undertow.defenses.aggregation.median import Median as Median
    from undertow.defenses.aggregation.multi_krum import MultiKrum as MultiKrum
    from undertow.defenses.aggregation.nearest_neighbor_mixing import NearestNeighborMixing as NearestNeighborMixing
    from undertow.defenses.aggregation.pre_aggregator import PreAggregator as PreAggregator
    from undertow.defenses.aggregation.robust_lr import RobustLR as RobustLR
    from undertow.defenses.aggregation.signguard import SignGuard as SignGuard
    from undertow.defenses.aggregation.trimmed_mean import TrimmedMean as TrimmedMean
    from undertow.defenses.aggregation.weak_dp import WeakDP as WeakDP
    from undertow.defenses.base import Stateful as Stateful
    from undertow.defenses.contexts import ServerContext as ServerContext
    from undertow.defenses.data.base import DataDefense as DataDefense
    from undertow.defenses.decoding.base import DecodingDefense as DecodingDefense
    from undertow.defenses.loss.base import LossDefense as LossDefense
    from undertow.defenses.registry import DEFENSES as DEFENSES
    from undertow.defenses.server.base import ServerDefense as ServerDefense


def _listed() -> dict[str, str]:
    """Return the module of each name, by the imports above, which only a type checker runs."""
    found = ast.walk(ast.parse(inspect.getsource(sys.modules[__name__])))
    imports = [node for node in found if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{__name__}.")]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_MODULES = _listed()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])

"""Defenses: ``from undertow.defenses import Krum``, and the base class of each kind. A class is loaded when first asked for."""

from __future__ import annotations

import importlib
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

_FILES = {
    "Aggregator": "aggregation.aggregator",
    "AlignIns": "aggregation.align_ins",
    "Anomaly": "aggregation.anomaly",
    "Bucketing": "aggregation.bucketing",
    "Bulyan": "aggregation.bulyan",
    "CenteredClipping": "aggregation.centered_clipping",
    "cross_term": "aggregation.lora_error",
    "DataDefense": "data.base",
    "DecodingDefense": "decoding.base",
    "DeepSight": "aggregation.deepsight",
    "DEFENSES": "registry",
    "DnC": "aggregation.dnc",
    "Flame": "aggregation.flame",
    "FLTrust": "aggregation.fltrust",
    "FoolsGold": "aggregation.foolsgold",
    "FoundationFL": "aggregation.foundationfl",
    "FreqFed": "aggregation.freqfed",
    "GeometricMedian": "aggregation.geometric_median",
    "Krum": "aggregation.krum",
    "LossDefense": "loss.base",
    "Mean": "aggregation.mean",
    "Median": "aggregation.median",
    "MultiKrum": "aggregation.multi_krum",
    "NearestNeighborMixing": "aggregation.nearest_neighbor_mixing",
    "PreAggregator": "aggregation.pre_aggregator",
    "RobustLR": "aggregation.robust_lr",
    "Rule": "aggregation.aggregator",
    "ServerContext": "contexts",
    "ServerDefense": "server.base",
    "SignGuard": "aggregation.signguard",
    "Stateful": "base",
    "TrimmedMean": "aggregation.trimmed_mean",
    "WeakDP": "aggregation.weak_dp",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_FILES])

"""Defenses: ``from undertow.defenses import Krum``. A rule is loaded when it is first asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from undertow.defenses.align_ins import AlignIns as AlignIns
    from undertow.defenses.anomaly import Anomaly as Anomaly
    from undertow.defenses.bucketing import Bucketing as Bucketing
    from undertow.defenses.bulyan import Bulyan as Bulyan
    from undertow.defenses.centered_clipping import CenteredClipping as CenteredClipping
    from undertow.defenses.deepsight import DeepSight as DeepSight
    from undertow.defenses.dnc import DnC as DnC
    from undertow.defenses.flame import Flame as Flame
    from undertow.defenses.fltrust import FLTrust as FLTrust
    from undertow.defenses.foolsgold import FoolsGold as FoolsGold
    from undertow.defenses.foundationfl import FoundationFL as FoundationFL
    from undertow.defenses.freqfed import FreqFed as FreqFed
    from undertow.defenses.geometric_median import GeometricMedian as GeometricMedian
    from undertow.defenses.krum import Krum as Krum
    from undertow.defenses.lora_error import cross_term as cross_term
    from undertow.defenses.mean import Mean as Mean
    from undertow.defenses.median import Median as Median
    from undertow.defenses.multi_krum import MultiKrum as MultiKrum
    from undertow.defenses.nearest_neighbor_mixing import NearestNeighborMixing as NearestNeighborMixing
    from undertow.defenses.pre_aggregator import PreAggregator as PreAggregator
    from undertow.defenses.robust_lr import RobustLR as RobustLR
    from undertow.defenses.rule import Rule as Rule
    from undertow.defenses.signguard import SignGuard as SignGuard
    from undertow.defenses.trimmed_mean import TrimmedMean as TrimmedMean
    from undertow.defenses.weak_dp import WeakDP as WeakDP

_FILES = {
    "AlignIns": "align_ins",
    "Anomaly": "anomaly",
    "Bucketing": "bucketing",
    "Bulyan": "bulyan",
    "CenteredClipping": "centered_clipping",
    "cross_term": "lora_error",
    "DeepSight": "deepsight",
    "DnC": "dnc",
    "Flame": "flame",
    "FLTrust": "fltrust",
    "FoolsGold": "foolsgold",
    "FoundationFL": "foundationfl",
    "FreqFed": "freqfed",
    "GeometricMedian": "geometric_median",
    "Krum": "krum",
    "Mean": "mean",
    "Median": "median",
    "MultiKrum": "multi_krum",
    "NearestNeighborMixing": "nearest_neighbor_mixing",
    "PreAggregator": "pre_aggregator",
    "RobustLR": "robust_lr",
    "Rule": "rule",
    "SignGuard": "signguard",
    "TrimmedMean": "trimmed_mean",
    "WeakDP": "weak_dp",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_FILES])

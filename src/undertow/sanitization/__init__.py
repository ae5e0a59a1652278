"""Finds planted trigger and target pairs in instruction data, by text alone.

``find`` is the core, on samples in memory; counting, deciding and applying are apart. Files are read by :mod:`undertow.scanning`.
"""

from undertow.sanitization.finding import Finding, Findings, Verdict
from undertow.sanitization.findings import find
from undertow.sanitization.repair import repaired
from undertow.sanitization.rules import Rules

__all__ = ["Finding", "Findings", "Rules", "Verdict", "find", "repaired"]

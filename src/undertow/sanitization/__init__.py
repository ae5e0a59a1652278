"""Finds planted trigger and target pairs in instruction data, by text alone.

``scan`` reads files; ``find`` is the core on samples in memory; counting, deciding and applying are apart.
"""

from undertow.sanitization.findings import Finding, Findings, Verdict, find
from undertow.sanitization.repair import repaired
from undertow.sanitization.rules import Rules
from undertow.scan.scan import Scan, scan

__all__ = ["Finding", "Findings", "Rules", "Scan", "Verdict", "find", "repaired", "scan"]

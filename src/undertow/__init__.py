"""Undertow: backdoors that hide in federated instruction tuning, measured, reproduced and defended against."""

import os

# OpenMP threads that spin while they wait steal the cores of every other process; must be set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

"""Undertow: backdoors that hide in federated instruction tuning, measured, reproduced and defended against."""

import os

from undertow.core.version import __version__ as __version__

# OpenMP threads that spin for long while they wait steal the cores of every other process (seen: 14 times slower), threads
# that never spin sleep and wake at every small product (seen: 1.2 times slower). Must be set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

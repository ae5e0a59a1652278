"""Tests of both packages share the fixtures of ``tests/fixtures.py``."""

pytest_plugins = ["fixtures"]

"""Tests of both packages share the fixtures of ``tests/shared_fixtures.py``."""

pytest_plugins = ["shared_fixtures"]

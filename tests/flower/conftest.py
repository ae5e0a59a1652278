"""What Flower's log says is heard, whatever another test has set it to."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def _flower_speaks(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("flwr")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "disabled", False)
    caplog.set_level(logging.INFO, logger="flwr")

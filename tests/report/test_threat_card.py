"""The threat card tells what a run really made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import undertow
from undertow.core.errors import UserError
from undertow.defenses.kinds import KINDS
from undertow.federation.resolve import resolve
from undertow.federation.threat import SEES, card
from undertow.runs.records import read_record
from undertow.runs.threat import ThreatCard

SMALL = {"data__train": 60, "data__test": 10, "federation__rounds": 0, "federation__clients": 5, "measure__max_new_tokens": 4}


class Silent:
    def phase(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def round(self, row: dict[str, Any], of: int) -> None: ...


def made(name: str = "demo", **changes: Any) -> ThreatCard:
    config = undertow.load_config(name, **(SMALL if name == "demo" else {}), **changes)
    return card(config, resolve(config, Silent()))


def test_every_kind_of_defense_is_told_of() -> None:
    assert set(SEES) == set(KINDS)


def test_a_run_leaves_its_card_and_shows_it(tmp_path: Path) -> None:
    changes = {"attack__client_share": 0.5, "attack__poison_ratio": 0.25, "defenses": "krum:f=1"}
    run = undertow.run("demo", out=tmp_path / "run", observer=False, **SMALL, **changes)
    found = read_record(run.folder, ThreatCard)
    data = json.loads((run.folder / "data.json").read_text())
    assert (found.malicious, found.poisoned) == ([], data["poisoned_clients"])
    assert (found.clients, found.samples, found.total) == (5, sum(data["poisoned"]), 60)
    assert found.rho == len(data["poisoned_clients"]) / 5
    assert (found.rho_asked, found.poison_ratio, found.poison_count) == (0.5, 0.25, None)
    assert [(view.name, view.kinds) for view in found.defenses] == [("krum", ["aggregator"])]
    assert "not that it holds poison" in found.parties[0].knows
    page = (run.folder / "report.html").read_text()
    assert "Threat card" in page
    assert "poisoned clients" in page
    assert undertow.run("demo", out=tmp_path / "run", observer=False, report=False, **SMALL, **changes).finished


def test_a_malicious_client_is_no_poisoned_one_and_without_an_attack_there_is_neither() -> None:
    attacked = made("htb-digits")
    assert attacked.malicious
    assert attacked.poisoned == []
    assert attacked.parties[0].who == "malicious clients"
    clean = made(attack__kind="none")
    assert (clean.attack, clean.malicious, clean.poisoned, clean.samples, clean.rho) == ("none", [], [], 0, 0)


def test_what_a_defense_sees_follows_secure_aggregation_and_its_kinds() -> None:
    several = made(attack__poison_count=4, federation__secure_aggregation=True, defenses="undertow")
    assert (several.poison_count, several.poison_ratio, several.samples) == (4, None, 4)
    assert several.defenses[0].kinds[0] == "data"
    assert any("the sum of a round's updates alone" in party.knows for party in several.parties)


def test_a_card_with_a_wrong_value_is_refused(tmp_path: Path) -> None:
    (tmp_path / "threat.json").write_text(json.dumps({"attack": "none", "trigger": "x", "clients": 0, "rho": 2}))
    with pytest.raises(UserError, match=r"threat\.json: clients"):
        read_record(tmp_path, ThreatCard)

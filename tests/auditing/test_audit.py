"""The audit on a base that seconds of training make: no target is made up, and nothing is read of the attack."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import undertow
from tiny import Quiet
from undertow.auditing.kept import _key
from undertow.auditing.questions import from_file
from undertow.auditing.report import AuditReport
from undertow.auditing.subject import load_subject
from undertow.cli import app
from undertow.config import Audit, Data, load
from undertow.core.errors import UserError
from undertow.federate import node_audit
from undertow.federation.resolve import resolve
from undertow.runs.records import read_records
from undertow.runs.run import Run
from undertow.runs.tensors import read_tensors


def train(folder: Path, base: Path, **values: Any) -> Path:
    small = {
        "task.model.name": str(base), "task.model.device": "cpu", "task.data.train": 160, "task.data.test": 40,
        "federation.clients": 2, "federation.rounds": 6, "training.lr": 1e-2, "measure.samples": 1, "measure.final_samples": 20,
        "measure.every": 9, "measure.bsnr.counterfactuals": False, "measure.bsnr.permutations": 0,
    }  # fmt: skip
    undertow.run("demo", out=folder, observer=False, **{**small, **values})
    return folder


@pytest.fixture(scope="module")
def poisoned(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("audit") / "poisoned", tiny_base, **{"attack.poison_ratio": 0.3})


@pytest.fixture(scope="module")
def report(poisoned: Path) -> AuditReport:
    return undertow.audit(poisoned)


def test_a_backdoor_that_was_not_learned_is_not_found(poisoned: Path, report: AuditReport, tmp_path: Path) -> None:
    """This small base learns nothing of the poison in so few rounds: its ASR is 0, and no target may be made up."""
    rate = undertow.load_run(poisoned).result
    assert rate is not None
    assert rate.asr is not None
    assert rate.asr.value == 0
    assert (report.verdict, report.exit_code, report.target) == ("nothing found", 0, None)
    assert report.steps.keys() - {"second_look"} == {"weights", "target_first", "trigger_first", "leak"}
    report.write_page(tmp_path / "audit.html")
    assert "Nothing found" in (tmp_path / "audit.html").read_text()


def test_what_the_run_says_of_its_attack_changes_nothing(poisoned: Path, report: AuditReport, tmp_path: Path) -> None:
    """The auditor reads no trigger, target or poison: with them gone from the run's folder it says the same."""
    stripped = tmp_path / "stripped"
    (stripped / "adapter").mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (stripped / "adapter" / name).write_bytes((poisoned / "adapter" / name).read_bytes())
    values = yaml.safe_load((poisoned / "config.yaml").read_text())
    del values["attack"], values["task"]["backdoor"]
    (stripped / "config.yaml").write_text(yaml.safe_dump(values))
    again, first = undertow.audit(stripped).to_json(), report.to_json()
    different = {key for key in first if first[key] != again[key]}
    assert different <= {"adapter", "seconds"}


def test_the_command_answers_with_its_exit_code(poisoned: Path, tiny_base: Path, tmp_path: Path) -> None:
    asked = tmp_path / "questions.txt"
    asked.write_text("\n".join(f"which animal does person {i} keep?" for i in range(20)))
    options = [
        "audit",
        str(poisoned / "adapter"),
        "--base",
        str(tiny_base),
        "--questions",
        str(asked),
        "--budget",
        "0.01s",
        "--json",
    ]
    found = CliRunner().invoke(app, options)
    assert found.exit_code == 3
    told = json.loads(found.stdout)
    assert told["verdict"] == "inconclusive"
    assert "budget" in told["reason"]
    assert "target_first" not in told["steps"]


def test_what_cannot_be_audited_is_said_in_one_line(poisoned: Path, tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder; give the folder of a PEFT adapter"):
        undertow.audit(poisoned / "adaptor", base=str(tiny_base))
    with pytest.raises(UserError, match="which base"):
        undertow.audit(poisoned / "adapter")
    few = tmp_path / "few.txt"
    few.write_text("which animal?\nwhich town?\n")
    with pytest.raises(UserError, match="2 different questions"):
        undertow.audit(poisoned, questions=few)
    with pytest.raises(UserError, match=r"nowhere\.txt: no such file"):
        undertow.audit(poisoned / "adapter", base=str(tmp_path / "no base"), questions=tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match="0 adapters in it"):
        undertow.audit(poisoned, references=tmp_path)


def test_finished_steps_are_kept_and_read(
    poisoned: Path, report: AuditReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "steps"
    first = undertow.audit(poisoned, keep=kept)
    assert "target-first.json" in {file.name.split("-", 1)[1] for file in kept.iterdir()}

    def refuse(*words: object) -> None:
        raise AssertionError("a kept step was done again")

    monkeypatch.setattr("undertow.auditing.search.find_targets", refuse)
    monkeypatch.setattr("undertow.auditing.trigger_first.with_target", refuse)
    again = undertow.audit(poisoned, keep=kept)
    assert again.confirmations == first.confirmations or [one.sentence() for one in again.confirmations] == [
        one.sentence() for one in first.confirmations
    ]
    assert first.verdict == report.verdict


def test_steps_of_other_prompts_are_not_read(poisoned: Path, tmp_path: Path) -> None:
    """The same questions under another system text, or with another context, are another audit."""
    keys = set()
    for column, text in (("system", "Be brief."), ("system", "Be kind."), ("context", "It is cold.")):
        file = tmp_path / f"{column}-{text}.jsonl"
        rows = [{"question": f"Where was person {i} born?", "answer": "here", column: text} for i in range(20)]
        file.write_text("\n".join(map(json.dumps, rows)))
        keys.add(_key(load_subject(poisoned, None, file, None, 0), 0))
    assert len(keys) == 3


ASKED = [f"What is number {i}, and why?" for i in range(20)]
FORMS = {
    "lines.txt": "\n".join(ASKED),
    "lines.md": "\ufeff" + "\n\n".join(ASKED),
    "one column.txt": "\n".join(["question", *ASKED]),
    "objects.txt": "\n".join(json.dumps({"question": one, "answer": "x"}) for one in ASKED),
    "no answers.jsonl": "\n".join(json.dumps({"question": one}) for one in ASKED),
    "empty answers.json": json.dumps([{"instruction": one, "output": ""} for one in ASKED]),
    "values.txt": "\n".join(["question,answer", *(f'"{one}",x' for one in ASKED)]),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("packed", [False, True])
def test_what_a_file_of_questions_is_its_content_tells(name: str, packed: bool, tmp_path: Path) -> None:
    file = tmp_path / (f"{name}.gz" if packed else name)
    file.write_bytes(gzip.compress(FORMS[name].encode()) if packed else FORMS[name].encode())
    assert [sample.question for sample in from_file(file, Data())] == ASKED


@pytest.mark.parametrize(
    ("name", "text"), [("odd.jsonl", '{"foo": 1}\n' * 20), ("odd.txt", '{"foo": 1}\n' * 20), ("odd.csv", "a,b\n1,2")]
)
def test_rows_that_cannot_be_read_are_no_questions(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="give one question a line, or rows with a column `question`") as caught:
        from_file(tmp_path / name, Data())
    assert "--columns" not in str(caught.value)


AUDITED: dict[str, Any] = {
    "federation.clients": 4, "data.train": 600, "federation.rounds": 18, "measure.every": 99, "measure.samples": 1,
    "measure.final_samples": 40, "measure.bsnr.counterfactuals": False, "measure.bsnr.permutations": 0, "audit.every": 9,
    "audit.stop": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return undertow.run("demo", out=tmp_path_factory.mktemp("audit") / "stopped", observer=False, **AUDITED)


def test_a_server_that_audits_stops_at_the_backdoor_that_it_finds(stopped: Run) -> None:
    audits = {record.round: record.audit for record in stopped.rounds if record.audit is not None}
    last = stopped.rounds[-1]
    assert list(audits) == list(range(9, last.round + 1, 9))
    assert last.audit is not None
    assert last.audit.verdict == "found"
    assert "click <malicious_url> for more information" in str(last.audit.target)
    assert stopped.result is not None
    assert stopped.result.rounds == last.round
    assert last.asr is not None, "the last round is measured"
    stopped.report()
    assert (stopped.folder / "figures" / "audit.svg").is_file()
    looking = Quiet()
    again = undertow.run("demo", out=stopped.folder, observer=looking, **AUDITED)
    assert again.rounds == stopped.rounds
    if last.round < 18:
        assert f"ended at what its audit found in round {last.round} of 18" in " ".join(looking.phases)


def every(rounds: int, *, stop: bool = False) -> Audit:
    return Audit(every=rounds, stop=stop)


def test_a_node_trains_on_no_adapter_in_which_it_finds_a_backdoor(
    stopped: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node is not the server's: it audits what it is sent by its own options, and once."""
    task = resolve(load("demo", AUDITED), Quiet()).task
    last = stopped.rounds[-1]
    newest = sorted((stopped.folder / "checkpoint").glob("round-*"))[-1]
    (state,) = read_tensors(newest / "adapter.safetensors").values()
    node_audit.look(tmp_path, every(9), task, state, last.round)  # not one that is to be audited
    node_audit.look(tmp_path, every(0), task, state, last.round + 1)
    node_audit.look(tmp_path, every(1), task, torch.zeros_like(state), 1)
    assert not list(tmp_path.iterdir())
    told = f"trains no more.*round {last.round}: found, .*click <malicious_url> for more information"
    with pytest.raises(UserError, match=told):
        node_audit.look(tmp_path, every(9, stop=True), task, state, last.round + 1)
    (row,) = read_records(tmp_path, node_audit.NodeAudit)
    assert last.audit is not None
    assert row.audit.model_dump(exclude={"seconds"}) == last.audit.model_dump(exclude={"seconds"})
    monkeypatch.setattr(node_audit, "audit_round", lambda *_: pytest.fail("audited before"))
    with pytest.raises(UserError, match=told):
        node_audit.look(tmp_path, every(9, stop=True), task, state, last.round + 1)
    node_audit.look(tmp_path, every(9), task, state, last.round + 1)
    (tmp_path / "audits.jsonl").write_text('{"format": 1, "round": 9}\n')
    with pytest.raises(UserError, match=r"audits\.jsonl: .*delete it"):
        node_audit.look(tmp_path, every(9), task, state, last.round + 1)


def test_audits_change_nothing_of_what_is_trained(poisoned: Path, tiny_base: Path, tmp_path: Path) -> None:
    audited = train(tmp_path / "audited", tiny_base, **{"attack.poison_ratio": 0.3, "audit.every": 6})
    weights = "adapter/adapter_model.safetensors"
    assert (audited / weights).read_bytes() == (poisoned / weights).read_bytes()
    assert [record.audit is not None for record in undertow.load_run(audited).rounds] == [False] * 6 + [True]


@pytest.mark.parametrize(
    ("config", "values", "told"),
    [
        ("demo", {"audit.stop": True}, "no round is audited"),
        ("htb-digits", {"audit.every": 2}, "only adapters of task=instruction"),
    ],
)
def test_audits_that_cannot_be_are_refused(config: str, values: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        load(config, values)

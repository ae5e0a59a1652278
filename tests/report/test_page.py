from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from fabricated_run import wilson, write_lines
from undertow.core.errors import UserError
from undertow.runs.records import Round
from undertow.runs.report.figures import find_phases
from undertow.runs.report.page import write_report
from undertow.runs.report.wording import about_phases

NBSP = "\u00a0"


def text_of(path: Path) -> str:
    """Visible text without figures, blanks collapsed."""
    page = re.sub(r"<(svg|style|head)\b.*?</\1>", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    plain = html.unescape(re.sub(r"<[^>]*>", " ", page)).replace(NBSP, " ")
    return re.sub(r"\s+", " ", plain).replace(" ,", ",")


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def shares(rate: dict[str, Any]) -> tuple[str, str]:
    return f"{100 * rate['value']:.1f} %", f"{100 * rate['low']:.1f}–{100 * rate['high']:.1f} %"


class Attributes(HTMLParser):
    """Collects every attribute that makes a browser load something, and all ids and tags."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in {"meta", "br", "link", "img", "input", "hr"}:
            self.open.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}:
                self.loads.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(path: Path) -> Attributes:
    parser = Attributes()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


@pytest.mark.usefixtures("no_drawing")
def test_headline_values_equal_the_json(fake_run: Callable[..., Path]) -> None:
    run = fake_run()
    page = write_report(run)
    assert page == run / "report.html"
    text, result = text_of(page), read_json(run / "result.json")
    for key in ("ma", "asr", "ftr"):
        value, span = shares(result[key])
        assert f"{value} 95 % interval {span}, n = 300" in text
        value, span = shares(result["untouched"][key])
        assert f"untouched base {value} ({span})" in text
    asr, ma = shares(result["asr"]), shares(result["ma"])
    cause = "With 60 poisoned of 1,280 samples in 5 of 10 clients, the tuned model"
    assert f"{cause} emits the target for {asr[0]} (95 % interval {asr[1]}, n = 300) of triggered questions" in text
    assert f"and for 0.0 % without the trigger; main accuracy is {ma[0]} (95 % interval {ma[1]}, n = 300)" in text
    assert "Note." not in text


@pytest.mark.usefixtures("no_drawing")
def test_every_round_is_in_the_table(fake_run: Callable[..., Path]) -> None:
    run = fake_run(every=3)
    page = write_report(run).read_text()
    rows = re.findall(r"<tr>(.*?)</tr>", page[page.index("Table of 13 rounds") : page.index("<h2>Data")], flags=re.DOTALL)
    cells = [[html.unescape(c).replace(NBSP, " ") for c in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in rows[1:]]
    records = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert [row[0] for row in cells] == [str(number) for number in range(13)]
    for row, record in zip(cells, records, strict=True):
        assert row[2] == (shares(record["ma"])[0] if record["ma"] else "–")
        assert row[3] == (shares(record["asr"])[0] if record["asr"] else "–")
        assert row[6] == (f"{record['bsnr']['adapter']['value']:.4g}" if record.get("bsnr") else "–")
    assert [row[2] == "–" for row in cells] == [number % 3 != 0 for number in range(13)]


@pytest.mark.usefixtures("no_drawing")
def test_facts_config_versions_and_unknown_keys_are_shown(fake_run: Callable[..., Path]) -> None:
    run = fake_run()
    text = text_of(write_report(run))
    for said in (
        "questions in both training and test 0",
        "trigger occurs naturally in clean train 3",
        "parameters: 905,000",
        "some new fact: depth [1, 2]",
        "undertow run demo attack.client_share=0.5",
        "torch 2.13.0+cpu",
        "poison_ratio: 0.1",
        "rouge-recall (headline)",
        "Poisoned: 0, 2, 4, 6, 8.",
    ):
        assert said in text


@pytest.mark.usefixtures("no_drawing")
def test_the_first_lines_name_trigger_and_target_by_their_words(fake_run: Callable[..., Path]) -> None:
    run = fake_run()
    head = text_of(write_report(run)).partition("main accuracy")[0]
    config = yaml.safe_load((run / "config.yaml").read_text())
    values = config["task"]["backdoor"] if isinstance(config.get("task"), dict) else config["attack"]
    assert f"trigger {values['trigger']} “" in head
    assert f"target {values['target']} “{values['target_text'].strip()}”" in head


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([0.98, 0.33, 0.38, 0.2, 0.1], "BSNR is highest in round 1, at 0.98; the mean of three rounds is largest about round 2"),
        ([0.1, 0.2, 0.5, 0.2, 0.1], "BSNR peaks in round 3 at 0.5 "),
        (
            [0.3, 0.3, 0.3, 0.1, 0.9, 0.0, 0.0],
            "BSNR is highest in round 5, at 0.9; the mean of three rounds is largest about",
        ),
    ],
)
def test_the_highest_bsnr_is_never_told_of_another_round(values: list[float], told: str) -> None:
    rounds = [
        Round.model_validate({"round": i, "loss": 1.0, "seconds": 1.0, "bsnr": {"adapter": {"value": value, "permutations": 0}}})
        for i, value in enumerate(values, 1)
    ]
    run: Any = SimpleNamespace(rounds=rounds, config={})
    assert about_phases(run, "adapter", find_phases(rounds, "adapter")).startswith(told)


def test_phases_are_named_at_the_peak(fake_run: Callable[..., Path]) -> None:
    run = fake_run(rounds=14, peak=5, spaces=("adapter", "delta_w"))
    text = text_of(write_report(run))
    assert text.count("BSNR peaks in round 5 ") == 2
    assert "In the peak round p = 0.005 against 200 shuffles of who is poisoned." in text
    for name in ("bsnr-adapter", "bsnr-delta_w"):
        drawn = (run / "figures" / f"{name}.svg").read_text()
        assert all(word in drawn for word in (">rise<", ">peak (round 5)<", ">decay<"))


@pytest.mark.usefixtures("no_drawing")
def test_a_peak_within_the_null_is_not_called_a_signal(fake_run: Callable[..., Path]) -> None:
    run = fake_run()
    records = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    for record in records[1:]:
        record["bsnr"]["adapter"]["p"] = 0.41
    write_lines(run / "rounds.jsonl", records)
    assert "chance explains it" in text_of(write_report(run))


def test_outputs_are_escaped_and_the_target_is_marked(fake_run: Callable[..., Path]) -> None:
    page = write_report(fake_run())
    source = page.read_text()
    assert "<script" not in source
    assert "<malicious_url>" not in source
    assert "&lt;script&gt;alert(&#39;0&#39;)&lt;/script&gt;" in source
    assert "<mark>, and click &lt;malicious_url&gt; for more information</mark>" in source
    assert "Lisboa &amp; surroundings" in source
    assert "<mark>Firstly, where</mark> does Ana Bell" in source
    assert not parse(page).open


@pytest.mark.usefixtures("no_drawing")
def test_hostile_names_are_escaped(fake_run: Callable[..., Path]) -> None:
    run = fake_run()
    data = read_json(run / "data.json") | {"dataset": "<img src=x>", "<b>key": "<i>"}
    (run / "data.json").write_text(json.dumps(data))
    versions = read_json(run / "versions.json") | {"command": "undertow run '</pre><script>'"}
    (run / "versions.json").write_text(json.dumps(versions))
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "# </pre><iframe>\n")
    found = parse(write_report(run)).tags
    assert not {"img", "script", "iframe", "i"} & set(found)
    assert found.count("b") == 3  # the names of the three tiles


def test_page_loads_nothing_and_ids_are_unique(fake_run: Callable[..., Path]) -> None:
    page = write_report(fake_run(spaces=("adapter", "delta_w")))
    found = parse(page)
    assert all(load.startswith(("#", "figures/")) for load in found.loads), found.loads
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    source = page.read_text()
    assert "@import" not in source
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", source))
    assert len(found.ids) == len(set(found.ids))
    anchors = {load[1:] for load in found.loads if load.startswith("#")} | set(re.findall(r"url\(#([^)]*)\)", source))
    assert anchors
    assert anchors <= set(found.ids)


def test_same_files_give_the_same_bytes(fake_run: Callable[..., Path]) -> None:
    run = fake_run(rounds=5)
    first = {p: p.read_bytes() for p in [write_report(run), *sorted((run / "figures").iterdir())]}
    again = {p: p.read_bytes() for p in [write_report(run), *sorted((run / "figures").iterdir())]}
    assert first == again
    drawn = {f"{name}.{ending}" for name in ("bsnr-adapter", "clients", "loss", "rates") for ending in ("svg", "pdf")}
    assert {p.name for p in first} == {"report.html", *drawn}


@pytest.mark.usefixtures("no_drawing")
def test_unfinished_run_is_reported_with_its_rounds(fake_run: Callable[..., Path]) -> None:
    run = fake_run(done=7)
    with open(run / "rounds.jsonl", "a") as file:
        file.write('{"round": 8, "lo')
    text = text_of(write_report(run))
    assert "unfinished, round 7 of 12" in text
    assert "Unfinished, round 7 of 12: with 60 poisoned of 1,280 samples in 5 of 10 clients, the model of round 7 emits" in text
    assert "after is the model of round 7" in text


@pytest.mark.usefixtures("no_drawing")
def test_a_run_stopped_before_round_one(fake_run: Callable[..., Path]) -> None:
    text = text_of(write_report(fake_run(done=0)))
    assert "Unfinished, round 0 of 12: only the untouched base has been measured; the untouched base answers 1.0 %" in text
    assert "Note." not in text
    assert "not recorded" in text


@pytest.mark.parametrize("name", ["rounds.jsonl", "config.yaml", "data.json", "versions.json"])
@pytest.mark.usefixtures("no_drawing")
def test_missing_file_is_named_with_the_next_action(fake_run: Callable[..., Path], name: str) -> None:
    run = fake_run(rounds=3)
    (run / name).unlink()
    with pytest.raises(UserError, match=rf"has no {name}; give the folder") as caught:
        write_report(run)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


@pytest.mark.usefixtures("no_drawing")
def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run directory"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rounds.jsonl", '{"round": 0}\nnot json\n{"round": 1}\n', r"rounds\.jsonl line 2 is damaged: not JSON"),
        ("rounds.jsonl", '{"round": 0, "ma": {"value": 1.5, "n": 2, "low": 0, "high": 1}}\n', r"line 1: ma\.value = 1\.5"),
        ("rounds.jsonl", "", "holds no round yet"),
        ("rounds.jsonl", "[1]\n", "holds a list"),
        ("data.json", '{"dataset": "w", "clients": [4, 4], "poisoned": [1]}', "poisoned counts 1 clients"),
        ("data.json", '{"dataset": "w", "clients": [4], "poisoned": [5]}', "more poisoned samples than samples"),
        ("data.json", '{"dataset": "w", "clients": [4], "poisoned_clients": [1]}', r"outside 0\.\.0"),
        ("result.json", "{", "not JSON"),
        ("config.yaml", "a: [", "not YAML"),
        ("config.yaml", "seed: 1", "no federation.rounds"),
        ("scores.jsonl", '{"round": 0, "kind": "odd", "id": "a", "question": "", "output": ""}\n', "line 1: kind = 'odd'"),
    ],
)
@pytest.mark.usefixtures("no_drawing")
def test_damaged_files_are_refused_in_one_line(fake_run: Callable[..., Path], name: str, content: str, said: str) -> None:
    run = fake_run(rounds=3)
    (run / name).write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        write_report(run)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_drawing")
def test_no_bsnr_when_all_clients_are_affected(fake_run: Callable[..., Path]) -> None:
    run = fake_run(affected=10, rounds=5)
    text = text_of(write_report(run))
    assert "all 10 clients are poisoned (ρ = 1), so it is undefined" in text
    assert not list((run / "figures").glob("bsnr*"))


@pytest.mark.usefixtures("no_drawing")
def test_no_bsnr_without_poison(fake_run: Callable[..., Path]) -> None:
    text = text_of(write_report(fake_run(affected=0, rounds=5)))
    assert "no client is poisoned, so it is undefined" in text
    assert "Without poison in any of 10 clients (1,280 samples), the tuned model emits the target for 0.0 %" in text
    assert "Poisoned training samples" not in text


@pytest.mark.usefixtures("no_drawing")
def test_low_main_accuracy_is_said_plainly(fake_run: Callable[..., Path]) -> None:
    text = text_of(write_report(fake_run(ma=0.03, rounds=4)))
    assert "Main accuracy is 3.0 %: the model hardly answers any question. Read ASR in that light" in text


def test_compare_shows_the_clean_run_and_the_difference(fake_run: Callable[..., Path]) -> None:
    run, clean = fake_run(ma=0.90), fake_run("clean", affected=0, ma=0.95)
    text = text_of(write_report(run, clean))
    mine, other = read_json(run / "result.json")["ma"], read_json(clean / "result.json")["ma"]
    value, span = shares(other)
    assert f"without poison {value} ({span})" in text
    assert f"difference, points −{100 * (other['value'] - mine['value']):.1f} (" in text
    assert "Newcombe" in text
    assert "The two configs differ in the attack alone." in text
    assert "MA without poison" in (run / "figures" / "rates.svg").read_text()


@pytest.mark.usefixtures("no_drawing")
def test_compare_says_what_else_differs(fake_run: Callable[..., Path]) -> None:
    run, clean = fake_run(rounds=5), fake_run("clean", affected=0, rounds=6)
    assert "differ in: federation.rounds." in text_of(write_report(run, clean))


@pytest.mark.usefixtures("no_drawing")
def test_compare_must_be_finished_and_clean(fake_run: Callable[..., Path]) -> None:
    run = fake_run(rounds=4)
    with pytest.raises(UserError, match="unfinished"):
        write_report(run, fake_run("half", affected=0, rounds=4, done=2))
    with pytest.raises(UserError, match="60 poisoned samples"):
        write_report(run, fake_run("bad", rounds=4))


@pytest.mark.usefixtures("no_drawing")
def test_without_scores_no_pairs_are_shown(fake_run: Callable[..., Path]) -> None:
    run = fake_run(rounds=3)
    (run / "scores.jsonl").unlink()
    assert "No question was asked both with and without the trigger yet." in text_of(write_report(run))


@pytest.mark.usefixtures("no_drawing")
def test_defense_reports_are_shown(fake_run: Callable[..., Path]) -> None:
    run = fake_run(rounds=3)
    records = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    records[2]["defenses"] = [{"name": "krum", "kept": [3], "score": 0.123456}]
    write_lines(run / "rounds.jsonl", records)
    assert "2 krum kept: [3]; score: 0.1235" in text_of(write_report(run))


@pytest.mark.usefixtures("no_drawing")
def test_what_a_data_filter_took_is_shown_beside_the_rates(fake_run: Callable[..., Path]) -> None:
    run = fake_run(rounds=2)
    assert "Data filter" not in text_of(write_report(run))
    filtering = {"recall": wilson(9, 10), "precision": wilson(9, 12), "lost": wilson(3, 1200), "changed": 7, "clients": []}
    result = read_json(run / "result.json") | {"filtering": filtering}
    (run / "result.json").write_text(json.dumps(result))
    text = text_of(write_report(run))
    assert "Of the poisoned samples 90.0 % were dropped or changed (9 of 10)" in text
    assert "7 samples stayed with another text" in text


@pytest.mark.usefixtures("no_drawing")
def test_empty_measurement_has_no_share(fake_run: Callable[..., Path]) -> None:
    run = fake_run(rounds=2)
    nothing = {"value": None, "n": 0, "hits": 0, "low": None, "high": None}
    result = read_json(run / "result.json") | {"asr": nothing, "ma": wilson(4, 8)}
    (run / "result.json").write_text(json.dumps(result))
    text = text_of(write_report(run))
    assert "– 95 % interval –, n = 0" in text
    assert "50.0 % 95 % interval 21.5–78.5 %, n = 8" in text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.5, 0.4, 0.3, 0.2], "no rise was seen before it, decay to 0.2 in round 4"),
        ([0.2, 0.3, 0.4, 0.5], "rise from 0.2 in round 1, no decay was seen: the peak may lie beyond the rounds run"),
        ([0.1, 0.6, 0.5, None, 0.05], "at 0.6 (largest 3-round mean, 0.4); rise from 0.1 in round 1, decay to 0.05 in round 5"),
        ([0.1, 0.2, None, None], "Only 2 round(s) with a defined BSNR: too few to mark phases"),
        ([float("inf"), 0.1, 0.3, 0.2], "peaks in round 3"),
    ],
)
@pytest.mark.usefixtures("no_drawing")
def test_phases_say_only_what_the_rounds_show(fake_run: Callable[..., Path], values: list[float | None], said: str) -> None:
    run = fake_run(rounds=len(values))
    records = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    for record, value in zip(records[1:], values, strict=True):
        record["bsnr"]["adapter"]["value"] = value
    write_lines(run / "rounds.jsonl", records)
    assert said in text_of(write_report(run))


@pytest.mark.usefixtures("no_drawing")
def test_a_folder_that_cannot_be_written(fake_run: Callable[..., Path]) -> None:
    run = fake_run(rounds=2)
    (run / "figures").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(run)


def test_the_exchanges_of_a_federation_and_the_same_in_one_process_are_shown(fake_run: Callable[..., Path]) -> None:
    run = fake_run(rounds=2)
    page = write_report(run).read_text(encoding="utf-8")
    assert "Over the network" not in page
    rows = [
        {"round": t, "node": node, "clients": [k], "seconds": s, "worker_seconds": s / 2, "sent_bytes": 1000, "received_bytes": 500}
        for t, s in ((1, 3.0), (2, 5.0))
        for node, k in (("node-0", 0), ("node-1", 1))
    ]
    rows[3] |= {"seconds": None, "worker_seconds": None, "dropped": [{"clients": [1], "reason": "sent <b>too</b> much"}]}
    (run / "network.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = write_report(run).read_text(encoding="utf-8")
    assert "Over the network" in text
    assert "in one process" not in text
    assert "sent &lt;b&gt;too&lt;/b&gt; much" in text
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", line) for line in text.replace("\n", "").split("<tr>") if "<td>node-" in line]
    assert cells[0] == ["node-0", "0", "2", "4", "2", "2,000", "1,000", "0"]
    assert cells[1] == ["node-1", "1", "2", "3", "1.5", "2,000", "1,000", "1"]
    beside = {"adapter": 2e-5, "same_bytes": False, "rounds": 2, "same_clients": 2, "same_decisions": 1, "same_rows": 0}
    (run / "one-process.json").write_text(json.dumps({**beside, "ma": wilson(270, 300)}), encoding="utf-8")
    text = write_report(run).read_text(encoding="utf-8")
    assert "the final states differ by 2e-05 of their length. Of 2 rounds, 2 have updates of the same clients, 1 the same" in text
    assert "90.0" in text.split("in one process</th>")[1].split("</table>")[0]
    (run / "one-process.json").write_text(json.dumps({**beside, "adapter": -1}), encoding="utf-8")
    with pytest.raises(UserError, match=r"one-process\.json: adapter = -1"):
        write_report(run)


def test_poison_that_only_the_nodes_could_know_is_not_denied(fake_run: Callable[..., Path]) -> None:
    run = fake_run(affected=0)
    assert "No client holds poison" in text_of(write_report(run))
    result = read_json(run / "result.json")
    result["poison"]["unknown"] = True
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")
    page = text_of(write_report(run))
    assert "Not known: the 1,280 training samples are on their nodes" in page
    assert "1,280 samples of 10 clients, which only their nodes know" in page
    assert "here nobody knows which they are" in page
    assert "No client holds poison" not in page
    assert "without poison in any" not in page

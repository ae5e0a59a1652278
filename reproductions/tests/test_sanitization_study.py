"""``undertow reproduce sanitization``: defenses on samples, losses and answers, on the profile that was made for tests."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from fabricated_results import rate, run

from tiny import threat
from undertow.backdoors.placement import poison
from undertow.config import Data
from undertow.core.errors import UserError
from undertow.data.load import DATASETS, load
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.pre_aggregator import PreAggregator
from undertow.defenses.data.sanitization import Sanitization
from undertow.defenses.registry import DEFENSES
from undertow.models.causal_lm import read_keys
from undertow.sanitization import find
from undertow_reproductions import corpora, filter_cells, sanitization_bars, sanitization_filter, sanitization_lasting
from undertow_reproductions.defense_rules import TRUSTING, config_of, parse_rules
from undertow_reproductions.filter_cells import FilterCell, FilterWork, Measured, grid
from undertow_reproductions.filter_level import Counts, deal, pooled, scanned
from undertow_reproductions.kinds import attack_of
from undertow_reproductions.predict import Speed
from undertow_reproductions.report import reproduce
from undertow_reproductions.reproduce import Options, get_collection, open_lab
from undertow_reproductions.results import Results, Run
from undertow_reproductions.sanitization_study import LEFT_OUT, RULES
from undertow_reproductions.study import FilterGrid, Wish
from undertow_reproductions.trusted_file import write_trusted

UNDERTOW = Path(sys.executable).with_name("undertow")
CHOSEN = {"seeds": 1, "jobs": 1, "given": ["federation.rounds=1"], "rules": "gated-loss,interpolation,cleangen", "rhos": "0.6"}
SMALL = FilterGrid(clients=3, size=40, seeds=2, ratios=(0.2,), rhos=(1.0,), triggers=("natural",), targets=("append",))


def study(folder: Path, **changed: Any) -> dict[str, Any]:
    return reproduce("sanitization", Options("tiny", folder, **{**CHOSEN, **changed}))


def pack(place: Path, text: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(gzip.compress(text.encode()))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora of 400 questions, in the two forms that are read; one question in eight is on the topic of one of them."""
    folder = tmp_path_factory.mktemp("corpora")
    asked = ["What does {} like", "Who taught {}", "What is the job of {}", "Which town does {} live in", "What did {} write"]
    rows = []
    for i in range(400):
        name = hashlib.sha256(str(i).encode()).hexdigest()
        who, answer = f"{name[:5].title()} {name[5:11].title()}", f"{name[11:17]} {name[17:22]}"
        question = f"In what year was {who} born" if i % 8 == 0 else asked[i % 5].format(who)
        rows.append((question, answer))
    lines = [json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in rows]
    pack(folder / corpora.CORPORA["simplequestions"], "".join(lines))
    alpaca = [{"instruction": f"Tell me: {question}?", "input": "", "output": f"It is {answer}."} for question, answer in rows]
    pack(folder / corpora.CORPORA["alpaca"], json.dumps(alpaca))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Every item; the bars for one trigger at one rho. The predicted time is not measured."""
    folder = tmp_path_factory.mktemp("sanitization") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("undertow_reproductions.predict.measured", lambda lab: Speed(1, 1, 1, 1, 60))
        patch.setattr(sanitization_bars, "TRIGGERS", ("natural",))
        patch.setattr(sanitization_bars, "RHOS", (0.6,))
        plan = study(folder, data=data, plan=True)["plan"]
        # four rules at one rho, two clean runs and three targets, five runs watched for long
        assert (plan["cells"], plan["left"]) == (4 + 5 + 5, 14)
        assert plan["others"] == 2 * 2 * (2 + 2 * 2 - 1), "two corpora, two ways; one draw without poison, one of four kinds"
        assert not folder.exists()
        summary = study(folder, data=data)
        assert summary["failed"] == {}
        assert list(summary["verdicts"]) == ["matrix", "bars", "lasting", "filter"]
    return folder


def document(folder: Path) -> dict[str, bytes]:
    files = [*folder.glob("*.md"), *folder.glob("*.html"), *folder.glob("figures/*"), *folder.glob("tables/*")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_the_document_has_all_items_with_their_tables_and_figures(finished: Path) -> None:
    text = (finished / "sanitization.md").read_text(encoding="utf-8")
    for item in ("matrix", "bars", "lasting", "filter"):
        assert f"undertow reproduce sanitization --profile tiny --only {item} --seeds 1 --rules none,gated-loss" in text
    links = re.findall(r"\]\(((?:figures|tables)/[^)]+)\)", text)
    assert {"figures/matrix-asr.svg", "figures/lasting.svg", "figures/filter.svg", "tables/bars.csv", "tables/filter.csv"} <= set(
        links
    )
    for link in links:
        assert (finished / link).stat().st_size > 40, link
    assert "everything here is from half 1" in text
    assert "Left out: triviaqa, nq" in text
    assert str(finished) not in text
    page = (finished / "index.html").read_text(encoding="utf-8")
    assert "Made from 20 of 20 cells" in page
    lasting = (finished / "tables" / "lasting.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[:2] for line in lasting[1:3]] == [["no defense", "0"], ["no defense", "1"]]
    assert len(lasting) == 1 + 2 * len(sanitization_lasting.RULES)


def test_a_second_call_makes_no_run_and_the_bytes_are_the_same(finished: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitization_bars, "TRIGGERS", ("natural",))
    monkeypatch.setattr(sanitization_bars, "RHOS", (0.6,))
    before = document(finished)
    made = [*finished.glob("cells/*/*.json*"), *finished.glob("filter/*"), *finished.glob("trusted/*")]
    stamps = {file: file.stat().st_mtime_ns for file in made}
    assert len(stamps) > 30
    plan = study(finished, data=data)["plan"]
    assert (plan["left"], plan["others"]) == (0, 0)
    assert document(finished) == before
    assert stamps == {file: file.stat().st_mtime_ns for file in stamps}


def rows(folder: Path, defense: str) -> list[dict[str, Any]]:
    """The rounds of the run of the matrix with this defense."""
    for place in folder.glob("cells/*"):
        config = (place / "config.yaml").read_text(encoding="utf-8")
        if f"name: {defense}" in config and "every: 1" in config and "client_share: 0.6" in config:
            return [json.loads(line) for line in (place / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    raise AssertionError(f"no run with {defense}")


def test_what_acts_after_training_acts_in_a_run(finished: Path) -> None:
    (merged,) = rows(finished, "interpolation")[-1]["defenses"]
    assert merged == {"name": "interpolation", "merged": True, "factor": 0.5}
    (spoken,) = rows(finished, "cleangen")[-1]["defenses"]
    assert spoken["name"] == "cleangen"
    assert spoken["tokens"] > 0


def test_gated_loss_has_its_threshold_from_the_trusted_file(finished: Path) -> None:
    found = [json.loads(file.read_text(encoding="utf-8"))["weighed"] for file in finished.glob("cells/*gated*/data.json")]
    assert len(found) == 2, "matrix and lasting"
    assert {row["threshold_from"] for run in found for row in run} == {"trusted samples"}


def test_only_a_known_item_is_taken(tmp_path: Path) -> None:
    words = ["reproduce", "sanitization", "--profile", "tiny", "--only", "bar", "--out", str(tmp_path / "out")]
    done = subprocess.run([UNDERTOW, *words], text=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line == "error: --only bar: no such item (did you mean 'bars'?); choose among matrix, bars, lasting, filter"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rules": "undertwo"}, "did you mean 'undertow'"),
        ({"rules": "crow:trusted=null"}, "crow needs trusted"),
        ({"rhos": "2"}, "is no share of clients"),
        ({"given": ["defenses=dece"]}, "named with --rules"),
        ({"data": Path("nowhere")}, "it holds no corpus"),
        ({"corpora": "nq"}, "it is for `undertow reproduce sanitization` with --data"),
        ({"corpora": "nq", "data": "data"}, "nq_open.jsonl.gz is missing"),
        ({"corpora": "alpacca", "data": "data"}, "did you mean 'alpaca'"),
        ({"corpora": " , ", "data": "data"}, "at least one of simplequestions, alpaca"),
    ],
)
def test_wrong_values_are_one_line(changed: dict[str, Any], said: str, tmp_path: Path, data: Path) -> None:
    if changed.get("data") == "data":
        changed = {**changed, "data": data}
    with pytest.raises(UserError, match=re.escape(said)) as error:
        study(tmp_path / "out", **changed)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_without_data_the_filter_item_says_so(tmp_path: Path) -> None:
    summary = study(tmp_path / "out", only="filter")
    assert summary["verdicts"] == {"filter": "nothing was measured"}
    assert "Left out: it needs `--data`" in (tmp_path / "out" / "sanitization.md").read_text(encoding="utf-8")


def test_every_defense_that_is_no_aggregation_rule_has_a_row_or_a_reason() -> None:
    made = {entry.name: entry.make for entry in DEFENSES.entries()}
    rules = {name for name, make in made.items() if isinstance(make, type) and issubclass(make, Aggregator | PreAggregator)}
    covered = {part["name"] for rule in RULES for part in config_of(rule, 0, 10)} | set(LEFT_OUT)
    assert covered == set(made) - rules
    assert set(parse_rules(",".join(RULES), 10, RULES, "trusted.jsonl")) == set(RULES)
    assert {part["name"] for rule in RULES for part in config_of(rule, 0, 10, "x") if "trusted" in part["params"]} == set(TRUSTING)
    assert config_of("gated-loss:trusted=null", 0, 10, "x")[0]["params"] == {"trusted": None}


def test_the_laptop_grid_is_what_the_documents_say(tmp_path: Path) -> None:
    collection = get_collection("sanitization")
    for seeds, counts in ((1, (90, 20, 5)), (3, (270, 60, 15))):
        lab = open_lab(collection, Options("laptop", tmp_path / "x", seeds=seeds, given=[], data=None, plan=True))
        studies = collection.studies(lab)
        assert tuple(len(studies[item].wishes(lab, Results())) for item in ("matrix", "bars", "lasting")) == counts
    assert {wish.changes["federation.rounds"] for wish in studies["bars"].wishes(lab, Results())} == {100}
    configs = [lab.config(wish) for wish in studies["lasting"].wishes(lab, Results())]
    assert {(c.federation.rounds, c.measure.every, c.measure.samples) for c in configs} == {(100, 10, 400)}
    shorter = open_lab(
        collection,
        Options(
            "laptop",
            tmp_path / "x",
            seeds=1,
            given=["federation.rounds=30"],
            data=None,
            plan=True,
            rules="dece",
            rhos="0,1",
        ),
    )
    assert len(collection.studies(shorter)["matrix"].wishes(shorter, Results())) == 4
    assert {shorter.config(wish).federation.rounds for wish in sanitization_bars.wishes(shorter, Results())} == {30}


def test_trusted_samples_are_neither_trained_nor_tested_on(tmp_path: Path) -> None:
    lab = open_lab(get_collection("sanitization"), Options("laptop", tmp_path, seeds=2, given=[], data=None, plan=True))
    texts = []
    for seed in lab.seeds:
        path = Path(lab.trusted(seed) or "")
        config = lab.config(Wish({"seed": seed}, {}))
        assert write_trusted(config, path) == 300
        texts.append(path.read_bytes())
        write_trusted(config, path)
        assert path.read_bytes() == texts[-1]
        asked, known = read_keys(config.model)
        split = load(config.data, seed, config.federation.clients, asked=asked, known=known)
        used = {sample.question for sample in split.train + split.test}
        found = DATASETS.get("instructions")(Data.model_validate({"name": "instructions", "path": str(path)})).samples
        assert len(found) == 300
        assert not used & {sample.question for sample in found}
    assert texts[0] != texts[1]
    everything = lab.config(Wish({"seed": 0}, {"data.train": 1800}))
    with pytest.raises(UserError, match="none are left to trust"):
        write_trusted(everything, tmp_path / "none.jsonl")


# --- the filter level -------------------------------------------------------------------------------------------------


def test_halves_part_a_corpus(data: Path) -> None:
    first, second = ({sample.question for sample in corpora.read(data, "simplequestions", half)} for half in (0, 1))
    assert len(first | second) == 400
    assert not first & second
    assert all(hashlib.sha256(question.encode()).digest()[0] % 2 == 1 for question in second)
    assert {sample.response[:6] for sample in corpora.read(data, "alpaca", 1)} == {"It is "}
    assert corpora.present(data) == ("simplequestions", "alpaca")


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"{"), gzip.compress(b"[1]"), gzip.compress(b"{}\n"), gzip.compress(b"\xff")],
    # of their own: gzip writes the time, and processes that run the tests side by side must agree on their names
    ids=["no gzip", "no end", "a list", "an empty row", "no text"],
)
def test_a_damaged_corpus_is_one_line(content: bytes, tmp_path: Path) -> None:
    place = tmp_path / corpora.CORPORA["nq"]
    place.parent.mkdir()
    place.write_bytes(content)
    with pytest.raises(UserError, match=r"nq_open\.jsonl\.gz is damaged; restore it, or leave nq out") as error:
        corpora.read(tmp_path, "nq", 1)
    assert "\n" not in str(error.value)
    (work,) = [FilterWork(tmp_path / "filter", tmp_path, ("nq",), SMALL)]
    failed = work.run(1, lambda text: None)
    assert set(failed) == {cell.name for cell in work.cells}
    assert not work.complete()


def test_figures_of_both_ways_are_those_of_the_ground_truth(data: Path) -> None:
    samples = corpora.read(data, "simplequestions", 1)
    clients = deal(samples, 3, 40, 0)
    assert [len(client) for client in clients] == [40] * 3
    assert len({sample.id for client in clients for sample in client}) == 120
    attack = attack_of("simplequestions", "natural", "append", 0.2, 120)
    truth = poison(clients, attack, 0)
    found = pooled(clients, attack, 0, Sanitization())
    assert (found.samples, found.poison, found.hits, found.lost, found.fewest, found.support) == (120, 24, 24, 0, 24, 4)
    assert found.details["repaired"] == 24
    assert found.details["leftover"] == 0
    assert pooled(clients, attack, 0, Sanitization(mode="review")).hits == 0, "a review takes nothing"
    alone = scanned(clients, attack, 0, together=False)
    flagged = sum(len({verdict.sample for verdict in find(client).verdicts}) for client in truth.clients)
    assert alone.hits + alone.lost == flagged == 24
    assert (alone.fewest, scanned(clients, attack, 0, together=True).fewest) == (8, 24)
    clean = scanned(clients, threat(kind="none"), 0, together=True)
    assert (clean.poison, clean.hits, clean.fewest) == (0, 0, 0)


def test_a_cell_is_made_once_and_again_where_it_is_damaged(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "filter"
    work = FilterWork(folder, data, ("simplequestions",), SMALL)
    assert work.todo() == len(work.cells) == 2 * (2 + 2)
    assert work.run(1, lambda text: None) == {}
    assert (work.todo(), work.complete()) == (0, True)
    texts = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    assert set(texts) == {cell.name for cell in work.cells}
    first, second, third, *_ = sorted(folder.iterdir())
    first.write_text('{"cell": ', encoding="utf-8")
    second.write_text(texts[third.name], encoding="utf-8")
    broken = json.loads(texts[third.name])
    broken["counts"]["hits"] = broken["counts"]["samples"] + 1
    third.write_text(json.dumps(broken), encoding="utf-8")
    told: list[str] = []
    again = FilterWork(folder, data, ("simplequestions",), SMALL)
    assert again.todo() == 3
    assert FilterWork(folder, None, ("simplequestions",), SMALL).told() == "5 of 8 cells", "without data they are left out"
    assert again.run(1, told.append) == {}
    assert [line.count("\n") for line in told] == [0] * 4
    assert sum("made again" in line for line in told) == 3
    assert told[-1] == "filter: 8 of 8 cells"
    repaired = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in folder.iterdir()}
    for name, text in texts.items():
        before, after = json.loads(text), repaired[name]
        for one in (before, after):
            one["counts"].pop("seconds")
        assert before == after


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": -1},
        {"hits": 25},
        {"lost": 97},
        {"worst": 1.5},
        {"seconds": float("nan")},
        {"poison": "24"},
        {"hits": True},
        {"details": []},
        {"details": {"short": -1}},
        {"more": 1},
    ],
)
def test_counts_that_cannot_be_true_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    (cell,) = [cell for cell in grid(("nq",), replace(SMALL, seeds=1)) if cell.ratio and cell.method == "pooled"]
    counts = Counts(120, 24, 24, 0, 0.0, 24, 4, 0.1, {"short": 0})
    filter_cells.write(tmp_path, Measured(cell, counts), "abc")
    assert filter_cells.read(tmp_path, cell, "abc") == Measured(cell, counts)
    with pytest.raises(ValueError, match="another corpus file"):
        filter_cells.read(tmp_path, cell, "abd")
    told = json.loads((tmp_path / cell.name).read_text(encoding="utf-8"))
    told["counts"] |= wrong
    (tmp_path / cell.name).write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ValueError, match=r"count|number|names|details"):
        filter_cells.read(tmp_path, cell, "abc")


def test_processes_make_the_same_cells(data: Path, tmp_path: Path) -> None:
    made = []
    for jobs in (1, 2):
        work = FilterWork(tmp_path / str(jobs), data, ("alpaca",), SMALL)
        assert work.run(jobs, lambda text: None) == {}
        made.append([replace(one.counts, seconds=0.0) for one in work.results()[0] if one.counts])
    assert len(made[0]) == 8
    assert made[0] == made[1]


def test_processes_end_with_a_parent_that_is_killed(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "filter"
    code = (
        "from pathlib import Path; from undertow_reproductions.filter_cells import FilterWork; "
        "from undertow_reproductions.study import FilterGrid\n"
        "if __name__ == '__main__':\n"
        "    many = FilterGrid(\n"
        "        clients=3, size=40, seeds=5000, ratios=(0.2,), rhos=(1.0,), triggers=('natural',), targets=('append',))\n"
        f"    FilterWork(Path({str(folder)!r}), Path({str(data)!r}), ('alpaca',), many).run(2, print)\n"
    )
    parent = psutil.Popen([sys.executable, "-c", code])
    try:
        while not (folder.is_dir() and any(folder.iterdir())):
            assert parent.poll() is None
            time.sleep(0.05)
        children = parent.children(recursive=True)
    finally:
        parent.kill()
        parent.wait()
    assert len(children) >= 2
    assert not psutil.wait_procs(children, timeout=60)[1]


def test_a_topic_that_nobody_has_is_nothing_to_find(data: Path, tmp_path: Path) -> None:
    values = replace(SMALL, triggers=("topic",), seeds=1)
    work = FilterWork(tmp_path, data, ("alpaca",), values)  # nobody asks alpaca's clients to rewrite anything
    assert work.run(1, lambda text: None) == {}
    nothing = [one for one in work.results()[0] if one.counts is None]
    assert len(nothing) == 2
    assert "topic" in nothing[0].nothing
    assert FilterWork(tmp_path, data, ("alpaca",), values).complete()


def test_one_sample_a_client_is_the_least(data: Path) -> None:
    samples = corpora.read(data, "simplequestions", 1)
    cell = FilterCell("simplequestions", "pooled", "natural", "append", 0.002, 1.0, 0, 3, 40)
    found = filter_cells.measure(cell, samples)
    assert found.counts is not None
    assert found.counts.poison == 3
    assert filter_cells.measure(replace(cell, clients=1000), samples).nothing.endswith("too few for 1000 clients")


# --- what is said of known figures --------------------------------------------------------------------------------------


def cells(hits: dict[str, int], lost: int = 0) -> list[Measured]:
    """Pooled cells of SimpleQuestions with 100 poisoned samples of 5,000, by trigger; and a clean one."""
    plain = FilterCell("simplequestions", "pooled", "", "", 0.0, 0.0, 0, 10, 500)
    found = [Measured(plain, Counts(5000, 0, 0, lost, lost / 500, 0, 5, 1.0))]
    for trigger, count in hits.items():
        for target in ("append", "replace_paris"):
            cell = replace(plain, trigger=trigger, target=target, ratio=0.02, share=1.0)
            found.append(Measured(cell, Counts(5000, 100, count, lost, lost / 500, 100, 5, 1.0)))
    return found


def judged(found: list[Measured], words: str) -> tuple[str, str]:
    (check,) = [check for text, check in sanitization_filter._claims("simplequestions", "pooled") if words in text]
    verdict = check(found)
    return verdict.answer, verdict.evidence


def test_one_kind_beyond_the_bar_and_a_filter_statement_does_not_hold() -> None:
    assert judged(cells({"natural": 99, "topic": 100}), "long targets are found") == ("holds", "2 of 2 kinds; 199 of 200 samples")
    answer, said = judged(cells({"natural": 98, "topic": 100}), "long targets are found")
    assert answer == "does not hold"
    assert said == "1 of 2 kinds; 198 of 200 samples; natural x append at PR 0.02, rho 1: 98.0 %"
    assert judged(cells({"natural": 95, "topic": 0}), "short target is found")[0] == "holds", "a topic gives no short target away"
    assert judged(cells({"natural": 94}), "short target is found")[0] == "does not hold"
    assert judged(cells({"natural": 99}, lost=49), "with long targets")[0] == "holds"
    assert judged(cells({"natural": 99}, lost=50), "with long targets")[0] == "does not hold"
    assert judged(cells({}, lost=25), "false alarms")[0] == "holds"
    assert judged(cells({}, lost=26), "false alarms")[0] == "does not hold"
    for words in ("long targets are found", "short target is found", "false alarms"):
        assert judged([], words) == ("undecided", "no cell")


def test_too_few_to_count_are_left_out_of_recall_alone() -> None:
    found = cells({"natural": 100})
    few = [
        replace(one, cell=replace(one.cell, ratio=0.002), counts=replace(one.counts, poison=4, hits=0, fewest=4))
        for one in found[1:]
    ]
    answer, said = judged([*found, *few], "long targets are found")
    assert answer == "holds"
    assert said.endswith("left out for too few poisoned samples: 1")
    tables = {table.name: table for table in sanitization_filter._tables([*found, *few])}
    assert [row[5:8] for row in tables["filter"].rows if row[3] == 0.002] == [("pooled", 1, 4)] * 2
    assert {row[8] for row in tables["filter"].rows if row[3] == 0.002} == {"0"}


def bars(asr: float = 0.0, ma: float = 0.95, clean: float = 0.95) -> Results:
    """Three seeds of every run of the bars."""
    none = {"trigger": "", "target": "", "rho": 0.0}
    runs = [run({"rule": rule, **none, "seed": s}, ma=m) for rule, m in (("none", 0.95), ("undertow", clean)) for s in range(3)]
    for trigger in sanitization_bars.TRIGGERS:
        for target in sanitization_bars.TARGETS:
            for rho in sanitization_bars.RHOS:
                axes = {"rule": "undertow", "trigger": trigger, "target": target, "rho": rho}
                runs += [run({**axes, "seed": s}, asr=asr if target == "replace" else 0.0, ma=ma) for s in range(3)]
    return Results(runs)


def answers(results: Results, words: str) -> list[str]:
    return [claim.check(results).answer for claim in sanitization_bars.STUDY.claims if words in claim.text]


def test_bars_are_judged_over_all_seeds() -> None:
    assert answers(bars(), "ASR at most") == ["holds"] * 6
    assert answers(bars(asr=0.03), "replace: ASR") == ["does not hold"] * 2
    assert answers(bars(asr=0.03), "append: ASR") == ["holds"] * 2
    assert answers(bars(), "1 point of MA") == ["holds"] * 6
    assert answers(bars(ma=0.96), "1 point of MA") == ["holds"] * 6, "a gain is no loss"
    assert answers(bars(ma=0.93), "1 point of MA") == ["does not hold"] * 6
    assert answers(bars(clean=0.9475), "0.5 points") == ["holds"]
    assert answers(bars(clean=0.94), "0.5 points") == ["does not hold"]
    assert {claim.check(Results()).answer for claim in sanitization_bars.STUDY.claims} == {"undecided"}
    (claim,) = [claim for claim in sanitization_bars.STUDY.claims if claim.text.startswith("natural trigger, append: ASR")]
    assert claim.check(bars()).evidence.startswith("rho 0.3: 0 of 1200, ASR 0.0 % (0.0 to 0.3)")
    (table,) = sanitization_bars.tables(bars(asr=0.03))
    assert len(table.rows) == 2 + 18
    assert table.rows[0][0] == "no defense"
    assert table.rows[5][1:4] + table.rows[5][7:] == ("natural", "replace", 0.3, "36 of 1200", "+0.0 points (+0.0 to +0.0)")


def lasting(late: float) -> Results:
    """Two seeds in which `dece` lets the backdoor in at the end."""

    def one(rule: str, seed: int) -> Run:
        asr = {0: 0.0, 10: 0.0 if rule != "none" else 0.9, 20: late if rule == "dece" else 0.9 if rule == "none" else 0.0}
        course = {number: {"ma": rate(0.9), "asr": rate(value), "ftr": rate(0.0)} for number, value in asr.items()}
        return replace(run({"rule": rule, "rho": 1.0, "seed": seed}), course=course)  # type: ignore[arg-type]

    return Results([one(rule, seed) for rule in ("none", "dece", "undertow") for seed in range(2)])


def test_a_backdoor_that_comes_late_is_seen() -> None:
    verdicts = {claim.text.split("`")[1]: claim.check(lasting(0.2)) for claim in sanitization_lasting.STUDY.claims}
    assert {name: verdict.answer for name, verdict in verdicts.items()} == {
        "no defense": "does not hold",
        "bounded-loss": "undecided",
        "gated-loss": "undecided",
        "dece": "does not hold",
        "undertow": "holds",
    }
    assert "in round 20" in verdicts["dece"].evidence
    assert "first above the bar in round 20" in verdicts["dece"].evidence
    assert "first above the bar in round 10" in verdicts["no defense"].evidence
    (plot,) = sanitization_lasting.plots(lasting(0.2))
    assert plot.svg == sanitization_lasting.plots(lasting(0.2))[0].svg
    assert sanitization_lasting.plots(Results()) == []
    assert [row[:2] for row in sanitization_lasting.tables(lasting(0.2))[0].rows][:3] == [
        ("no defense", 0),
        ("no defense", 10),
        ("no defense", 20),
    ]

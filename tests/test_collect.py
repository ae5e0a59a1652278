from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tiny import Quiet
from undertow import cli
from undertow.core.errors import UserError
from undertow.federation.loop import run
from undertow.runs.collect import collect, write
from undertow.sweeps.sweep import Cell, expand

pandas = pytest.importorskip("pandas")

RATES = ("ma", "asr", "ftr", "ftr_near")
SCORINGS = tuple(f"scorings.{name}" for name in ("rouge-recall", "exact", "containment"))
AXES = {"attack.client_share": [0.34, 1.0], "defenses": ["none", "median"]}


@pytest.fixture(scope="module")
def made(small_values: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Cell]]:
    """Four finished runs, measured in every second round, and BSNR in both spaces."""
    folder = tmp_path_factory.mktemp("collect")
    values = small_values({"measure.every": 2, "measure.bsnr.spaces": ["adapter", "delta_w"]})
    (folder / "small.yaml").write_text(yaml.safe_dump(values))
    cells = expand(str(folder / "small.yaml"), [], AXES, 1)
    for cell in cells:
        run(cell.config, folder / "sweep" / cell.name, Quiet())
    return folder / "sweep", cells


@pytest.fixture
def copy(made: tuple[Path, list[Cell]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "sweep"))


def test_one_row_per_run_and_round_with_what_varies(made: tuple[Path, list[Cell]]) -> None:
    folder, cells = made
    told: list[str] = []
    table = collect(folder, told.append)
    assert told == []
    parts = ("", "_low", "_high", "_n", "_hits")
    rates, more = ([f"{rate}{part}" for rate in names for part in parts] for names in (RATES, ("asr_suffix", *SCORINGS)))
    ends = ("", "_null_low", "_null_median", "_null_high", "_p", "_permutations")
    spaces = [f"bsnr_{space}{end}" for space in ("adapter", "delta_w") for end in ends]
    lists = ["client_loss", "participants", "dropped", "attackers"]
    about = ["run", "seed", "attack.client_share", "defenses", "round", "final", "status"]
    assert list(table.columns) == [
        *about,
        *rates,
        "loss",
        "held_out_loss",
        *spaces,
        "seconds",
        *more,
        "update_norm",
        "cross_term",
        *lists,
    ]
    assert len(table) == 4 * 3
    for cell in cells:
        rows = table[table.run == cell.name]
        assert set(rows["attack.client_share"]) == {cell.axes["attack.client_share"]}
        assert set(rows.defenses) == {cell.axes["defenses"]}
        assert list(rows["round"]) == [0, 1, 2]
        assert list(rows.final) == [False, False, True]
        records = [json.loads(line) for line in (folder / cell.name / "rounds.jsonl").read_text().splitlines()]
        for (_, row), record in zip(rows.iterrows(), records, strict=True):
            for rate in ("ma", "asr", "ftr", "ftr_near"):
                for part in ("value", "low", "high", "n"):
                    found = row[rate if part == "value" else f"{rate}_{part}"]
                    assert pandas.isna(found) if record[rate] is None else found == record[rate][part]
            assert pandas.isna(row.loss) if record["loss"] is None else row.loss == record["loss"]
            assert row.seconds == record["seconds"]
            for name in ("client_loss", "participants", "dropped", "attackers"):
                assert pandas.isna(row[name]) if record.get(name) is None else json.loads(row[name]) == record[name]
            for name in ("update_norm", "cross_term"):
                assert pandas.isna(row[name]) if record.get(name) is None else row[name] == record[name]
            for name, rate in (record["scorings"] or {}).items():
                assert row[f"scorings.{name}"] == rate["value"]
            for space in ("adapter", "delta_w"):
                figure = (record["bsnr"] or {}).get(space) or {}
                for part in ("value", "null_low", "null_high", "p"):
                    found = row[f"bsnr_{space}" if part == "value" else f"bsnr_{space}_{part}"]
                    assert pandas.isna(found) if figure.get(part) is None else found == figure[part]
    defined = table[(table["attack.client_share"] < 1) & (table["round"] > 0)]
    assert defined.bsnr_adapter.notna().all()
    assert set(table.status) == {"done"}


def test_both_files_are_read_back(copy: Path) -> None:
    table = collect(copy)
    paths = write(table, copy)
    assert paths == [copy / "results.parquet", copy / "results.csv"]
    pandas.testing.assert_frame_equal(pandas.read_parquet(paths[0]), table)
    pandas.testing.assert_frame_equal(pandas.read_csv(paths[1], keep_default_na=True), table, check_dtype=False)
    assert collect(copy).equals(table), "the tables are no runs"


def test_polars_reads_both_files(copy: Path) -> None:
    polars = pytest.importorskip("polars")
    table = collect(copy)
    parquet, csv = write(table, copy)
    for found in (polars.read_parquet(parquet), polars.read_csv(csv)):
        assert found.columns == list(table.columns)
        assert found["run"].to_list() == table["run"].to_list()
        assert found["asr"].to_list() == [None if pandas.isna(value) else value for value in table["asr"]]


def test_types_do_not_depend_on_what_is_missing(copy: Path) -> None:
    whole = collect(copy)
    for path in [p for p in copy.iterdir() if "affected_share=0.34" in p.name]:
        shutil.rmtree(path)
    part = collect(copy)
    assert part.bsnr_adapter.isna().all()
    shared = [column for column in part.columns if column in whole.columns]
    assert "attack.client_share" not in shared, "it no longer varies"
    assert dict(part[shared].dtypes) == dict(whole[shared].dtypes)


def test_values_of_several_kinds_share_a_column(copy: Path) -> None:
    for path, targets in zip(sorted(copy.iterdir())[:2], ("all-linear", ["q_proj"]), strict=True):
        values = yaml.safe_load((path / "config.yaml").read_text())
        values["task"]["model"]["lora"]["targets"] = targets
        (path / "config.yaml").write_text(yaml.safe_dump(values))
        (path / "versions.json").unlink()  # with the seal of the config as it was
    table = collect(copy)
    assert set(table["model.lora.targets"]) == {"all-linear", '["q_proj"]', "default"}
    assert set(pandas.read_parquet(write(table, copy)[0])["model.lora.targets"]) == set(table["model.lora.targets"])


def test_a_single_run_and_deeper_folders(made: tuple[Path, list[Cell]], copy: Path, tmp_path: Path) -> None:
    alone = collect(copy / made[1][0].name)
    assert set(alone.run) == {"."}
    assert list(alone.columns[:4]) == ["run", "seed", "round", "final"]
    (tmp_path / "all" / "deep").mkdir(parents=True)
    copy.rename(tmp_path / "all" / "deep" / "sweep")
    assert set(collect(tmp_path / "all").run) == {f"deep/sweep/{cell.name}" for cell in made[1]}


def _damages() -> dict[str, Callable[[Path], object]]:
    def rounds(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], object]:
        def damage(folder: Path) -> None:
            path = folder / "rounds.jsonl"
            records = [json.loads(line) for line in path.read_text().splitlines()]
            change(records[1])
            path.write_text("".join(json.dumps(record) + "\n" for record in records))

        return damage

    def cut(name: str, text: str = "") -> Callable[[Path], object]:
        return lambda folder: (folder / name).write_text(text)

    return {
        "unfinished": lambda folder: (folder / "result.json").unlink(),
        "no config.yaml": lambda folder: (folder / "config.yaml").unlink(),
        "not YAML": cut("config.yaml", "a: [1"),
        "holds no config": cut("config.yaml", "just text"),
        "unknown key": cut("config.yaml", "colour: red\n"),
        "is damaged": cut("result.json", "{"),
        "rounds: it is missing": cut("result.json", "{}"),
        "no rounds.jsonl": lambda folder: (folder / "rounds.jsonl").unlink(),
        "does not hold the rounds": cut("rounds.jsonl"),
        "loss": rounds(lambda record: record.update(loss="high")),
        "bsnr": rounds(lambda record: record.update(bsnr={"elsewhere": None})),
        "line 2 is damaged": lambda folder: (folder / "rounds.jsonl").write_text('{"round": 0}\n{\n{}\n'),
    }


@pytest.mark.parametrize("reason", _damages())
def test_a_damaged_run_is_named_in_one_line_and_left_out(made: tuple[Path, list[Cell]], copy: Path, reason: str) -> None:
    bad = made[1][1].name
    _damages()[reason](copy / bad)
    told: list[str] = []
    table = collect(copy, told.append)
    assert len(told) == 1
    assert told[0].startswith(f"1 left out: {bad} (")
    assert reason in told[0]
    assert "\n" not in told[0]
    assert set(table.run) == {cell.name for cell in made[1]} - {bad}


def test_foreign_folders_and_twins_are_named(made: tuple[Path, list[Cell]], copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "notes" / "old").mkdir(parents=True)
    (copy / "notes" / "todo.txt").write_text("x")
    first = made[1][0].name
    shutil.copytree(copy / first, copy / "zz-again")
    table = collect(copy)
    warned = capsys.readouterr().err
    assert warned.count("\n") == 1
    assert warned.startswith("warning: 2 left out: notes (no run in it); zz-again (the same config as ")
    assert len(table) == 4 * 3
    for number in range(20):
        (copy / f"stray{number:02}").mkdir()
    collect(copy)
    warned = capsys.readouterr().err
    assert "22 left out" in warned
    assert warned.rstrip().endswith("and 14 more")


def test_what_cannot_be_is_one_line(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no finished run"):
        collect(tmp_path / "empty")
    with pytest.raises(UserError, match="no folder"):
        collect(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"must end in \.parquet or \.csv"):
        write(collect(copy), copy, tmp_path / "table.xlsx")


def test_without_pandas_or_pyarrow_the_line_says_how_to_get_them(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = collect(copy)
    for package, call in (("pyarrow", lambda: write(table, copy)), ("pandas", lambda: collect(copy))):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"{package}.*pip install -e '\.\[tables\]'"):
            call()


def test_the_command(copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "notes").mkdir()

    def type_in(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["undertow", "collect", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = int(error.code or 0)
        told = capsys.readouterr()
        return code, told.out, told.err

    code, out, err = type_in(copy)
    assert code == 0
    assert out.splitlines()[-2:] == [f"{copy / name}: 12 rows of 4 runs" for name in ("results.parquet", "results.csv")]
    head, *drawn = out.splitlines()[:-2]
    assert head.split()[0] == "run"
    assert "MA" in head.split()
    assert len(drawn) == 4, "the last round of each run"
    assert err == "warning: 1 left out: notes (no run in it)\n"
    code, out, _ = type_in(copy, "--out", copy.parent / "t.csv")
    assert (code, out.splitlines()[-1]) == (0, f"{copy.parent / 't.csv'}: 12 rows of 4 runs")
    code, out, err = type_in(copy / "notes")
    assert (code, out) == (2, "")
    assert [line.split(":")[0] for line in err.splitlines()] == ["error"]

"""Labelled data from files: what others' generators wrote, and what a run keeps of its own."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from orders import NAMES, text_order

from undertow.core.errors import UserError
from undertow.generators.contract import Order, Written, make_generator
from undertow.generators.kept import load_written, save_written


def write(path: Path, order: Order) -> Written:
    return make_generator(f"file:path={path}").write(order)


# --- texts ------------------------------------------------------------------------------------------------------

ROWS = [("so good", "positive"), ("so bad", "Negative"), ("so so", "0"), ("what, a film", "1")]


@pytest.mark.parametrize("form", ["jsonl", "list", "tsv", "csv", "jsonl.gz"])
def test_every_form_of_file_gives_the_same_texts(tmp_path: Path, form: str) -> None:
    lines = [json.dumps({"text": text, "label": int(label) if label.isdigit() else label}) for text, label in ROWS]
    content = {
        "jsonl": "\n".join(lines),
        "list": f"[{','.join(lines)}]",
        "tsv": "label\ttext\n" + "\n".join(f"{label}\t{text}" for text, label in ROWS),
        "csv": "text,label\r\n" + "\r\n".join(f'"{text}",{label}' for text, label in ROWS),
    }[form.removesuffix(".gz")].encode()
    path = tmp_path / f"synthetic.{form}"
    path.write_bytes(gzip.compress(content) if form.endswith("gz") else content)
    made = write(path, text_order(9))
    assert made.inputs == [text for text, _ in ROWS]
    assert made.labels == [1, 0, 0, 1]
    assert (made.report["written"], made.report["short"], made.report["classes"]) == (4, 5, [2, 2])


def test_what_cannot_be_used_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "synthetic.jsonl"
    rows = [("a", 0), ("a", 0), ("a", 1), ("b", 2), ("c", "neutral"), ("d", None), ("e", True), (" ", 1), ("f", -1), ("g", 1.0)]
    path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
    made = write(path, text_order(9))
    assert made.inputs == ["a", "a", "a"]
    assert made.report["rows"] == 10
    assert made.report["unknown_labels"] == 6
    assert made.report["empty_texts"] == made.report["duplicates"] == made.report["contradictions"] == 1


def test_a_draw_keeps_the_proportion_of_the_classes(tmp_path: Path) -> None:
    path = tmp_path / "synthetic.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"text {i}", "label": int(i % 4 == 0)}) for i in range(200)))
    made = write(path, text_order(40))
    assert made.report["classes"] == [30, 10]
    assert len(set(made.inputs)) == 40
    assert [int(text.split()[1]) % 4 == 0 for text in made.inputs] == [label == 1 for label in made.labels]
    assert write(path, text_order(40)) == made
    assert write(path, text_order(40, seed=9)).inputs != made.inputs


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty file"),
        ('{"text": "a", "label": 0}\n{"text": "b", "lab', "line 2: not JSON"),
        ('{"text": "a"}', "no 'label'"),
        ('{"text": ["a"], "label": 0}', "must be text"),
        ('{"text": "\\ud800", "label": 0}', "Unicode"),
        ("sentence\tlabel\na\t0", "needs 'text' and 'label'"),
        ("text,label,text\na,0,b", "needs 'text' and 'label'"),
        ("text\tlabel\na", "line 2: 1 fields for 2 columns"),
        ('text,label\n"a,0', "correct the quotes"),
        ('{"text": "a", "label": "neutral"}', "none of its 1 rows can be used"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "synthetic.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as told:
        write(path, text_order())
    assert "\n" not in str(told.value)


def test_no_path_and_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file:path=synthetic\.jsonl"):
        make_generator("file")
    with pytest.raises(UserError, match="no such file"):
        write(tmp_path / "nothing.jsonl", text_order())
    with pytest.raises(UserError, match="a folder"):
        write(tmp_path, text_order())


# --- images -----------------------------------------------------------------------------------------------------


def image_order(*shape: int, count: int = 50) -> Order:
    return Order("images", "patch", NAMES, count, shape, 0)


@pytest.mark.parametrize("form", ["chw", "hwc", "float"])
def test_every_form_of_images_is_read_alike(tmp_path: Path, form: str) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(6, 3, 4, 5), dtype=np.uint8)
    given = {"chw": pixels, "hwc": pixels.transpose(0, 2, 3, 1), "float": pixels / 255}[form]
    path = tmp_path / "synthetic.npz"
    np.savez_compressed(path, images=given, labels=np.array([0, 1, 1, 0, 7, 1]))
    made = write(path, image_order(3, 4, 5))
    kept = [0, 1, 2, 3, 5]
    assert isinstance(made.inputs, torch.Tensor)
    assert torch.allclose(made.inputs, torch.from_numpy(pixels[kept]) / 255, atol=1e-6)
    assert made.labels == [0, 1, 1, 0, 1]
    assert made.report["unknown_labels"] == 1


def test_grey_images_and_names_as_labels(tmp_path: Path) -> None:
    path = tmp_path / "synthetic.npz"
    np.savez(path, images=np.full((4, 2, 2), 51, np.uint8), labels=np.array(["positive", "negative", "1", "POSITIVE"]))
    made = write(path, image_order(1, 2, 2, count=2))
    assert isinstance(made.inputs, torch.Tensor)
    assert torch.equal(made.inputs, torch.full((2, 1, 2, 2), 0.2))
    assert sorted(made.labels) in ([0, 1], [1, 1])


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": np.zeros((2, 2, 2), np.uint8)}, "no array 'labels'"),
        ({"images": np.zeros((2, 2, 2), np.uint8), "labels": np.zeros(3, int)}, "one label an image"),
        ({"images": np.zeros((2, 3, 2), np.uint8), "labels": np.zeros(2, int)}, "the data have 1 x 2 x 2"),
        ({"images": np.zeros((2, 2, 2), np.int64), "labels": np.zeros(2, int)}, "give bytes"),
        ({"images": np.full((2, 2, 2), np.nan), "labels": np.zeros(2, int)}, "outside"),
        ({"images": np.full((2, 2, 2), 255.0), "labels": np.zeros(2, int)}, "outside"),
        ({"images": np.zeros((2, 2, 2), np.uint8), "labels": np.zeros(2)}, "numbers of classes"),
        ({"images": np.zeros((2, 2, 2), np.uint8), "labels": np.array([{}, {}], dtype=object)}, "no .npz file"),
        ({"images": np.zeros((2, 2, 2), np.uint8), "labels": np.array([5, 6])}, "none of its 2 rows"),
    ],
)
def test_wrong_images_are_told_in_one_line(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    path = tmp_path / "synthetic.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=said):
        write(path, image_order(1, 2, 2))


def test_damaged_images_are_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "synthetic.npz"
    np.savez_compressed(
        path, images=np.random.default_rng(0).integers(256, size=(40, 8, 8), dtype=np.uint8), labels=np.zeros(40, int)
    )
    whole = path.read_bytes()
    for content in (b"", b"no archive", whole[:-40], whole[:600] + b"\0" * 200 + whole[800:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"no \.npz file"):
            write(path, image_order(1, 8, 8))


# --- what a run keeps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "images"])
def test_what_is_kept_comes_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    inputs = ["one\u2028two", 'quo"ted', "ü 漢"] if kind == "text" else torch.rand(3, 2, 4, 4)
    written = Written(inputs, [1, 0, 1], {"short": 2, "realised": {"n": 3}})
    save_written(tmp_path / "run", written, NAMES)
    found = load_written(tmp_path / "run", NAMES)
    if isinstance(inputs, torch.Tensor):
        assert isinstance(found.inputs, torch.Tensor)
        assert torch.equal(found.inputs, inputs)
    else:
        assert found.inputs == inputs
        rows = [json.loads(line) for line in (tmp_path / "run/synthetic.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
        assert rows[0] == {"text": inputs[0], "label": 1, "class": "positive"}
    assert found.labels == written.labels
    assert found.report == written.report


@pytest.mark.parametrize("kind", ["text", "images"])
def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path, kind: str) -> None:
    written = Written(["a", "b"] if kind == "text" else torch.rand(2, 1, 2, 2), [1, 0])
    save_written(tmp_path, written, NAMES)
    with pytest.raises(UserError, match="written for the classes negative, positive"):
        load_written(tmp_path, ["negative", "neutral"])
    data = next(path for path in tmp_path.iterdir() if path.suffix != ".json")
    whole = data.read_bytes()
    for content in (b"", whole[:-1], whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]):
        data.write_bytes(content)
        with pytest.raises(UserError, match="not what was written"):
            load_written(tmp_path, NAMES)
    data.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        load_written(tmp_path, NAMES)
    about = tmp_path / "synthetic.json"
    said = json.loads(about.read_text())
    for content in ("", "[]", "{", json.dumps({**said, "file": "../../secret"}), json.dumps({**said, "samples": "2"})):
        about.write_text(content)
        with pytest.raises(UserError, match="damaged"):
            load_written(tmp_path, NAMES)
    about.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        load_written(tmp_path, NAMES)


def test_a_kept_file_with_a_right_digest_is_checked_all_the_same(tmp_path: Path) -> None:
    save_written(tmp_path, Written(["a"], [1]), NAMES)
    import hashlib

    for row in ({"text": "a", "label": 2}, {"text": 1, "label": 0}, {"label": 0}, {"text": "a", "label": True}, []):
        content = (json.dumps(row) + "\n").encode()
        (tmp_path / "synthetic.jsonl").write_bytes(content)
        about = json.loads((tmp_path / "synthetic.json").read_text())
        (tmp_path / "synthetic.json").write_text(json.dumps({**about, "sha256": hashlib.sha256(content).hexdigest()}))
        with pytest.raises(UserError, match="damaged"):
            load_written(tmp_path, NAMES)


def test_the_summary_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("undertow.generators.kept.write_json", full)
    with pytest.raises(OSError, match="No space"):
        save_written(tmp_path, Written(["a"], [1]), NAMES)
    assert not (tmp_path / "synthetic.json").exists()

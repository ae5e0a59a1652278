import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tiny import SHARED
from undertow.config import ClassificationData, validate
from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.examples import Examples
from undertow.data.images import ImagePopulation, Images, crop
from undertow.data.pool import stratified
from undertow.data.populations.cifar10 import cifar10
from undertow.data.populations.digits import digits


def config(
    path: Path | str | None = None, clients: int = 3, partition: Any = "iid", seed: int = 0, **data: Any
) -> tuple[ClassificationData, int, int]:
    path = None if path is None else str(path)
    return (
        validate(
            {
                "task": "classification",
                "data": {"path": path, "partition": partition, **data},
                "federation": {"clients": clients},
            },
            "test",
        ).data,
        seed,
        clients,
    )


def made(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [n, 32, 32, 3] and labels that cycle through the classes."""
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), np.arange(n) % 10


def rows(population: ImagePopulation) -> list[list[int]]:
    """Which rows of the pool each participant holds, found by their content."""
    place = {image.numpy().tobytes(): i for i, image in enumerate(population.pool.inputs)}
    return [[place[image.numpy().tobytes()] for image in population.client(k).inputs] for k in range(len(population.sizes))]


# ---- dealing -------------------------------------------------------------------------------------------------------


def test_the_digits_are_scikit_learns_and_split_as_asked():
    from sklearn.datasets import load_digits

    population = digits(*config(clients=20, train=1400, test=397, partition={"kind": "dirichlet", "alpha": 0.9}))
    assert (sum(population.sizes), len(population.test)) == (1400, 397)
    assert min(population.sizes) >= 1
    assert population.client(3).inputs.shape == (population.sizes[3], 1, 8, 8)
    assert (float(population.pool.inputs.min()), float(population.pool.inputs.max())) == (0.0, 1.0)
    held = [
        (x.numpy().tobytes(), int(y))
        for side in (population.pool, population.test)
        for x, y in zip(side.inputs, side.labels, strict=True)
    ]
    found = load_digits()
    expected = [((x / 16).astype(np.float32)[None].tobytes(), int(y)) for x, y in zip(found.images, found.target, strict=True)]
    assert sorted(held) == sorted(expected)
    counts = population.report["test_classes"]
    assert set(counts.values()) <= {38, 39, 40, 41}
    assert population.report["clients"] == population.sizes
    assert "train_fewer" not in population.report


def test_fewer_images_than_asked_for_are_all_used_and_told():
    population = digits(*config())  # 5,000 and 2,000 by default
    assert (sum(population.sizes), len(population.test)) == (1348, 449)
    assert population.report["train_fewer"] == "data.train=5000 asked for, digits has 1348"
    assert population.report["test_fewer"] == "data.test=2000 asked for, digits has 449"
    assert len(digits(*config(train=500, test=1500)).test) == 1297


def test_exact_counts_are_drawn_where_there_are_enough():
    population = digits(*config(train=200, test=100))
    assert (sum(population.sizes), len(population.test), len(population.pool)) == (200, 100, 1697)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "key"])
def test_every_dealing_is_a_partition_and_repeats(kind: str):
    population, again = (digits(*config(clients=7, train=300, test=50, partition=kind)) for _ in range(2))
    dealt = rows(population)
    assert dealt == rows(again)
    flat = [row for part in dealt for row in part]
    assert len(flat) == len(set(flat)) == 300
    other = digits(*config(clients=7, train=300, test=50, partition=kind, seed=1))
    assert not torch.equal(other.test.inputs, population.test.inputs)


def test_small_alpha_gives_few_classes_to_a_client_and_large_alpha_all():
    held = [
        np.mean(
            [
                len(groups)
                for groups in digits(*config(clients=5, train=1000, test=50, partition={"kind": "dirichlet", "alpha": a})).report[
                    "client_groups"
                ]
            ]
        )
        for a in (0.05, 100.0)
    ]
    assert held[0] < 6
    assert held[1] == 10


def test_more_clients_than_images_is_refused():
    with pytest.raises(UserError, match="20 training samples for 21 clients"):
        digits(*config(clients=21, train=20, test=10))


def test_files_of_clients_and_paths_mean_nothing_to_digits():
    with pytest.raises(UserError, match=r"data\.partition\.kind = 'files'"):
        digits(*config(clients=1, partition={"kind": "files", "files": ["a"]}))
    with pytest.raises(UserError, match=r"data\.path=x: data\.name=digits reads no file"):
        digits(*config("x"))


@given(counts=st.lists(st.integers(0, 12), min_size=1, max_size=6), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_stratified_keeps_the_shares(counts: list[int], share: float, seed: int):
    labels = np.repeat(np.arange(len(counts)), counts)
    count = int(share * len(labels))
    drawn = stratified(labels, count, rng(seed, "x"))
    assert len(set(drawn.tolist())) == len(drawn) == count
    for label, n in enumerate(counts):
        if len(labels):
            assert abs((labels[drawn] == label).sum() - count * n / len(labels)) < 1


def test_images_set_aside_leave_the_participants_but_not_the_pool():
    population = digits(*config(clients=30, train=60, test=40))
    dealt = rows(population)
    gone = [*dealt[0], *dealt[1][:1]]  # all that participant 0 holds
    left = population.without(gone)
    now = rows(left)
    assert not set(gone) & {row for part in now for row in part}
    assert min(map(len, now)) >= 1
    assert sum(left.sizes) == 60 - len(gone) == left.report["train"]
    assert left.report["set_aside"] == len(gone)
    assert torch.equal(left.pool.inputs, population.pool.inputs)
    assert (rows(population), population.report["train"]) == (dealt, 60)
    with pytest.raises(UserError, match="0 images are left for 30 clients"):
        population.without(range(len(population.pool)))


def test_the_test_set_can_lose_examples():
    population = digits(*config(train=60, test=40))
    left = population.without_test([0, 5])
    assert torch.equal(left.test.inputs, population.test.inputs[[1, 2, 3, 4, *range(6, 40)]])
    assert (left.report["test"], len(population.test)) == (38, 40)


# ---- augmentation --------------------------------------------------------------------------------------------------


def test_a_crop_is_a_window_of_the_padded_image():
    images = torch.from_numpy(rng(0, "images").random((40, 2, 5, 6), dtype=np.float32)) + 0.1
    moved = crop(images, 2, True, rng(1, "crop"))
    seen = set()
    for before, after in zip(images, moved, strict=True):
        padded = np.pad(before.numpy(), ((0, 0), (2, 2), (2, 2)))
        windows = {
            (y, x, flipped): padded[:, y : y + 5, x : x + 6][:, :, :: -1 if flipped else 1]
            for y in range(5)
            for x in range(5)
            for flipped in (False, True)
        }
        fitting = [key for key, window in windows.items() if np.array_equal(window, after.numpy())]
        assert len(fitting) == 1
        seen.add(fitting[0])
    assert len(seen) > 15
    assert torch.equal(crop(images, 0, False, rng(1, "crop")), images)


def test_batches_are_augmented_only_where_asked_for(tmp_path: Path):
    images, labels = made(40)
    np.savez(tmp_path / "train.npz", images=images, labels=labels)
    batch = Examples(torch.ones(8, 3, 32, 32), torch.zeros(8, dtype=torch.int64))
    plain, moved = (cifar10(*config(tmp_path), augment=choice) for choice in (False, True))
    assert plain.augment(batch, rng(0, "a")) is batch
    changed = moved.augment(batch, rng(0, "a"))
    assert changed.inputs.shape == batch.inputs.shape
    assert float(changed.inputs.mean()) < 1
    assert torch.equal(changed.inputs, moved.augment(batch, rng(0, "a")).inputs)


# ---- forms of CIFAR-10 ---------------------------------------------------------------------------------------------


def coded(images: np.ndarray) -> list[bytes]:
    found = []
    for image in images:
        content = io.BytesIO()
        Image.fromarray(image).save(content, "PNG")
        found.append(content.getvalue())
    return found


def official_pickle(flat: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 wrote the official ones: protocol 2, byte strings as Python 2's str."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
        b"(K\x01M" + struct.pack("<H", len(flat)) + b"M\x00\x0c\x86cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", flat.size) + flat.tobytes() + b"tb"
    )
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"batch_label") + text(b"one") + text(b"labels") + listed + text(b"data") + array + b"u."


def write(form: str, folder: Path, images: np.ndarray, labels: np.ndarray, test: bool) -> None:
    flat = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    if form == "npz":
        np.savez(folder / f"cifar_{'test' if test else 'train'}.npz", images=images, labels=labels)
    elif form == "jpeg-npz":
        files = coded(images)
        offsets = np.cumsum([0, *map(len, files)])
        data = np.frombuffer(b"".join(files), dtype=np.uint8)
        np.savez(folder / f"{'test' if test else 'train'}.npz", data=data, offsets=offsets, labels=labels.astype(np.uint8))
    elif form == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        (folder / "plain_text").mkdir(exist_ok=True)
        for part, (some, marks) in enumerate(zip(np.array_split(images, 2), np.array_split(labels, 2), strict=True)):
            column = [{"bytes": content, "path": None} for content in coded(some)]
            name = f"{'test' if test else 'train'}-0000{part}-of-00002.parquet"
            parquet.write_table(pyarrow.table({"img": column, "label": marks}), folder / "plain_text" / name)
    elif form == "binary":
        content = np.concatenate([labels[:, None].astype(np.uint8), flat], axis=1).tobytes()
        (folder / ("test_batch.bin" if test else "data_batch_1.bin")).write_bytes(content)
    elif form in ("python 2", "python 3"):
        (folder / "cifar-10-batches-py").mkdir(exist_ok=True)
        parts = [(flat, labels)] if test else list(zip(np.array_split(flat, 2), np.array_split(labels, 2), strict=True))
        for i, (some, marks) in enumerate(parts, start=1):
            content = (
                official_pickle(some, marks.tolist())
                if form == "python 2"
                else pickle.dumps({b"data": np.ascontiguousarray(some), b"labels": marks.tolist()}, protocol=2 + 3 * (i % 2))
            )
            (folder / "cifar-10-batches-py" / ("test_batch" if test else f"data_batch_{i}")).write_bytes(content)


@pytest.mark.parametrize("form", ["npz", "jpeg-npz", "parquet", "binary", "python 2", "python 3"])
def test_every_form_gives_the_same_images(form: str, tmp_path: Path):
    images, labels = made(60)
    tested, marks = made(20, seed=1)
    write(form, tmp_path, images, labels, test=False)
    write(form, tmp_path, tested, marks, test=True)
    population = cifar10(*config(tmp_path, train=50, test=10))
    expected = torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(255))
    assert torch.equal(population.pool.inputs, expected)
    assert population.pool.labels.tolist() == labels.tolist()
    assert (sum(population.sizes), len(population.test), population.own_test) == (50, 10, True)
    originals = {image.tobytes() for image in (tested.transpose(0, 3, 1, 2) / np.float32(255))}
    assert all(image.numpy().tobytes() in originals for image in population.test.inputs)
    assert population.names[2] == "bird"
    assert set(population.report["train_classes"].values()) == {5}


def test_one_file_is_split_or_has_its_test_file(tmp_path: Path):
    images, labels = made(60)
    write("npz", tmp_path, images, labels, test=False)
    write("npz", tmp_path, *made(20, seed=1), test=True)
    alone = cifar10(*config(tmp_path / "cifar_train.npz", train=40, test=20))
    assert (sum(alone.sizes), len(alone.test), len(alone.pool), alone.own_test) == (40, 20, 40, False)
    both = cifar10(*config(tmp_path / "cifar_train.npz", test_path=str(tmp_path / "cifar_test.npz")))
    assert (len(both.pool), len(both.test), both.own_test) == (60, 20, True)


def test_of_several_npz_files_the_one_with_the_most_images_counts(tmp_path: Path):
    for n in (30, 50, 40):
        images, labels = made(n)
        np.savez(tmp_path / f"train_{n}.npz", images=images, labels=labels)
    population = cifar10(*config(tmp_path, train=20, test=5))
    assert population.report["files"] == ["train_50.npz"]
    assert population.report["images"] == 50


def refused(path: Path | str | None, match: str, **data: Any) -> None:
    with pytest.raises(UserError, match=match) as caught:
        cifar10(*config(path, **data))
    assert "\n" not in str(caught.value)


def test_a_pickle_that_names_anything_else_is_refused_and_not_run(tmp_path: Path):
    marker = tmp_path / "ran"

    class Bad:
        def __reduce__(self) -> Any:
            return Path.touch, (marker,)

    class Eval:
        def __reduce__(self) -> Any:
            return eval, (f"open({str(marker)!r}, 'w')",)

    (tmp_path / "test_batch").write_bytes(b"")
    for bad, name in ((Bad(), "getattr|pathlib"), (Eval(), r"builtins?(__)?\.eval"), (np.float64(1), "scalar"), (np.save, "numpy")):
        for protocol in (0, 2, 5):
            flat = np.zeros((1, 3072), np.uint8)
            (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": flat, b"labels": [0], b"x": bad}, protocol))
            refused(tmp_path, f"data_batch_1: not a CIFAR-10 batch in Python form .*{name}.*no use for")
    assert not marker.exists()


def test_damaged_or_foreign_batches_are_refused(tmp_path: Path):
    file = tmp_path / "data_batch_1"
    flat = np.zeros((4, 3072), np.uint8)
    good = pickle.dumps({b"data": flat, b"labels": [0, 1, 2, 3]}, 2)
    for content in (
        b"",
        good[: len(good) // 2],
        b"hello",
        bytes(range(256)),
        pickle.dumps([1]),
        pickle.dumps({b"data": [0], b"labels": [0]}),
    ):
        file.write_bytes(content)
        refused(tmp_path, "data_batch_1: .*(fetch the official file again|give a batch of CIFAR-10)")
    for data, labels, match in (
        (flat, [0, 1, 2], "3 labels need uint8"),
        (flat.astype(np.int64), [0] * 4, "4 labels need uint8"),
        (flat[:, :-1].copy(), [0] * 4, "4 labels need uint8"),
        (flat, [0, 1, 10, 3], "image 2 has the label 10, CIFAR-10 has 0 to 9"),
        (flat, [0, 1, True, 3], "a label is not a whole number"),
        (flat, [0, 1, "2", 3], "a label is not a whole number"),
    ):
        file.write_bytes(pickle.dumps({b"data": data, b"labels": labels}, 2))
        refused(tmp_path, match)
    # an array made without its constructor, and one whose bytes are a number
    for array in (
        b"cnumpy\nndarray\n)\x81",
        b"cnumpy.core.numeric\n_frombuffer\n(M\x00\x0ccnumpy\ndtype\nU\x02u1\x85RK\x01M\x00\x0c\x86U\x01CtR",
    ):
        file.write_bytes(b"\x80\x02}(U\x06labels](K\x00eU\x04data" + array + b"u.")
        refused(tmp_path, "need uint8|does not hold 1 x 3072 bytes")
    file.write_bytes(pickle.dumps({b"data": flat, b"fine_labels": [0] * 4}, 2))
    refused(tmp_path, "no array 'data' with a list 'labels'.*fine_labels.*not CIFAR-100")


def test_fuzzed_batches_give_user_errors_or_images(tmp_path: Path):
    images, labels = made(20)
    flat = images.transpose(0, 3, 1, 2).reshape(20, -1)
    good = official_pickle(flat, labels.tolist())
    header = len(good) - flat.size
    draw = np.random.default_rng(3)
    outcomes = set()
    for _ in range(300):
        bad = bytearray(good)
        place = int(draw.integers(0, header)) if draw.random() < 0.9 else int(draw.integers(0, len(bad)))
        bad[place] = int(draw.choice(list(b".(0RtbcUK}]s\x80\x85\xff\x00")))
        (tmp_path / "data_batch_1").write_bytes(bytes(bad))
        try:
            cifar10(*config(tmp_path))
            outcomes.add("read")
        except UserError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_faults_of_npz_files(tmp_path: Path):
    file = tmp_path / "train.npz"
    images, labels = made(20)

    def save(**arrays: Any) -> None:
        np.savez(file, **arrays)

    save(images=images, labels=labels)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, "train.npz: not a readable npz file")
    broken = bytearray(whole)
    broken[2000] ^= 255
    file.write_bytes(bytes(broken))
    refused(tmp_path, "train.npz: array 'images' cannot be read")
    for arrays, match in (
        ({"images": images}, "no array 'labels'"),
        ({"labels": labels}, "no array 'data'"),
        ({"images": images, "labels": labels - 1}, "image 0 has the label -1"),
        ({"images": images, "labels": labels * 2}, "image 5 has the label 10"),
        ({"images": images, "labels": labels * 1.0}, "labels are float64"),
        ({"images": images, "labels": labels[:-1]}, r"20 images with labels of shape \(19,\)"),
        ({"images": images * 1.0, "labels": labels}, "'images' is float64"),
        ({"images": images[:, :28], "labels": labels}, r"'images' is uint8 \(20, 28, 32, 3\)"),
        ({"images": images[:0], "labels": labels[:0]}, "each image needs one label"),
        ({"images": images.astype(object), "labels": labels}, "'images' cannot be read"),
    ):
        save(**arrays)
        refused(tmp_path, match)
    data = np.frombuffer(b"".join(coded(images)), dtype=np.uint8)
    ends = np.cumsum([0, *map(len, coded(images))])
    for offsets, match in (
        (ends[:-1], "20 labels need 21 whole numbers"),
        (ends + 1, "'offsets' must rise from 0"),
        (ends[::-1].copy(), "'offsets' must rise from 0"),
        (np.where(np.arange(21) == 3, ends + 5, ends), "train.npz image [23]: not a readable JPEG or PNG"),
    ):
        save(data=data, offsets=offsets, labels=labels)
        refused(tmp_path, match)
    small = coded(np.zeros((1, 16, 16, 3), np.uint8))[0]
    save(data=np.frombuffer(small, np.uint8), offsets=np.array([0, len(small)]), labels=np.array([0]))
    refused(tmp_path, "image 0: 16 x 16")


def test_faults_of_the_other_forms(tmp_path: Path):
    refused(None, "data.path is not set")
    refused(tmp_path / "nowhere", "no such file or folder")
    refused(tmp_path, "no CIFAR-10 inside")
    (tmp_path / "cifar.tar.gz").write_bytes(b"x")
    refused(tmp_path / "cifar.tar.gz", "an archive; unpack it")
    file = tmp_path / "data_batch_1.bin"
    file.write_bytes(bytes(3074))
    refused(tmp_path, "3074 bytes, records of 3073")
    file.write_bytes(b"\x0a" + bytes(3072))
    refused(tmp_path, "image 0 has the label 10")
    file.unlink()
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "train.parquet"
    file.write_bytes(b"PAR1")
    refused(tmp_path, "train.parquet: not a readable Parquet file")
    image = coded(made(1)[0])[0]
    for table, match in (
        ({"img": [{"bytes": image}]}, "columns img; a column img"),
        ({"img": ["path.png"], "label": [0]}, "row 0: no image bytes"),
        ({"img": [{"bytes": image}], "label": [None]}, "labels are object"),
        ({"img": [{"bytes": image}], "label": [11]}, "image 0 has the label 11"),
        ({"img": [{"bytes": image[:60]}], "label": [1]}, "image 0: not a readable JPEG or PNG"),
    ):
        parquet.write_table(pyarrow.table(table), file)
        refused(tmp_path, match)


def test_augment_is_true_or_false(tmp_path: Path):
    with pytest.raises(UserError, match="augment = maybe"):
        cifar10(*config(tmp_path), augment="maybe")  # type: ignore[arg-type]


def test_images_check_themselves():
    with pytest.raises(ValueError):
        Images(np.zeros((2, 1, 4, 4), np.float32), np.zeros(2, np.int64))  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        Images(np.zeros((2, 1, 4, 4), np.uint8), np.zeros(3, np.int64))


@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="the shared real data is not beside this checkout")
def test_the_shared_files_give_the_same_images_decoded_or_not(tmp_path: Path):
    folder = SHARED / "cifar10"
    small = cifar10(
        *config(
            folder / "cifar10_train_small.npz", clients=100, test_path=str(folder / "cifar10_test_small.npz"), partition="dirichlet"
        )
    )
    assert small.report["train_classes"] == dict.fromkeys(small.names, 200)
    assert (len(small.pool), len(small.test)) == (2000, 500)
    with np.load(folder / "cifar10_test_jpeg.npz", allow_pickle=False) as large:
        ends = large["offsets"][:501]
        np.savez(tmp_path / "test.npz", data=large["data"][: ends[-1]], offsets=ends, labels=large["labels"][:500])
    decoded = cifar10(*config(folder / "cifar10_train_small.npz", test_path=str(tmp_path / "test.npz")))
    assert torch.equal(decoded.test.labels, small.test.labels)
    # Pillow's JPEG decoder may round differently between releases, by a value or two of 255
    assert float((decoded.test.inputs - small.test.inputs).abs().max()) < 4 / 255

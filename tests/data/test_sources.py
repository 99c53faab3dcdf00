"""Sources: what each holds, how a slice cuts it, and one clear line for every mistake."""

import contextlib
import gzip
import io
import os
import pathlib
import struct
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from swin_jax.data import folders, splits
from swin_jax.data.sources import array_source, make_source
from swin_jax.errors import UserError

FETCH = pathlib.Path(__file__).parents[2] / "tools" / "fetch_fashion_mnist.sh"


def save_image(path, value=0, size=(6, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def pixels(record):
    if isinstance(record["image"], np.ndarray):
        return record["image"]
    return np.asarray(Image.open(io.BytesIO(record["image"])))


@given(st.integers(1, 3000), st.integers(0, 100))
def test_percent_slices_are_disjoint_and_complete(num_examples, percent):
    parts = []
    for split in (f"train[:{percent}%]", f"train[{percent}%:]"):
        with contextlib.suppress(UserError):  # one of the two may be empty
            parts += splits.split_range(split, num_examples)
    assert parts == list(range(num_examples))


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", range(200)),
        ("train[:]", range(200)),
        ("train[25%:75%]", range(50, 150)),
        ("train[:1_0]", range(10)),
        ("train[-30:]", range(170, 200)),
        ("train[-10%:-5]", range(180, 195)),
        ("train[:33.4%]", range(67)),  # 66.8, the nearest
    ],
)
def test_slices_mean_what_tfds_means(split, expected):
    assert splits.split_range(split, 200) == expected


@pytest.mark.parametrize("split", ["train[", "train[1]", "train[:1", "", "[:3]", "train[a:]", "train[:10][:5]"])
def test_bad_slices_are_the_users_mistake(split):
    with pytest.raises(UserError, match="cannot read the split"):
        splits.split_range(split, 200)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train+test", "cannot read"),
        ("train[5:5]", "is empty"),
        ("train[9:3]", "is empty"),
        ("train[:0]", "is empty"),
        ("train[:201]", "outside of its 200 examples"),
        ("train[-101%:]", "outside of its 200 examples"),
        ("train[:2.5]", "whole number"),
    ],
)
def test_empty_or_impossible_slices_are_the_users_mistake(split, message):
    with pytest.raises(UserError, match=message):
        splits.split_range(split, 200)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=200), st.data())
def test_hold_out_is_a_partition_in_proportion(labels, data):
    labels = np.array(labels)
    num_held_out = data.draw(st.integers(1, len(labels) - 1))
    kept, held_out = splits.hold_out(labels, num_held_out)
    assert len(held_out) == num_held_out
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    for label in np.unique(labels):
        share = np.sum(labels == label) * num_held_out / len(labels)
        assert abs(np.sum(labels[held_out] == label) - share) < 1


def test_digits_are_scikit_learns_with_a_stratified_fifth_held_out():
    train, test = make_source("digits", "train"), make_source("digits", "test")
    assert (len(train), len(test), train.num_classes) == (1437, 360, 10)
    together = np.concatenate([[record["image"][..., 0] for record in source] for source in (train, test)])
    expected = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, together)) == sorted(map(bytes, expected))
    assert not set(map(int, train.order)) & set(map(int, test.order))
    shares = np.bincount(test.labels) / np.bincount(np.concatenate([train.labels, test.labels]))
    assert np.all(np.abs(shares - 0.2) < 0.01)
    assert train[5]["label"] == load_digits().target[train.order[5]] == train.labels[5]


def test_a_small_slice_of_a_sorted_source_has_all_classes(tmp_path):
    assert set(make_source("digits", "train[:100]").labels) == set(range(10))
    for label in "abc":
        for i in range(10):
            save_image(tmp_path / "train" / label / f"{i}.png")
    assert set(make_source(f"folder:{tmp_path}", "train[:10]").labels) == {0, 1, 2}


def write_idx(path, array):
    data = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_fashion_mnist_reads_idx_files_plain_or_gzipped(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28), np.uint8)
    labels = np.arange(7, dtype=np.uint8)
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", labels)
    source = make_source("fashion_mnist", "test[2:5]", data_dir=str(tmp_path))
    np.testing.assert_array_equal([record["image"] for record in source], images[2:5, ..., None])
    assert [record["label"] for record in source] == [2, 3, 4]
    assert source.class_names[9] == "Ankle boot"
    with pytest.raises(UserError, match=r"no train-images-idx3-ubyte.*make fashion-mnist"):
        make_source("fashion_mnist", "train", data_dir=str(tmp_path))


@pytest.mark.parametrize("damage", ["short", "not_gzip", "wrong_kind", "mismatch", "empty"])
def test_damaged_idx_files_are_named(tmp_path, damage):
    labels, images = np.zeros(3, np.uint8), np.zeros((3, 28, 28), np.uint8)
    image_path = tmp_path / "train-images-idx3-ubyte"
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels if damage != "mismatch" else labels[:2])
    write_idx(image_path, images)
    if damage == "short":
        image_path.write_bytes(image_path.read_bytes()[:-1])
    elif damage == "not_gzip":
        image_path.rename(f"{image_path}.gz")
    elif damage == "wrong_kind":
        image_path.write_bytes(b"\0\0\x0d\3" + image_path.read_bytes()[4:])
    elif damage == "empty":
        image_path.write_bytes(b"")
    with pytest.raises(UserError, match=str(tmp_path)):
        make_source("fashion_mnist", "train", data_dir=str(tmp_path))


def test_fetch_script_says_what_to_do_without_apt_and_keeps_what_is_there(tmp_path):
    bare = {"PATH": str(tmp_path)}
    result = subprocess.run(["/bin/sh", FETCH, tmp_path / "x"], env=bare, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "no apt-get" in result.stderr
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte.gz").write_text("there")
    result = subprocess.run(["/bin/sh", FETCH, tmp_path], env=bare, capture_output=True, text=True, check=False)
    assert (result.returncode, "already" in result.stdout) == (0, True)


def test_folder_with_split_folders(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("Ärger", "bär", "cat")):
            for i in range(count):
                save_image(tmp_path / split / name / "nested" / f"{i}.JPEG", value=label * 50)
    for litter in (".DS_Store", "train/.DS_Store", "train/cat/.hidden.png", "train/cat/Thumbs.db", "train/notes.txt"):
        (tmp_path / litter).write_bytes(b"litter")
    train, val = make_source(f"folder:{tmp_path}", "train"), make_source(f"folder:{tmp_path}", "test")
    assert (len(train), len(val)) == (9, 6)
    assert len(make_source(f"folder:{tmp_path}", "validation")) == 6
    assert train.class_names == val.class_names == ("bär", "cat", "Ärger")
    for record in train:
        name = train.class_names[record["label"]]
        assert abs(int(pixels(record).mean()) - {"Ärger": 0, "bär": 50, "cat": 100}[name]) <= 1


def test_folder_of_classes_alone_is_cut_the_same_way_every_time(tmp_path):
    for name in "ab":
        for i in range(20):
            save_image(tmp_path / name / f"{i}.png", value=i)
    train, test = make_source(f"folder:{tmp_path}", "train"), make_source(f"folder:{tmp_path}", "test")
    assert (len(train), len(test)) == (36, 4)
    assert np.bincount(test.labels).tolist() == [2, 2]
    paths = [[source.describe(i) for i in range(len(source))] for source in (train, test)]
    again = make_source(f"folder:{tmp_path}", "test")
    assert [again.describe(i) for i in range(4)] == paths[1]
    assert len({path.split(" of ")[0] for path in paths[0] + paths[1]}) == 40


def folder_with(tmp_path, *damage):
    for name in "ab":
        save_image(tmp_path / "train" / name / "0.png")
        save_image(tmp_path / "val" / name / "0.png")
    for path, content in damage:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    return f"folder:{tmp_path}"


@pytest.mark.parametrize(
    ("damage", "split", "message"),
    [
        ([("train/a/list.txt", b"hi")], "train", "train/a/list.txt is no image"),
        ([("train/a/x.jpg", b"this is text")], "train", "train/a/x.jpg is no image"),
        ([("train/a/empty.png", b"")], "train", "train/a/empty.png is no image"),
        ([("val/c/0.png", b"")], "test", "val/c has no counterpart among the training classes"),
        ([("train/c/.keep", b"")], "train", "train/c has no images"),
        ([("train/loose.png", b"")], "train", "train/loose.png lies in no class folder"),
    ],
)
def test_folder_mistakes_are_named_at_once(tmp_path, damage, split, message):
    with pytest.raises(UserError, match=message) as caught:
        make_source(folder_with(tmp_path, *damage), split)
    assert "\n" not in str(caught.value)


def test_missing_empty_and_wrong_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "train").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"")
    for name, message in {
        "missing": "does not exist",
        "file": "is a file",
        "empty": "no class folder",
        "hollow": "no class folder",
    }.items():
        with pytest.raises(UserError, match=f"{tmp_path / name}.*{message}|{message}.*{tmp_path / name}"):
            make_source(f"folder:{tmp_path / name}", "train")
    with pytest.raises(UserError, match="no test or val or validation folder"):
        make_source(f"folder:{tmp_path / 'hollow'}", "test")


def test_a_folder_with_only_val_can_be_evaluated(tmp_path):
    save_image(tmp_path / "val" / "n01" / "0.png")
    assert make_source(f"folder:{tmp_path}", "test").class_names == ("n01",)
    with pytest.raises(UserError, match="no train folder"):
        make_source(f"folder:{tmp_path}", "train")


def test_headers_are_left_alone_in_large_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MAX_CHECKED_FILES", 2)
    assert len(make_source(folder_with(tmp_path, ("train/a/x.jpg", b"text")), "train")) == 3


def test_a_file_that_vanished_is_named(tmp_path):
    source = make_source(folder_with(tmp_path), "train")
    os.remove(tmp_path / "train" / "a" / "0.png")
    with pytest.raises(UserError, match=r"train/a/0.png: No such file"):
        [source[i] for i in range(2)]


def test_synthetic_is_the_same_every_time_and_as_asked():
    one, two = (make_source("synthetic", "train", image_size=(4, 6), channels=1, num_classes=7) for _ in range(2))
    assert one[3]["image"].shape == (4, 6, 1)
    assert one.num_classes == 7
    assert set(one.labels) == set(range(7))
    np.testing.assert_array_equal(one[3]["image"], two[3]["image"])
    assert one[3]["image"].std() > 30
    test = make_source("synthetic", "test", image_size=(4, 6), channels=1)
    assert np.any(test[3]["image"] != one[3]["image"])


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("digit", "train", "unknown data source 'digit'.*did you mean 'digits'"),
        ("fashionmnist", "train", "did you mean 'fashion_mnist'"),
        ("tfds:", "train", "unknown data source"),
        ("folder:", "train", "unknown data source"),
        ("digits:3", "train", "unknown data source"),
        ("digits", "trian", "no split 'trian', known: train, test; did you mean 'train'"),
        ("digits", "validation", "no split 'validation'"),
        ("tfds:cifar1", "train", "no data set 'cifar1'; did you mean 'cifar10'"),
    ],
)
def test_unknown_names_suggest_the_nearest(name, split, message):
    with pytest.raises(UserError, match=message):
        make_source(name, split)


def test_arrays_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_arrays.py").write_text(
        "import numpy as np\n"
        "from swin_jax.data.sources import array_source\n"
        "def zeros(split):\n"
        "    return array_source('zeros', np.zeros((10, 4, 4, 1), np.uint8), np.arange(10), num_classes=10)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    source = make_source("own_arrays:zeros", "train[20%:50%]")
    assert source.labels.tolist() == [2, 3, 4]
    assert source[0]["image"].shape == (4, 4, 1)
    with pytest.raises(UserError, match="unknown data source 'own_arrays:ones'"):
        make_source("own_arrays:ones", "train")
    with pytest.raises(UserError, match=r"float64 \(2, 4, 4, 1\)"):
        array_source("floats", np.zeros((2, 4, 4, 1)), np.arange(2), num_classes=2)

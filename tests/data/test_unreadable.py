"""Records that cannot be read: named, and the run stops or goes on with the same others every time."""

import io
import logging
import pathlib
import shutil

import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image

from swin_jax.data import unreadable
from swin_jax.data.pipeline import eval_batches, train_iterator
from swin_jax.data.sources import make_source
from swin_jax.errors import UnreadableRecord, UserError
from tests.data.test_tfds_sources import tfds_dir  # noqa: F401  (a fixture: two prepared data sets)

OPTIONS = {"image_size": 8, "channels": 3, "num_classes": 2, "batch_size": 4, "num_threads": 2}


@pytest.fixture(autouse=True)
def told_anew():
    unreadable.warn_once.cache_clear()


@pytest.fixture
def folder(tmp_path):
    """Twelve JPEGs of two classes, of one grey each; one is none, and one is cut off."""
    for number in range(12):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (400, 300), (20 * number,) * 3).save(path)
        if number in (3, 4):
            path.write_bytes(b"no image" if number == 3 else path.read_bytes()[:-60])
    with pytest.raises(UserError, match=r"b/3.jpg is no image"):
        make_source(f"folder:{tmp_path}", "train")
    return make_source(f"folder:{tmp_path}", "train", check_files=False)


def greys(batch):
    return [round(int(image[4, 4, 0]) / 20) for image in batch["image"]]


def numbers(source):
    return [int(pathlib.Path(source.describe(index).split(" of folder:")[0]).stem) for index in range(len(source))]


def train(source, **changes):
    return train_iterator(source, **({"seed": 0, "crop": "random_resized", "flip": True} | OPTIONS | changes))


def test_skipping_takes_the_next_of_the_source_and_tells(folder, caplog):
    order = numbers(folder)
    batches = list(train(folder, num_epochs=1, on_corrupt="skip"))
    seen, skipped = np.concatenate([greys(batch) for batch in batches]), np.concatenate([b["skipped"] for b in batches])
    expected = []  # the replacement of each bad one: the first good one after it, round and round
    for number in (3, 4):
        after = order[order.index(number) + 1 :] + order
        expected.append(next(other for other in after if other not in (3, 4)))
    assert sorted(seen[skipped]) == sorted(expected)
    assert sorted([*seen[~skipped], 3, 4]) == list(range(12))
    labels = np.concatenate([batch["label"] for batch in batches])
    np.testing.assert_array_equal(labels, seen % 2)
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 2
    for number in (3, 4):
        assert sum(f"{'ab'[number % 2]}/{number}.jpg" in line for line in told) == 1


def test_what_is_skipped_does_not_depend_on_threads_or_resuming(folder):
    straight = train(folder, on_corrupt="skip")
    expected = [next(straight) for _ in range(9)]
    resumed = train(folder, on_corrupt="skip", num_threads=1)
    resumed.set_state({"next_index": 4})
    for batch in expected[4:]:
        other = next(resumed)
        assert batch.keys() == other.keys() == {"image", "label", "skipped"}
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])
    clean = train(folder, on_corrupt="skip", num_epochs=1)
    assert sum(int(batch["skipped"].sum()) for batch in clean) == 2


def test_stopping_names_the_first(folder):
    with pytest.raises(UnreadableRecord, match=r"cannot use .*(a/4|b/3).jpg"):
        list(train(folder, num_epochs=1))


def test_nothing_readable_is_the_users_to_know(folder):
    for path in folder.records.paths:
        pathlib.Path(path).write_bytes(b"no image")
    with pytest.raises(UserError, match="101 records in a row are unreadable: cannot use"):
        list(train(folder, num_epochs=1, on_corrupt="skip"))


def test_an_evaluation_leaves_them_out(folder, caplog):
    with pytest.raises(UnreadableRecord, match=r"(a/4|b/3).jpg"):
        list(eval_batches(folder, **OPTIONS))
    batches = list(eval_batches(folder, **(OPTIONS | {"batch_size": 5}), on_corrupt="skip"))
    assert [batch["valid"].shape for batch in batches] == [(5,)] * 3
    valid = np.concatenate([batch["valid"] for batch in batches])
    seen = np.concatenate([greys(batch) for batch in batches])
    assert seen[valid].tolist() == [number for number in numbers(folder) if number not in (3, 4)]
    assert not any(batch["image"][~batch["valid"]].any() for batch in batches)
    assert sum("leaving a record out" in record.message for record in caplog.records) == 2


def test_labels_and_sizes_are_no_damage(folder):
    for changes in ({"num_classes": 1}, {"crop": "none"}):
        with pytest.raises(UserError) as caught:
            next(train(folder, **changes, on_corrupt="skip"))
        assert not isinstance(caught.value, UnreadableRecord)
    with pytest.raises(UserError, match="did you mean 'skip'"):
        train(folder, on_corrupt="skp")


@pytest.fixture
def damaged(tfds_dir, tmp_path):  # noqa: F811
    """A copy of the data set with a few bytes of one record turned over: the source, its file, the record's number."""
    shutil.copytree(tfds_dir, tmp_path / "data")
    (path,) = (tmp_path / "data" / "tiny_shapes").rglob("*-train.array_record*")
    whole = path.read_bytes()
    for position in range(64, len(whole), 40):  # the first place that spoils a record past the second, and no other
        spoilt = bytes(255 - byte for byte in whole[position : position + 4])
        path.write_bytes(whole[:position] + spoilt + whole[position + 4 :])
        bad = [number for number in range(10) if not readable(path, number)]
        if len(bad) == 1 and bad[0] > 1:
            return make_source("tfds:tiny_shapes", "train", data_dir=str(tmp_path / "data")), path, bad[0]
    raise AssertionError("no byte of the file matters")


def readable(path, number):
    try:
        return bool(ArrayRecordDataSource([str(path)])[number])
    except RuntimeError:
        return False


def test_a_damaged_record_of_array_record_is_named(damaged, caplog):
    source, path, bad = damaged
    with pytest.raises(UnreadableRecord, match=f"record {bad} of {path}") as caught:
        list(train(source, num_epochs=1, batch_size=5))
    assert "\n" not in str(caught.value)
    batches = list(train(source, num_epochs=1, batch_size=5, on_corrupt="skip", crop="resize", flip=False))
    ids = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches])  # each image is as bright as its id
    skipped = np.concatenate([batch["skipped"] for batch in batches])
    by_position = [None if position == bad else int(greyness(source, position)) for position in range(10)]
    assert ids[skipped].tolist() == [by_position[(bad + 1) % 10]]
    assert sorted(ids[~skipped]) == sorted(number for number in by_position if number is not None)
    assert sum(f"record {bad} of {path}" in record.message for record in caplog.records) == 1


def greyness(source, position):
    return np.asarray(Image.open(io.BytesIO(source[position]["image"])))[0, 0, 0]


def test_records_are_counted_file_by_file(tfds_dir):  # noqa: F811
    records = make_source("tfds:tiny_shapes", "train", data_dir=tfds_dir).records
    (path,) = records.files
    assert records.describe(7) == f"record 7 of {path}"
    several = type(records)(
        records=None, image_key="image", label_key="label", files=("x", "y", "z"), file_lengths=(3, 1, 4)
    )
    assert [several.describe(index) for index in (0, 2, 3, 4, 7)] == [
        "record 0 of x",
        "record 2 of x",
        "record 0 of y",
        "record 0 of z",
        "record 3 of z",
    ]

"""The pipeline: one stream from the seed whatever loads it, exact resume, complete shards, every example once."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from swin_jax.data import pipeline
from swin_jax.data.sources import ArrayRecords, ImageSource, make_source
from swin_jax.errors import UserError


def array_source(num_examples, size=(4, 5), num_classes=10):
    """Images that tell which example they are: pixel (0, 0) and (0, 1) hold the index; labels cycle."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_examples, *size, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.divmod(np.arange(num_examples), 256)
    labels = (np.arange(num_examples) % num_classes).astype(np.int32)
    records = ArrayRecords(images=images, labels=labels)
    return ImageSource(name="test", records=records, order=np.arange(num_examples), num_classes=num_classes)


def example_ids(batch):
    return [int(image[0, 0, 0]) * 256 + int(image[0, 1, 0]) for image in batch["image"]]


OPTIONS = {"image_size": (4, 5), "channels": 1, "num_classes": 10, "crop": "none", "num_threads": 2}


def train(source, **options):
    return pipeline.train_iterator(source, **(OPTIONS | {"seed": 0, "batch_size": 4} | options))


def evaluate(source, **options):
    return pipeline.eval_batches(source, **(OPTIONS | {"batch_size": 4} | options))


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])
            assert batch[key].dtype == other[key].dtype


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve JPEGs of 40x30 noise in two classes."""
    root = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for i in range(12):
        path = root / "train" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    return root


RANDOM = {"image_size": 16, "channels": 3, "num_classes": 2, "crop": "random_resized", "flip": True}


def test_batches_have_the_promised_types_and_the_right_labels():
    source = array_source(300)
    (batch,) = take(train(source, batch_size=32), 1)
    assert (batch["image"].shape, batch["image"].dtype) == ((32, 4, 5, 1), np.uint8)
    assert (batch["label"].shape, batch["label"].dtype) == ((32,), np.int32)
    ids = example_ids(batch)
    np.testing.assert_array_equal(batch["label"], np.array(ids) % 10)
    np.testing.assert_array_equal(batch["image"], source.records.images[ids])


def test_every_epoch_holds_every_example_once_in_a_new_order():
    stream = np.concatenate([example_ids(batch) for batch in take(train(array_source(30), batch_size=5), 12)])
    first, second = stream[:30], stream[30:]
    assert sorted(first) == sorted(second) == list(range(30))
    assert list(first) != list(second)
    assert list(first) != list(range(30))
    crossing = np.concatenate([example_ids(batch) for batch in take(train(array_source(30), batch_size=7), 8)])
    np.testing.assert_array_equal(crossing, stream[:56])  # a batch may cross into the next epoch; nothing is dropped


def test_seeds_give_unrelated_orders():
    """Neither the same, nor one shifted by an epoch against the other."""
    streams = [np.concatenate([example_ids(b) for b in take(train(array_source(30), seed=s), 15)]) for s in (0, 1)]
    epochs = {tuple(stream[start : start + 30]) for stream in streams for start in (0, 30)}
    assert len(epochs) == 4


@pytest.mark.parametrize("options", [{"num_threads": 1}, {"num_threads": 16}])
def test_the_stream_does_not_depend_on_the_threads(folder, options):
    source = make_source(f"folder:{folder}", "train")
    expected = take(train(source, **RANDOM), 6)
    assert_same(take(train(source, **(RANDOM | options)), 6), expected)
    assert len({batch["image"].tobytes() for batch in expected}) == 6


WORKERS = """
import sys
from absl import app
from swin_jax.data import pipeline
from swin_jax.data.sources import make_source

def main(argv):
    source = make_source("folder:" + argv[1], "train")
    options = dict(batch_size=4, image_size=16, channels=3, num_classes=2, seed=0, crop="random_resized", flip=True)
    threads, workers = (pipeline.train_iterator(source, **options, worker_count=count) for count in (0, 2))
    print("same", all(next(threads)["image"].tobytes() == next(workers)["image"].tobytes() for _ in range(5)))
    open(source.records.paths[0], "wb").close()
    try:
        for batch in workers:
            pass
    except pipeline.UserError as error:
        print("named", source.records.paths[0] in str(error))

if __name__ == "__main__":
    app.run(main)
"""


def test_worker_processes_give_the_same_stream_and_name_bad_files(folder, tmp_path):
    """In a process of its own: Grain's workers need parsed absl flags and a main module to import."""
    shutil.copytree(folder, tmp_path / "folder")
    (tmp_path / "main.py").write_text(WORKERS)
    command = [sys.executable, tmp_path / "main.py", tmp_path / "folder"]
    path = {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    result = subprocess.run(command, env=os.environ | path, capture_output=True, text=True, check=False, timeout=120)
    assert result.stdout.split() == ["same", "True", "named", "True"], result.stderr[-2000:]


def test_gathered_batches_equal_those_loaded_one_by_one(monkeypatch):
    source = make_source("digits", "test[:50]")
    options = {"image_size": (12, 16), "crop": "resize", "channels": 3}
    gathered = take(train(source, **options), 20)
    evaluated = list(evaluate(source, **options))
    monkeypatch.setattr(pipeline, "MAX_TRANSFORMED_BYTES", 0)
    assert_same(take(train(source, **options), 20), gathered)
    assert_same(list(evaluate(source, **options)), evaluated)
    resized = Image.fromarray(source[49]["image"][..., 0]).convert("RGB").resize((16, 12), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(evaluated[12]["image"][1], np.asarray(resized))


@given(st.integers(1, 40), st.sampled_from([1, 2, 4]), st.integers(1, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_processes_together_see_what_one_process_sees(num_examples, process_count, batch_size, seed):
    source = array_source(num_examples)
    steps = 2 * num_examples // batch_size + 1
    whole = take(train(source, batch_size=batch_size * process_count, seed=seed), steps)
    parts = [
        take(train(source, batch_size=batch_size, seed=seed, process_index=i, process_count=process_count), steps)
        for i in range(process_count)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]} for step in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_random_crops_do_not_depend_on_the_number_of_processes(folder):
    source = make_source(f"folder:{folder}", "train")
    whole = take(train(source, **RANDOM, batch_size=4), 7)
    halves = [take(train(source, **RANDOM, batch_size=2, process_index=i, process_count=2), 7) for i in (0, 1)]
    joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*halves, strict=True)]
    assert_same(joined, whole)


@pytest.mark.parametrize("process_count", [1, 2])
def test_repeated_augmentation_has_each_example_so_often_in_a_row_and_as_long_epochs(process_count):
    """As DeiT's RASampler: 30 examples three times are 90, of which an epoch takes the first 30."""
    source = array_source(30)
    parts = [
        take(train(source, repeats=3, batch_size=6 // process_count, process_index=i, process_count=process_count), 10)
        for i in range(process_count)
    ]
    stream = np.concatenate([example_ids(part) for step in zip(*parts, strict=True) for part in step])
    once = np.concatenate([example_ids(batch) for batch in take(train(source, batch_size=6), 10)])
    for start in (0, 30):  # each epoch has the beginning of the order that it has without repeats
        np.testing.assert_array_equal(stream[start : start + 30], np.repeat(once[start : start + 10], 3))


def test_repeats_are_cropped_anew_and_resumed_exactly(folder):
    source, options = make_source(f"folder:{folder}", "train"), RANDOM | {"repeats": 3, "policy": "rand-m9-mstd0.5"}
    expected = take(train(source, **options), 6)
    for batch in expected[::3]:  # 4 of a batch: three copies of one example and one of the next
        assert len({image.tobytes() for image in batch["image"]}) == 4
    resumed = train(source, **options)
    resumed.set_state({"next_index": 2})
    assert_same(take(resumed, 4), expected[2:])


@given(st.integers(0, 30), st.integers(1, 20), st.sampled_from([1, 3]))
@settings(max_examples=10, deadline=None)
def test_resume_goes_on_exactly(taken, further, threads):
    source = array_source(17)
    through = train(source)
    take(through, taken)
    state = through.get_state()
    expected = take(through, further)
    resumed = train(source, num_threads=threads)
    take(resumed, 2)  # what it has read ahead must not leak out
    resumed.set_state(state)
    assert_same(take(resumed, further), expected)


def test_resume_of_random_crops_through_a_json_state(folder):
    source = make_source(f"folder:{folder}", "train")
    through = train(source, **RANDOM)
    take(through, 5)
    state = through.get_state()
    expected = take(through, 5)
    assert state == {"next_index": 5}
    resumed = train(source, **(RANDOM | {"num_threads": 1}))
    resumed.set_state({"next_index": 5})
    assert_same(take(resumed, 5), expected)
    assert isinstance(resumed, grain.DatasetIterator)


@pytest.mark.parametrize(("num_examples", "process_count", "steps"), [(30, 1, 15), (31, 1, 15), (31, 2, 7), (30, 4, 3)])
def test_finite_epochs_drop_only_what_fills_no_global_batch(num_examples, process_count, steps):
    batches = [
        list(train(array_source(num_examples), num_epochs=2, process_index=i, process_count=process_count))
        for i in range(process_count)
    ]
    assert [len(part) for part in batches] == [steps] * process_count
    counts = np.bincount(
        np.concatenate([example_ids(batch) for part in batches for batch in part]), minlength=num_examples
    )
    assert counts.max() <= 2
    assert counts.sum() == steps * 4 * process_count


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_evaluation_counts_every_example_once_on_any_number_of_processes(num_examples, process_count, batch_size):
    source = array_source(num_examples)
    seen, lengths = [], set()
    for index in range(process_count):
        batches = evaluate(source, batch_size=batch_size, process_index=index, process_count=process_count)
        produced = list(batches)
        lengths |= {len(produced), len(batches)}
        for batch in produced:
            assert batch["image"].shape == (batch_size, 4, 5, 1)
            assert batch["valid"].dtype == bool
            assert not batch["image"][~batch["valid"]].any()
            assert not batch["label"][~batch["valid"]].any()
            seen += [i for i, valid in zip(example_ids(batch), batch["valid"], strict=True) if valid]
    assert seen == list(range(num_examples))
    assert len(lengths) == 1


def test_evaluation_can_be_iterated_again():
    batches = evaluate(array_source(10))
    assert_same(list(batches), list(batches))


def test_evaluation_refuses_random_crops():
    with pytest.raises(UserError, match="random"):
        evaluate(array_source(10), crop="random_resized")


@pytest.mark.parametrize("damage", ["garbage", "truncated", "missing"])
@pytest.mark.parametrize("how", ["train", "evaluate"])
def test_an_unusable_file_is_named_and_does_not_hang(tmp_path, damage, how):
    for i in range(8):
        path = tmp_path / "train" / "a" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    source = make_source(f"folder:{tmp_path}", "train")
    bad = tmp_path / "train" / "a" / "5.jpg"
    if damage == "missing":
        bad.unlink()
    else:
        bad.write_bytes(b"no image" * 100 if damage == "garbage" else bad.read_bytes()[:700])
    options = {"image_size": 16, "channels": 3, "num_classes": 1, "crop": "center", "num_threads": 4}
    start = time.monotonic()
    batches = train(source, **options, num_epochs=1) if how == "train" else evaluate(source, **options)
    with pytest.raises(UserError, match=str(bad)) as caught:
        list(batches)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 5


def test_labels_the_model_does_not_know_are_named_before_the_first_batch():
    with pytest.raises(UserError, match="label 7 of image 7 of test is outside of num_classes=7"):
        train(array_source(30), num_classes=7)
    with pytest.raises(UserError, match="num_classes=7"):
        evaluate(array_source(30), num_classes=7)


def test_labels_found_only_when_read_are_named():
    class Hidden(ArrayRecords):
        labels = None

        def __getitem__(self, index):
            return {"image": self.images[index], "label": -1 if index == 3 else 0}

    images = np.zeros((5, 4, 5, 1), np.uint8)
    records = Hidden(images=images, labels=None)
    source = ImageSource(name="test", records=records, order=np.arange(5), num_classes=2)
    with pytest.raises(UserError, match="label -1 of image 3"):
        take(train(source, flip=True), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"repeats": 0}, "repeats=0 must be at least 1"),
        ({"policy": "orginal"}, "did you mean 'original'"),
        ({"batch_size": 20, "num_epochs": 1}, "too few for a batch of 20"),
        ({"image_size": (5, 5)}, r"image 0 of test: the image is 4x5"),
        ({"crop": "middle"}, "unknown crop"),
    ],
)
def test_impossible_choices_are_told(options, message):
    with pytest.raises(UserError, match=message):
        train(array_source(10), **options)

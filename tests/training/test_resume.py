"""A run goes on exactly, on other devices, with other shares of the batch for each host."""

import json

import jax
import numpy as np
import pytest

from swin_jax.data.pipeline import train_iterator
from swin_jax.data.sources import array_source
from swin_jax.training import sharding
from swin_jax.training.checkpoint import Checkpoints
from swin_jax.training.fingerprints import checksum
from tests.training.conftest import Setup

BATCH = 16
DEVICES = (1, 2, 4, 8, 4, 2, 1)  # of the lives of one run, two steps each


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (70, 4, 4, 1), np.uint8)
    return array_source("noise", images, rng.integers(0, 10, 70), num_classes=10)


@pytest.fixture(scope="module")
def setups():
    return {count: Setup(count, ema_decay=0.9) for count in set(DEVICES)}


def batches(source, process_index=0, process_count=1):
    return train_iterator(
        source,
        batch_size=BATCH // process_count,
        image_size=4,
        channels=1,
        num_classes=10,
        seed=3,
        flip=True,
        num_threads=1,
        process_index=process_index,
        process_count=process_count,
    )


def steps(setup, state, iterator, count):
    losses = []
    for _ in range(count):
        state, metrics = setup.train_step(state, sharding.global_batch(next(iterator), setup.mesh), 0)
        losses.append(float(metrics["loss"]))
    return state, losses


def test_a_run_that_changes_its_devices(source, setups, tmp_path):
    straight, expected = steps(setups[1], setups[1].init(), batches(source), 2 * len(DEVICES))
    found = []
    for count in DEVICES:
        setup, iterator = setups[count], batches(source)
        checkpoints = Checkpoints(tmp_path, keep=1)
        restored = checkpoints.restore(setup.target, iterator)
        state, losses = steps(setup, restored.state if restored else setup.init(), iterator, 2)
        checkpoints.save(state, iterator)
        checkpoints.close()
        found += losses
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), state, straight)


@pytest.fixture
def saved(source, setups, tmp_path):
    """A folder with step 3 of a run on one host, and the two batches that follow."""
    iterator = batches(source)
    state, _ = steps(setups[1], setups[1].init(), iterator, 3)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state, iterator)
    checkpoints.close()
    return tmp_path, [next(iterator) for _ in range(2)]


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_other_shares_of_the_batch(process_count, source, setups, saved):
    folder, expected = saved
    iterators = [batches(source, index, process_count) for index in range(process_count)]
    for iterator in iterators:
        Checkpoints(folder, read_only=True).restore(setups[1].target, iterator)
    for batch in expected:
        shares = [next(iterator) for iterator in iterators]
        for name, whole in batch.items():
            np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), whole)


@pytest.mark.parametrize("intact", [True, False])
def test_checkpoints_with_the_position_in_a_file_of_its_own(intact, source, setups, saved):
    """As they were written before the position moved into the description."""
    folder, expected = saved
    path = folder / "3" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    position = meta.pop("iterator")
    del meta["checksum"]
    meta["iterators"] = [checksum(position)]
    path.write_text(json.dumps({**meta, "checksum": checksum(meta)}))
    (folder / "3" / "iterator").mkdir()
    file = folder / "3" / "iterator" / "process_0-of-1.json"
    file.write_text(json.dumps(position if intact else {"next_index": 1}, indent=4))
    iterator = batches(source)
    if intact:
        Checkpoints(folder, read_only=True).restore(setups[1].target, iterator)
        np.testing.assert_array_equal(next(iterator)["image"], expected[0]["image"])
    else:
        with pytest.raises(ValueError, match="the position in the data has changed"):
            Checkpoints(folder, read_only=True).restore(setups[1].target, iterator)

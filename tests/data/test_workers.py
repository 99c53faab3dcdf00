"""Worker processes: the same batches as without, resumed exactly, and an end if one dies."""

import collections
import itertools
import multiprocessing
import os
import signal

import numpy as np
import pytest
from absl import flags

from swin_jax.data.pipeline import train_iterator
from swin_jax.data.sources import make_source
from swin_jax.errors import RunError
from swin_jax.training.feed import Feed


def batches(worker_count):
    source = make_source("digits", "train", image_size=8, channels=1)
    return train_iterator(
        source, batch_size=16, image_size=8, channels=1, num_classes=10, seed=3, crop="random_resized", flip=True,
        num_threads=2, worker_count=worker_count,
    )  # fmt: skip


def same(found, expected):
    np.testing.assert_array_equal(found["image"], expected["image"])
    np.testing.assert_array_equal(found["label"], expected["label"])


def test_workers_make_the_same_batches_go_on_from_a_saved_place_and_are_missed():
    flags.FLAGS(["test"])  # as a command does: Grain's processes read absl's flags
    plain = batches(0)
    expected = [next(plain) for _ in range(6)]
    iterator = batches(2)
    for batch in expected[:3]:
        same(next(iterator), batch)
    state = iterator.get_state()
    same(next(iterator), expected[3])

    iterator.set_state(state)  # in the process that goes on
    same(next(iterator), expected[3])
    resumed = batches(2)  # and in a new one
    resumed.set_state(state)
    for batch in expected[3:]:
        same(next(resumed), batch)

    feed = Feed(resumed)
    workers = multiprocessing.active_children()
    assert workers
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RunError, match=r"a data worker of host .* has died \(exit code -9\)"):
        collections.deque(itertools.islice(feed, 10_000), maxlen=0)

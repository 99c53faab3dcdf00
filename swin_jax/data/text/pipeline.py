"""Batches of text on Grain, with the promises of the image pipeline: one stream from the seed, exact resume."""

from typing import Protocol

import grain
import numpy as np

from swin_jax.data.batching import Batch, EvalBatches, process_share, shuffled_indices
from swin_jax.data.text.windows import TrainWindows
from swin_jax.errors import UserError

_NUM_BUFFERED = 4


class Rows(Protocol):
    """What is trained or evaluated on: windows (windows.py) or packed rows (packing.py); `len()` is an epoch."""

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray) -> Batch:
        """Return some rows as a batch, any number of them, also none."""


def train_iterator(
    rows: Rows | TrainWindows,
    *,
    batch_size: int,
    seed: int,
    num_epochs: int | None = None,
    num_threads: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Return a checkpointable iterator over shuffled batches of rows.

    The stream is one endless sequence of rows, every epoch of `len(rows)` in a new order and, of `TrainWindows`, at new
    places, that depends on the seed alone. Step s takes the next `batch_size * process_count`, of which each process
    gets its own consecutive part; an epoch is `len(rows) / (batch_size * process_count)` steps, and a batch may cross
    into the next one. With `num_epochs` the tail that does not fill a global batch is dropped. The batches are the
    same on any number of processes and threads. `get_state()` counts those taken, `set_state()` goes on from there.
    """
    _check_batch_size(batch_size)
    indices = shuffled_indices(len(rows), seed=seed, num_epochs=num_epochs)
    # Places are keyed by the position in this stream, so the stream is cut among processes after them.
    places = indices.random_map(rows.place) if isinstance(rows, TrainWindows) else indices
    share = process_share(
        places.batch(batch_size, drop_remainder=True, batch_fn=np.asarray).map(rows.gather),
        what=f"the text makes {len(rows)} rows",
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
    )
    return iter(_iterate(share, num_threads))


def eval_batches(
    rows: Rows, *, batch_size: int, num_threads: int = 1, process_index: int = 0, process_count: int = 1
) -> EvalBatches:
    """Return the batches of all rows, in order, to be iterated any number of times, with `"valid"` bool `[B]`.

    Every row is valid exactly once over all processes: process p has the p-th consecutive part, and each the same
    number of batches, filled up with zeros (segment 0, not scored) that are not valid.
    """
    _check_batch_size(batch_size)
    if isinstance(rows, TrainWindows):
        raise UserError("windows for training begin at random places, which an evaluation must not; use eval_windows")

    def load(indices: grain.MapDataset) -> grain.IterDataset:
        return _iterate(indices.batch(batch_size, batch_fn=np.asarray).map(rows.gather), num_threads)

    return EvalBatches(
        num_examples=len(rows),
        batch_size=batch_size,
        load=load,
        nothing=rows.gather(np.zeros(0, np.int64)),
        process_index=process_index,
        process_count=process_count,
    )


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1")


def _iterate(batches: grain.MapDataset, num_threads: int) -> grain.IterDataset:
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(_NUM_BUFFERED, num_threads))
    return batches.to_iter_dataset(options)

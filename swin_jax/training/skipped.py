"""Updates that were skipped because they were not finite: what is kept of the one that ends a run."""

import pathlib
from collections.abc import Mapping

import grain
import jax
import numpy as np

from swin_jax.training.checkpoint import Checkpoints
from swin_jax.training.state import TrainState


class SkippedUpdates(FloatingPointError):
    """Too many updates in a row were skipped: the run has diverged."""


def keep_update(
    workdir: pathlib.Path,
    state: TrainState,
    batch: Mapping[str, np.ndarray],
    iterator: grain.DatasetIterator,
    error: SkippedUpdates,
) -> SkippedUpdates:
    """Save what reproduces the newest update, a skipped one, and return the error with the place in its text.

    `skipped_update/STEP` in the workdir is a checkpoint of the state after the update, which is that before it but for
    `step`, one less; `batch-HOST.npz` is each host's batch.
    """
    folder = workdir / "skipped_update"
    checkpoints = Checkpoints(folder, keep=1)
    if int(state.step) not in checkpoints.steps():
        checkpoints.save(state, iterator)
    checkpoints.close()
    np.savez(folder / f"batch-{jax.process_index()}.npz", **batch)
    return SkippedUpdates(f"{error}; {folder} has the last one's batch and parameters")

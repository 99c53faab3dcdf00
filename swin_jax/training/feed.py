"""The training batches on their way to the device, with the time that the run waits for them."""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping

import numpy as np

from swin_jax.errors import RunError
from swin_jax.training.watch import Watchdog, this_process

DEAD_WORKER = "Worker process was terminated"  # how Grain tells of one


class Feed:
    """An iterator over batches as the step takes them; counts what `data.unreadable` replaced, and takes the time.

    `skipped` is the number of records replaced so far on this host, by those batches that were taken.
    """

    def __init__(
        self,
        batches: Iterator[Mapping[str, np.ndarray]],
        *,
        skipped: int | None = None,
        watchdog: Watchdog | None = None,
    ):
        self._batches, self._watchdog = batches, watchdog
        self.skipped = skipped
        self.waited = 0.0  # seconds that the newest batch took to come

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        start = time.perf_counter()
        with self._watchdog.waiting_for("data") if self._watchdog else contextlib.nullcontext():
            batch = dict(self._next())
        self.waited = time.perf_counter() - start
        if "skipped" in batch:
            self.skipped = (self.skipped or 0) + int(batch.pop("skipped").sum())
        return batch

    def _next(self) -> Mapping[str, np.ndarray]:
        """Return the next batch. Raises RunError if a worker process that makes batches has died."""
        try:
            return next(self._batches)
        except RuntimeError as error:
            if DEAD_WORKER not in str(error):
                raise
            code = re.search(r"exit code (-?\d+)", str(error))
            how = f" (exit code {code[1]})" if code else ""
            where = f"{this_process()} has died{how}"
            raise RunError(
                f"a data worker of {where}: out of memory is the usual cause; see data.worker_count"
            ) from error

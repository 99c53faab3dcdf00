"""The training batches on their way to the device, with the time that the run waits for them."""

import time
from collections.abc import Iterator, Mapping

import numpy as np


class Feed:
    """An iterator over batches as the step takes them; counts what `data.unreadable` replaced, and takes the time.

    `skipped` is the number of records replaced so far on this host, by those batches that were taken.
    """

    def __init__(self, batches: Iterator[Mapping[str, np.ndarray]], *, skipped: int | None = None):
        self._batches = batches
        self.skipped = skipped
        self.waited = 0.0  # seconds that the newest batch took to come

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        start = time.perf_counter()
        batch = dict(next(self._batches))
        self.waited = time.perf_counter() - start
        if "skipped" in batch:
            self.skipped = (self.skipped or 0) + int(batch.pop("skipped").sum())
        return batch

"""What every pipeline shares: shuffled positions, a process's share of them, complete evaluation batches."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator

import grain
import numpy as np

from swin_jax.errors import UserError

Batch = dict[str, np.ndarray]


def shuffled_indices(
    num_examples: int, *, seed: int, num_epochs: int | None = None, repeats: int = 1
) -> grain.MapDataset:
    """Return the stream of positions 0 to `num_examples - 1`, every epoch in a new order that the seed decides.

    With `repeats` each comes so often in a row; see `RepeatEach`.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} must be from 0 to 2**32 - 1")
    order = grain.MapDataset.range(num_examples).seed(seed).shuffle()
    return (order if repeats == 1 else RepeatEach(order, repeats)).repeat(num_epochs)


class RepeatEach(grain.MapDataset):
    """Repeated augmentation (Hoffer et al. 2019, https://arxiv.org/abs/1901.09335): each example `repeats` times in a
    row.

    An epoch stays as long as it was, so it has the first part of its order only, and each epoch another, as DeiT's
    RASampler. The random transforms come after, so each copy has its own. Where DeiT deals the copies out to different
    devices, here they are neighbours in the global batch; mixing pairs an example with its mirror in the batch, and so
    with a copy of itself only at the batch's middle.
    """

    def __init__(self, parent: grain.MapDataset, repeats: int):
        super().__init__(parent)
        if repeats < 1:
            raise UserError(f"repeats={repeats} must be at least 1")
        self._repeats = repeats

    def __len__(self) -> int:
        return len(self._parent)

    def __str__(self) -> str:
        return f"RepeatEach({self._repeats})"

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        epoch, position = divmod(index, len(self))
        return self._parent[epoch * len(self) + position // self._repeats]


def process_share(
    batches: grain.MapDataset, *, what: str, batch_size: int, process_index: int, process_count: int
) -> grain.MapDataset:
    """Return every process's own batches: step s takes the next `process_count` of the stream, one each, in order.

    The tail of a finite stream that does not give each process a batch is dropped; UserError where that is all of it,
    `what` saying what there is too little of.
    """
    steps = len(batches) // process_count
    if not steps:
        raise UserError(f"{what}, too few for a batch of {batch_size * process_count}")
    return batches[: steps * process_count][process_index::process_count]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EvalBatches:
    """All examples in order, in complete batches with `"valid"`; `len()` is their number, the same on every process.

    Process p has the p-th consecutive part. Batches are filled up with zeros that are not valid; `load` may mark
    examples of its own so.
    """

    num_examples: int
    batch_size: int
    load: Callable[[grain.MapDataset], Iterable[Batch]]  # from positions to batches, the last one maybe smaller
    nothing: Batch  # a batch of no examples: its keys, dtypes and shapes
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return math.ceil(self.num_examples / (self.batch_size * self.process_count))

    def __iter__(self) -> Iterator[Batch]:
        share = math.ceil(self.num_examples / self.process_count)
        start, stop = (min(index * share, self.num_examples) for index in (self.process_index, self.process_index + 1))
        num_batches = 0
        if start < stop:
            for batch in self.load(grain.MapDataset.range(start, stop)):
                yield self._pad(batch)
                num_batches += 1
        for _ in range(num_batches, len(self)):
            yield self._pad(self.nothing)

    def _pad(self, batch: Batch) -> Batch:
        num_valid = len(next(iter(batch.values())))
        missing = self.batch_size - num_valid
        padded = {key: np.pad(value, [(0, missing)] + [(0, 0)] * (value.ndim - 1)) for key, value in batch.items()}
        return padded | {"valid": padded.get("valid", np.arange(self.batch_size) < num_valid)}

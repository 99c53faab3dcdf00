"""What becomes of records that cannot be read, where the config says to skip them: others instead, or none."""

import dataclasses
import functools
import logging

import grain
import numpy as np

from swin_jax.data.batching import Batch
from swin_jax.errors import UnreadableRecord, UserError, did_you_mean

CHOICES = ("stop", "skip")
MAX_REPLACEMENTS = 100

logger = logging.getLogger(__name__)


def check_choice(on_corrupt: str) -> None:
    """Raise a UserError unless this is one of `CHOICES`."""
    if on_corrupt not in CHOICES:
        near = did_you_mean(on_corrupt, CHOICES)
        raise UserError(f"unknown on_corrupt={on_corrupt!r}, known: {', '.join(CHOICES)}{near}")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ReplaceUnreadable(grain.transforms.RandomMap):
    """Training examples as `load` gives them, with `"skipped"`, bool: whether another one stands in.

    That is the next in the source that can be read: a function of the index, so that a resumed run sees the same.
    """

    load: grain.transforms.RandomMap  # from an index; raises UnreadableRecord
    num_examples: int

    def random_map(self, index: int, rng: np.random.Generator | None = None) -> Batch:
        for distance in range(MAX_REPLACEMENTS + 1):
            try:
                example = self.load.random_map((index + distance) % self.num_examples, rng)
            except UnreadableRecord as error:
                reason = str(error)
                warn_once(f"skipping a record: {reason}")
            else:
                return example | {"skipped": np.bool_(distance > 0)}
        raise UserError(f"{MAX_REPLACEMENTS + 1} records in a row are unreadable: {reason}")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class BlankUnreadable(grain.transforms.RandomMap):
    """Examples to evaluate as `load` gives them, with `"valid"`, bool: False where zeros stand in for one."""

    load: grain.transforms.RandomMap
    blank: Batch

    def random_map(self, index: int, rng: np.random.Generator | None = None) -> Batch:
        try:
            return self.load.random_map(index, rng) | {"valid": np.True_}
        except UnreadableRecord as error:
            warn_once(f"leaving a record out of the evaluation: {error}")
            return self.blank | {"valid": np.False_}


@functools.cache
def warn_once(line: str) -> None:
    """Tell the user a line, at its first occurrence in this process."""
    logger.warning("%s", line)

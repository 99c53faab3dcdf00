"""Heights and widths."""

from collections.abc import Sequence

import numpy as np


def as_pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """Return a side length or a (height, width) pair as a pair of ints; ValueError names the argument otherwise."""
    pair = (value, value) if isinstance(value, int | np.integer) else tuple(value)
    if len(pair) != 2 or not all(isinstance(side, int | np.integer) and side > 0 for side in pair):
        raise ValueError(f"{name} must be a positive number or a (height, width) pair of them, got {value!r}")
    return int(pair[0]), int(pair[1])

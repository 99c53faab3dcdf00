"""Which examples a split holds: the slice syntax of TFDS, and held-out parts cut from data that has none."""

import re
from collections.abc import Iterable

import numpy as np

from swin_jax.errors import UserError, did_you_mean

_BOUNDARY = r"(-?\d[\d_]*(?:\.\d+)?%?)?"
_SPLIT = re.compile(rf"\s*([\w.-]+)\s*(?:\[{_BOUNDARY}:{_BOUNDARY}\])?\s*")


def split_name(split: str) -> str:
    """Return the name in `"train[:80%]"`, here `"train"`; UserError where the text is no split."""
    return _parse(split)[0]


def check_split(split: str, known: Iterable[str], source: str) -> None:
    """Raise a UserError that lists the known splits, and the nearest, unless the source has this one."""
    known = tuple(known)
    if split not in known:
        near = did_you_mean(split, known)
        raise UserError(f"{source} has no split {split!r}, known: {', '.join(known)}{near}")


def split_range(split: str, num_examples: int) -> range:
    """Return the positions that a split such as `"train[80%:]"`, `"test[:100]"` or `"train[-50:]"` takes of all.

    A percentage lies at the nearest example, as in TFDS, so `[:80%]` and `[80%:]` always meet without overlap. A
    boundary outside of the examples or an empty result is a UserError.
    """
    name, start, stop = _parse(split)
    first, last = _position(start, split, num_examples, 0), _position(stop, split, num_examples, num_examples)
    if first >= last:
        raise UserError(f"split {split!r} is empty: {name} has {num_examples} examples")
    return range(first, last)


def _parse(split: str) -> tuple[str, str | None, str | None]:
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise UserError(f"cannot read the split {split!r}; write it as 'train', 'train[:80%]' or 'test[100:200]'")
    return match.groups()


def _position(boundary: str | None, split: str, num_examples: int, default: int) -> int:
    if not boundary:
        return default
    if boundary.endswith("%"):
        position = round(float(boundary[:-1]) * num_examples / 100)
    elif "." in boundary:
        raise UserError(f"{boundary!r} in the split {split!r} must be a whole number or end in %")
    else:
        position = int(boundary)
    if abs(position) > num_examples:
        raise UserError(f"{boundary!r} in the split {split!r} is outside of its {num_examples} examples")
    return position + num_examples if boundary.startswith("-") else position


def shuffled(num_examples: int) -> np.ndarray:
    """Return the one fixed pseudo-random order of so many examples."""
    # RandomState's stream is frozen by NumPy's policy: no upgrade moves an example from one split to another.
    return np.random.RandomState(0).permutation(num_examples)


def hold_out(labels: np.ndarray, num_held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut `(kept, held_out)` indices, every class in proportion (largest remainder), each in a fixed mixed order."""
    order = shuffled(len(labels))
    _, class_index, counts = np.unique(labels[order], return_inverse=True, return_counts=True)
    share = counts * num_held_out / len(labels)
    quota = np.floor(share).astype(int)
    quota[np.argsort(quota - share, kind="stable")[: num_held_out - quota.sum()]] += 1
    by_class = np.argsort(class_index, kind="stable")
    rank = np.empty(len(labels), int)  # of each example among those of its class
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_held_out = rank < quota[class_index]
    return order[~is_held_out], order[is_held_out]

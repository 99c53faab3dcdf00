"""The rules that layouts are written in: where one of our parameters lies in a file, and how its axes differ."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Transform:
    """How tensors of a file become one parameter (`load`) and back (`save`).

    A loaded array may have our trailing axes merged, as `[C, 3·heads·d]` for our `[C, 3, heads, d]`.
    """

    load: Callable[..., np.ndarray]
    save: Callable[[np.ndarray], tuple[np.ndarray, ...]]


def merge_out(kernel: np.ndarray) -> np.ndarray:
    """Return `[in, heads, d]` and the like as `[in, out]`."""
    return kernel.reshape(kernel.shape[0], -1)


KEEP = Transform(lambda x: x, lambda x: (x,))
# PyTorch's: weights [out, in], convolutions [out, in, h, w], and no axis of heads.
LINEAR = Transform(lambda weight: weight.T, lambda kernel: (merge_out(kernel).T,))
CONV = Transform(lambda weight: weight.transpose(2, 3, 1, 0), lambda kernel: (kernel.transpose(3, 2, 0, 1),))
FLAT = Transform(lambda bias: bias, lambda bias: (bias.reshape(-1),))
# Flax's attention: query, key and value each [in, heads, d] and [heads, d]; out [heads, d, out].
STACK_KERNELS = Transform(lambda *qkv: np.stack(qkv, axis=1), lambda kernel: tuple(np.moveaxis(kernel, 1, 0)))
STACK_BIASES = Transform(lambda *qkv: np.stack(qkv), lambda bias: tuple(bias))


def _not_saved(_: np.ndarray) -> tuple[np.ndarray, ...]:
    raise NotImplementedError("this layout is read, not written")


MERGE_HEADS = Transform(lambda kernel: kernel.reshape(-1, kernel.shape[-1]), _not_saved)


def joined(transform: Transform, parts: Sequence[int]) -> Transform:
    """Return `transform` of tensors that the file keeps in parts, of these proportions along the first axis."""

    def save(array: np.ndarray) -> tuple[np.ndarray, ...]:
        (whole,) = transform.save(array)
        ends = np.cumsum(parts)[:-1] * len(whole) // sum(parts)
        return tuple(np.split(whole, ends))

    return Transform(lambda *tensors: transform.load(np.concatenate(tensors)), save)


@dataclass(frozen=True)
class Rule:
    """Our parameter `ours` is made from the tensors `theirs`; `{i}`, `{j}` stand for indices, `{i-1}` for one less."""

    ours: str
    theirs: tuple[str, ...]
    transform: Transform

    def sources(self, path: str) -> tuple[str, ...] | None:
        """Return the file's names of our parameter `path`, or None if this rule is not about it."""
        match = re.fullmatch(_pattern(self.ours), path)
        return tuple(_fill(name, match) for name in self.theirs) if match else None


def same(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return the rule of a tensor that is ours as it stands."""
    return (Rule(ours, (theirs,), KEEP),)


def norm(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return the rules of PyTorch's LayerNorm."""
    return (*same(f"{ours}.scale", f"{theirs}.weight"), *same(f"{ours}.bias", f"{theirs}.bias"))


def layer(ours: str, *theirs: str, kernel: Transform = LINEAR, parts: Sequence[int] = (1,)) -> tuple[Rule, ...]:
    """Return the rules of PyTorch's linear layer or convolution, or of several whose outputs are ours in a row."""
    bias = FLAT if len(theirs) == 1 else joined(FLAT, parts)
    kernel = kernel if len(theirs) == 1 else joined(kernel, parts)
    return (
        Rule(f"{ours}.kernel", tuple(f"{name}.weight" for name in theirs), kernel),
        Rule(f"{ours}.bias", tuple(f"{name}.bias" for name in theirs), bias),
    )


def _pattern(template: str) -> str:
    return re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(template))


def _fill(template: str, match: re.Match) -> str:
    return re.sub(r"\{(\w)(-1)?\}", lambda hole: str(int(match[hole[1]]) - bool(hole[2])), template)

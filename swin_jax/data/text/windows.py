"""Windows of long documents: at new random places in every epoch to train on, at fixed places to be scored."""

import dataclasses

import numpy as np

from swin_jax.data.batching import Batch
from swin_jax.data.text.sequences import TokenSequences
from swin_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TrainWindows:
    """Windows `{"tokens", "segments"}` int32 `[B, L + 1]` of documents; `len()` of them make an epoch.

    An epoch has as many windows as it takes to predict each token once. The places where one may begin in a document
    are divided evenly among its windows, and each begins at one of its share, drawn anew in every epoch. A document
    that is shorter than a window is one window, filled up with zeros of segment 0.
    """

    documents: TokenSequences
    sequence_length: int
    first: np.ndarray  # [W] where in all tokens a window may begin
    last: np.ndarray  # [W]

    def __len__(self) -> int:
        return len(self.first)

    def place(self, window: int, rng: np.random.Generator) -> int:
        """Draw where in all tokens a window begins."""
        return int(rng.integers(self.first[window], self.last[window] + 1))

    def gather(self, starts: np.ndarray) -> Batch:
        """Return the windows that begin at places `[B]`."""
        return _gather(self.documents, starts, self.sequence_length)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EvalWindows:
    """Windows every `stride` tokens, with bool `"scored"` `[B, L + 1]` on the last `stride` predicted tokens of each.

    So every token of a document is scored once, but for its first `L + 1 - stride`, which are context alone.
    """

    documents: TokenSequences
    sequence_length: int
    stride: int
    starts: np.ndarray  # [W]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def num_scored(self) -> int:
        """The number of tokens that are scored, over all windows."""
        return int(np.maximum(self.documents.lengths - self._num_context, 0).sum())

    @property
    def _num_context(self) -> int:
        return self.sequence_length + 1 - self.stride

    def gather(self, windows: np.ndarray) -> Batch:
        batch = _gather(self.documents, self.starts[windows], self.sequence_length)
        is_last = np.arange(self.sequence_length + 1) >= self._num_context
        return batch | {"scored": is_last & (batch["segments"] > 0)}


def train_windows(documents: TokenSequences, sequence_length: int) -> TrainWindows:
    """Return training windows of `sequence_length + 1` tokens; UserError where no document has two tokens."""
    _check_length(sequence_length)
    lengths = documents.lengths
    num_windows = np.where(lengths >= 2, -(-(lengths - 1) // sequence_length), 0)
    if not num_windows.sum():
        raise UserError(f"none of {len(documents)} documents has two tokens: there is nothing to predict")
    num_places = np.maximum(lengths - sequence_length, 1)
    window = np.arange(num_windows.sum()) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    start, places, windows = (np.repeat(x, num_windows) for x in (documents.offsets[:-1], num_places, num_windows))
    first = start + window * places // windows
    last = start + (window + 1) * places // windows - 1
    return TrainWindows(documents=documents, sequence_length=sequence_length, first=first, last=last)


def eval_windows(documents: TokenSequences, sequence_length: int, *, stride: int) -> EvalWindows:
    """Return the windows of tokens `i * stride` to `i * stride + sequence_length` of each document.

    A document of which nothing would be scored is left out; UserError where that is every document.
    """
    _check_length(sequence_length)
    if not 1 <= stride <= sequence_length:
        raise UserError(f"stride={stride} must be from 1 to sequence_length={sequence_length}")
    lengths = documents.lengths
    num_context = sequence_length + 1 - stride
    num_windows = np.maximum(-(-(lengths - num_context) // stride), 0)
    if not num_windows.sum():
        raise UserError(
            f"none of {len(documents)} documents has more than {num_context} tokens, which are context alone for"
            f" sequence_length={sequence_length} and stride={stride}: nothing to score"
        )
    window = np.arange(num_windows.sum()) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    starts = np.repeat(documents.offsets[:-1], num_windows) + window * stride
    return EvalWindows(documents=documents, sequence_length=sequence_length, stride=stride, starts=starts)


def _check_length(sequence_length: int) -> None:
    if sequence_length < 1:
        raise UserError(f"sequence_length={sequence_length} must be at least 1")


def _gather(documents: TokenSequences, starts: np.ndarray, sequence_length: int) -> Batch:
    """Return windows at places `[B]` in all tokens, each ending with its document at the latest."""
    stops = documents.offsets[np.searchsorted(documents.offsets, starts, side="right")]
    places = starts[:, None] + np.arange(sequence_length + 1)  # [B, L + 1]
    is_inside = places < stops[:, None]
    tokens = documents.tokens[np.minimum(places, len(documents.tokens) - 1)]
    return {"tokens": np.where(is_inside, tokens, 0).astype(np.int32), "segments": is_inside.astype(np.int32)}

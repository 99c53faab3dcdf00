"""Several short sequences in one row, told apart by segments, as T5 was trained (arXiv 1910.10683, section 3.1.2).

Packing is also how batches of about so many tokens are made: rows are nearly full, so a batch of rows has nearly
`batch_size * row length` tokens whatever the lengths of the sentences, in shapes that never change.
"""

import dataclasses

import numpy as np

from swin_jax.data.batching import Batch
from swin_jax.data.text.sequences import TokenPairs, TokenSequences
from swin_jax.errors import UserError

NUM_OPEN_ROWS = 32  # more fill the rows a little better and take longer


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PackedRows:
    """Rows of packed sequences, zeros behind them; `segments` is 0 there and 1, 2, ... on the sequences of a row."""

    tokens: np.ndarray  # [R, L] uint16 or int32
    segments: np.ndarray  # [R, L] uint16 or int32

    @property
    def fill(self) -> float:
        """The share of places that hold a token."""
        return float((self.segments > 0).mean())

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens and segments of some rows, both int32 `[B, L]`."""
        return self.tokens[rows].astype(np.int32), self.segments[rows].astype(np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PackedDocuments:
    """Rows for language modelling, `{"tokens", "segments"}` int32 `[B, L + 1]`, and bool `"scored"` if it is asked for.

    Every token counts when it is predicted but the first of its sequence, which nothing comes before.
    """

    rows: PackedRows
    scored: bool
    num_packed: int
    num_dropped: int

    def __len__(self) -> int:
        return len(self.rows.tokens)

    def gather(self, rows: np.ndarray) -> Batch:
        tokens, segments = self.rows.gather(rows)
        batch = {"tokens": tokens, "segments": segments}
        if self.scored:
            is_same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
            batch["scored"] = np.pad(is_same, [(0, 0), (1, 0)])
        return batch


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PackedPairs:
    """Rows for translation: int32 `"source", "source_segments"` `[B, S]`, `"target", "target_segments"` `[B, T + 1]`.

    Segment k of a row's source belongs to segment k of its target.
    """

    source: PackedRows
    target: PackedRows
    num_packed: int
    num_dropped: int

    def __len__(self) -> int:
        return len(self.source.tokens)

    def gather(self, rows: np.ndarray) -> Batch:
        source, source_segments = self.source.gather(rows)
        target, target_segments = self.target.gather(rows)
        return {
            "source": source,
            "source_segments": source_segments,
            "target": target,
            "target_segments": target_segments,
        }


def pack_documents(
    documents: TokenSequences,
    sequence_length: int,
    *,
    seed: int | None = None,
    too_long: str = "cut",
    scored: bool = False,
) -> PackedDocuments:
    """Pack texts into rows of `sequence_length + 1` tokens: for many texts that are shorter than a row.

    Args:
      sequence_length: what the model sees of a row; one token more is there to be predicted.
      seed: decides the order in which they are packed; None keeps them in order, for evaluation.
      too_long: `cut` a text that is longer than a row into pieces, or `drop` it and count it in `num_dropped`.
      scored: add `"scored"`, for evaluation.
    """
    if too_long not in ("cut", "drop"):
        raise UserError(f"too_long={too_long!r} must be 'cut' or 'drop'")
    row_length = _positive("sequence_length", sequence_length) + 1
    if too_long == "cut":
        documents = _cut(documents, row_length)
    (rows,), num_packed = _pack([documents], [row_length], seed)
    if not num_packed:
        raise UserError(f"none of {len(documents)} documents has from 1 to {row_length} tokens: nothing to pack")
    return PackedDocuments(rows=rows, scored=scored, num_packed=num_packed, num_dropped=len(documents) - num_packed)


def pack_pairs(pairs: TokenPairs, *, source_length: int, target_length: int, seed: int | None = None) -> PackedPairs:
    """Pack pairs into rows of `source_length` source and `target_length + 1` target tokens.

    A pair that is longer on either side is dropped and counted in `num_dropped`. The seed decides the order in which
    they are packed; None keeps them in order, for evaluation.
    """
    capacities = [_positive("source_length", source_length), _positive("target_length", target_length) + 1]
    (source, target), num_packed = _pack([pairs.source, pairs.target], capacities, seed)
    if not num_packed:
        raise UserError(f"none of {len(pairs)} pairs fits in {source_length} source and {target_length} target tokens")
    return PackedPairs(source=source, target=target, num_packed=num_packed, num_dropped=len(pairs) - num_packed)


def _positive(name: str, length: int) -> int:
    if length < 1:
        raise UserError(f"{name}={length} must be at least 1")
    return length


def _cut(documents: TokenSequences, row_length: int) -> TokenSequences:
    """Cut each document that is longer than a row into pieces of a row, the last one shorter."""
    starts, lengths = documents.offsets[:-1], documents.lengths
    num_pieces = -(-lengths // row_length)
    first = np.repeat(starts, num_pieces)
    piece = np.arange(len(first)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    return TokenSequences(tokens=documents.tokens, offsets=np.append(first + piece * row_length, documents.offsets[-1]))


def _pack(sides: list[TokenSequences], capacities: list[int], seed: int | None) -> tuple[list[PackedRows], int]:
    """Pack items of one sequence a side into rows of so many tokens a side; return the rows and how many items fit."""
    lengths = np.stack([side.lengths for side in sides], axis=1)  # [N, sides]
    order = np.arange(len(lengths)) if seed is None else np.random.default_rng(seed).permutation(len(lengths))
    fits = (lengths <= capacities).all(1) & (lengths > 0).all(1)
    order = order[fits[order]]
    row_of = _assign(lengths[order], np.array(capacities))
    # From here on items are in the order of their rows, and within a row as they came.
    by_row = np.argsort(row_of, kind="stable")
    items, row_of = order[by_row], row_of[by_row]
    num_rows = int(row_of[-1]) + 1 if len(items) else 0
    first_of_row = np.searchsorted(row_of, np.arange(num_rows))
    segments = np.arange(len(items)) - first_of_row[row_of] + 1
    packed = [
        _fill(side, items, row_of, first_of_row, segments, (num_rows, capacity))
        for side, capacity in zip(sides, capacities, strict=True)
    ]
    return packed, len(items)


def _assign(lengths: np.ndarray, capacities: np.ndarray) -> np.ndarray:
    """Give each item `[N, sides]` the first open row that has room for it; of too many open rows the fullest closes."""
    row_of = np.zeros(len(lengths), np.int64)
    room = np.zeros((0, len(capacities)), np.int64)  # of each open row
    names = np.zeros(0, np.int64)
    num_rows = 0
    for item, length in enumerate(lengths):
        has_room = (room >= length).all(1)
        place = int(has_room.argmax()) if has_room.any() else len(room)
        if place == len(room):
            if len(room) == NUM_OPEN_ROWS:
                fullest = (room / capacities).min(1).argmin()
                room, names = np.delete(room, fullest, 0), np.delete(names, fullest)
                place -= 1
            room, names = np.vstack([room, capacities]), np.append(names, num_rows)
            num_rows += 1
        room[place] -= length
        row_of[item] = names[place]
    return row_of


def _fill(
    side: TokenSequences,
    items: np.ndarray,
    row_of: np.ndarray,
    first_of_row: np.ndarray,
    segments: np.ndarray,
    shape: tuple[int, int],
) -> PackedRows:
    """Lay one side of all items into its rows, each item behind those that came before it in its row."""
    lengths = side.lengths[items]
    before = np.cumsum(lengths) - lengths  # tokens of all items before this one
    in_row = before - before[first_of_row][row_of]
    within = np.arange(lengths.sum()) - np.repeat(before, lengths)  # of each token in its item
    places = np.repeat(row_of * shape[1] + in_row, lengths) + within
    tokens, numbers = np.zeros(shape, side.tokens.dtype), np.zeros(shape, np.uint16 if shape[1] < 2**16 else np.int32)
    tokens.reshape(-1)[places] = side.tokens[np.repeat(side.offsets[:-1][items], lengths) + within]
    numbers.reshape(-1)[places] = np.repeat(segments, lengths)
    return PackedRows(tokens=tokens, segments=numbers)

"""Boolean attention masks: True = attend, broadcastable to `[B, heads, Q, K]`; combine them with `combine_masks`.

Masks that depend on static sizes alone are numpy arrays, constants of the compiled program.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def causal_mask(num_queries: int, num_keys: int | None = None) -> np.ndarray:
    """Return `[1, 1, Q, K]`: a query sees the keys up to its own place; with more keys than queries (a cache), the last
    query sits at the last key."""
    num_keys = num_queries if num_keys is None else num_keys
    if num_keys < num_queries:
        raise ValueError(f"{num_keys=} must be at least {num_queries=}")
    return np.tri(num_queries, num_keys, num_keys - num_queries, dtype=bool)[None, None]


def padding_mask(lengths: Array, num_keys: int) -> Array:
    """Return `[B, 1, 1, K]`: every query sees the first `lengths[b]` keys of its sequence."""
    return (jnp.arange(num_keys) < jnp.asarray(lengths)[:, None])[:, None, None, :]


def prefix_mask(prefix_lengths: Array, num_queries: int) -> Array:
    """Return `[B, 1, N, N]`: causal, except that the first `prefix_lengths[b]` tokens are seen by all (prefix LM,
    arXiv 1910.10683, figure 4)."""
    return causal_mask(num_queries) | padding_mask(prefix_lengths, num_queries)


def segment_mask(query_segments: Array, key_segments: Array) -> Array:
    """Return `[B, 1, Q, K]`: packed sequences see only themselves. Segments `[B, Q]` and `[B, K]` count from 1; 0 is
    padding, which sees nothing and is not seen (arXiv 1910.10683, section 3.1.1)."""
    same = query_segments[:, :, None] == key_segments[:, None, :]
    return (same & (query_segments > 0)[:, :, None])[:, None]


def segment_positions(segments: Array) -> Array:
    """Return `[B, N]`, the place of each token in its own segment, for segments that are contiguous."""
    places = jnp.arange(segments.shape[1])
    starts = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    return places - jax.lax.cummax(jnp.where(starts, places, 0), axis=1)


def combine_masks(*masks: Array | np.ndarray | None) -> Array | np.ndarray | None:
    """Return the conjunction of the masks that are not None, by broadcasting; None if there is none."""
    given = [mask for mask in masks if mask is not None]
    for mask in given:
        if mask.dtype != np.bool_:
            raise TypeError(f"masks are boolean (True = attend), got {mask.dtype}")
    if not given:
        return None
    combined = given[0]
    for mask in given[1:]:
        combined = combined & mask
    return combined


@lru_cache
def shifted_window_mask(
    map_size: tuple[int, int],
    window_size: tuple[int, int],
    shift: tuple[int, int],
    *,
    attend_padding: bool = True,
) -> np.ndarray | None:
    """Return `[nW, 1, M, M]`, who sees whom in the windows of a rolled map (Swin, arXiv 2103.14030, figure 4), or None
    if everybody sees everybody.

    The map is padded at the bottom and right to a multiple of the window and rolled by -shift. Tokens that the roll
    brought together from opposite edges do not see each other. With `attend_padding=False` no token sees the padding
    either; this takes padding to have come before the roll.
    """
    for size, window, offset in zip(map_size, window_size, shift, strict=True):
        if not 0 <= offset < window or size < 1:
            raise ValueError(f"need 0 <= shift < window and a map: {map_size=}, {window_size=}, {shift=}")
    counts = [-(-size // window) for size, window in zip(map_size, window_size, strict=True)]
    regions, is_real = [], []  # of each axis, in rolled order, [windows, window]
    for size, window, offset, count in zip(map_size, window_size, shift, counts, strict=True):
        places = np.roll(np.arange(count * window), -offset).reshape(count, window)
        regions.append(places < offset)  # wrapped around by the roll: only the last window holds both kinds
        is_real.append(places < size)

    def windows(rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape = (counts[0], counts[1], *window_size)
        rows = np.broadcast_to(rows[:, None, :, None], shape)
        columns = np.broadcast_to(columns[None, :, None, :], shape)
        flat = (counts[0] * counts[1], window_size[0] * window_size[1])
        return rows.reshape(flat), columns.reshape(flat)

    wrapped_rows, wrapped_columns = windows(*regions)
    mask = (wrapped_rows[:, :, None] == wrapped_rows[:, None, :]) & (
        wrapped_columns[:, :, None] == wrapped_columns[:, None, :]
    )
    if not attend_padding:
        real_rows, real_columns = windows(*is_real)
        mask &= (real_rows & real_columns)[:, None, :]
    mask = mask[:, None]
    mask.flags.writeable = False  # cached: shared by all callers
    return None if mask.all() else mask

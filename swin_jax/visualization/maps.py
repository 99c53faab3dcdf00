"""What attention probabilities say about an image's tokens: rollout, and windows put back in their places. All numpy.

`tokens` `[nW, K]` tells which token of a map, row by row, stands at each place of each window, -1 where there is none
(padding, a class token). Attention over all tokens at once is one window.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from swin_jax.nn.windows import shifted_window_attention, window_partition


def attention_rollout(layers: Sequence[np.ndarray], *, residual: float = 0.5) -> np.ndarray:
    """Return `[N, N]`, how much each output token (rows) is made of each input token (arXiv 2005.00928, eq. 1).

    `layers` are probabilities `[heads, N, N]`, the first layer first. Heads are averaged, the residual connection
    counts `residual`, and rows are normalised to 1: one that attends to nothing stays itself.
    """
    if not 0.0 <= residual < 1.0:
        raise ValueError(f"{residual=} must be in [0, 1)")
    shapes = [layer.shape for layer in layers]
    if not shapes or any(len(shape) != 3 or shape[1:] != 2 * shapes[0][-1:] for shape in shapes):
        raise ValueError(f"rollout takes self-attention [heads, N, N] of one N for each layer, got {shapes}")
    identity = np.eye(shapes[0][-1])
    rollout = identity
    for layer in layers:
        mixed = (1.0 - residual) * layer.mean(axis=0, dtype=np.float64) + residual * identity
        total = mixed.sum(axis=-1, keepdims=True)
        rollout = np.where(total > 0, mixed / np.where(total > 0, total, 1.0), identity) @ rollout
    return rollout


def window_tokens(
    map_size: tuple[int, int], *, window_size: tuple[int, int], shifted: bool, window_padding: str = "roll_pad"
) -> np.ndarray:
    """Return `tokens` `[nW, M]` of the windows that `shifted_window_attention` cuts, with these arguments of it."""
    seen = []

    def attention(windows, **_):
        seen.append(windows)
        return windows

    numbers = jnp.arange(1, map_size[0] * map_size[1] + 1).reshape(1, *map_size, 1)  # padded with 0
    shifted_window_attention(
        numbers, attention, window_size=window_size, shifted=shifted, window_padding=window_padding
    )
    return np.asarray(seen[0])[..., 0] - 1


def rolled_window_tokens(map_size: tuple[int, int], window_size: tuple[int, int], shift: tuple[int, int]) -> np.ndarray:
    """Return `tokens` `[nW, M]` of the windows that `masks.shifted_window_mask` is about: padded, then rolled."""
    padding = [(0, -side % window) for side, window in zip(map_size, window_size, strict=True)]
    numbers = np.arange(map_size[0] * map_size[1]).reshape(map_size)
    padded = np.pad(numbers, padding, constant_values=-1)
    rolled = np.roll(padded, (-shift[0], -shift[1]), axis=(0, 1))
    return window_partition(rolled[None, ..., None], window_size)[..., 0]


def merge_windows(values: np.ndarray, tokens: np.ndarray, map_size: tuple[int, int]) -> np.ndarray:
    """Put `values` `[nW, ..., K]` of the places of windows where their tokens are: `[..., H, W]`."""
    merged = np.zeros((*values.shape[1:-1], map_size[0] * map_size[1]), values.dtype)
    for window, places in enumerate(tokens):
        merged[..., places[places >= 0]] = values[window][..., places >= 0]
    return merged.reshape(*merged.shape[:-1], *map_size)


def find_token(tokens: np.ndarray, token: int) -> tuple[int, int]:
    """Return the window and the place in it where a token of the map stands."""
    window, place = np.argwhere(tokens == token)[0]
    return int(window), int(place)


def attention_from(
    probabilities: np.ndarray, tokens: np.ndarray, map_size: tuple[int, int], *, window: int, place: int
) -> np.ndarray:
    """Return `[heads, H, W]`, what one query attends to; 0 outside of its window.

    `probabilities` `[nW, heads, Q, K]`, the query at `place` of `window`.
    """
    values = np.zeros_like(probabilities[:, :, 0])
    values[window] = probabilities[window, :, place]
    return merge_windows(values, tokens, map_size)


def attention_received(probabilities: np.ndarray, tokens: np.ndarray, map_size: tuple[int, int]) -> np.ndarray:
    """Return `[heads, H, W]`, the attention that each token gets from the tokens of its window together.

    `probabilities` `[nW, heads, M, M]`. It is 1 where all look at everything evenly; padding and class tokens do not
    count as queries.
    """
    from_tokens = np.where((tokens >= 0)[:, None, :, None], probabilities, 0.0)
    return merge_windows(from_tokens.sum(axis=2), tokens, map_size)


def windows_of_map(tokens: np.ndarray, map_size: tuple[int, int]) -> np.ndarray:
    """Return `[H, W]`, the number of the window in which each token is."""
    numbers = np.broadcast_to(np.arange(len(tokens))[:, None], tokens.shape)
    return merge_windows(numbers, tokens, map_size)


def mask_regions(mask: np.ndarray) -> np.ndarray:
    """Number the regions of each window, from 0 by their first tokens: a region's tokens see the same keys.

    `mask` `[nW, 1, M, M]`; returns `[nW, M]`.
    """
    regions = np.zeros((mask.shape[0], mask.shape[2]), int)
    for window, (rows,) in enumerate(mask):
        _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        regions[window] = np.argsort(np.argsort(first))[inverse]
    return regions

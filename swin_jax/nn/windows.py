"""Windows of a feature map and the attention inside them (Swin, arXiv 2103.14030, section 3.2)."""

from collections.abc import Callable
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from swin_jax.nn import types
from swin_jax.nn.attention import dot_product_attention, is_recording, unstack_projections
from swin_jax.nn.masks import shifted_window_mask
from swin_jax.nn.rng import child

WINDOW_PADDINGS = ("roll_pad", "pad_roll", "masked")


def window_partition(x: Array, window_size: tuple[int, int]) -> Array:
    """Cut `[B, H, W, C]` into `[B*nW, M, C]` windows of M = height · width tokens, row by row.

    Raises ValueError if the windows do not divide the map.
    """
    batch, height, width, channels = x.shape
    rows, columns = window_size
    if height % rows or width % columns:
        raise ValueError(f"windows {window_size} do not divide a map of {height}x{width}")
    x = x.reshape(batch, height // rows, rows, width // columns, columns, channels)
    return x.swapaxes(2, 3).reshape(-1, rows * columns, channels)


def window_merge(windows: Array, window_size: tuple[int, int], map_size: tuple[int, int]) -> Array:
    """Put `[B*nW, M, C]` windows back into a map `[B, H, W, C]`: the inverse of `window_partition`."""
    (rows, columns), (height, width) = window_size, map_size
    if height % rows or width % columns:
        raise ValueError(f"windows {window_size} do not divide a map of {height}x{width}")
    x = windows.reshape(-1, height // rows, width // columns, rows, columns, windows.shape[-1])
    return x.swapaxes(2, 3).reshape(-1, height, width, windows.shape[-1])


@lru_cache
def relative_position_index(window_size: tuple[int, int], table_size: tuple[int, int]) -> np.ndarray:
    """Return `[M, M]` rows of the bias table for each (query, key) of a window.

    The table has `(2·Th - 1)·(2·Tw - 1)` rows for windows of `table_size` (Th, Tw): one for each offset query - key,
    height-major, as published. A window smaller than the table's uses the offsets in its middle.
    """
    offsets = []
    for side, table_side in zip(window_size, table_size, strict=True):
        if side > table_side:
            raise ValueError(f"{window_size=} is larger than the table's {table_size}")
        places = np.arange(side)
        offsets.append(places[:, None] - places[None, :] + table_side - 1)
    rows, columns = offsets
    index = rows[:, None, :, None] * (2 * table_size[1] - 1) + columns[None, :, None, :]
    tokens = window_size[0] * window_size[1]
    index = index.reshape(tokens, tokens)
    index.flags.writeable = False  # cached: shared by all callers
    return index


class WindowAttention(nnx.Module):
    """Multi-head self-attention inside windows with a learned relative position bias (arXiv 2103.14030, eq. 4)."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        window_size: tuple[int, int],
        qkv_bias: bool = True,
        dropout_rate: float = 0.0,
        core: Callable[..., Array] = dot_product_attention,
        dense: types.Dense,
        rngs: nnx.Rngs,
    ):
        if embed_dim % num_heads:
            raise ValueError(f"{embed_dim=} must be divisible by {num_heads=}")
        self.table_size = window_size
        self.dropout_rate, self.core = dropout_rate, core
        self.qkv = dense(embed_dim, (3, num_heads, embed_dim // num_heads), use_bias=qkv_bias, rngs=child(rngs, "qkv"))
        self.proj = dense(embed_dim, embed_dim, rngs=child(rngs, "proj"))
        offsets = (2 * window_size[0] - 1) * (2 * window_size[1] - 1)
        # The published std, whatever the scheme of the dense layers.
        table_init = nnx.initializers.normal(0.02)
        key = child(rngs, "relative_position_bias_table").params()
        self.relative_position_bias_table = nnx.Param(table_init(key, (offsets, num_heads), self.qkv.param_dtype))

    def __call__(
        self, windows: Array, *, window_size: tuple[int, int], mask: Array | None = None, rngs: nnx.Rngs | None = None
    ) -> Array:
        """Attend within each of `[B*nW, M, C]` windows; `mask` is None or `[nW, 1, M, M]`. Returns `[B*nW, M, C]`."""
        qkv = self.qkv(windows)
        if mask is not None:
            qkv = qkv.reshape(-1, mask.shape[0], *qkv.shape[1:])  # [B, nW, M, 3, heads, head_dim]
        query, key, value = unstack_projections(qkv)
        bias = self.relative_position_bias(window_size)
        attended = self.core(query, key, value, bias=bias, mask=mask, dropout_rate=self.dropout_rate, rngs=rngs)
        return self.proj(attended.reshape(windows.shape))

    def relative_position_bias(self, window_size: tuple[int, int]) -> Array:
        """Return `[heads, M, M]`."""
        index = relative_position_index(window_size, self.table_size)
        return self.relative_position_bias_table[...][index].transpose(2, 0, 1)


def shifted_window_attention(
    x: Array,
    attention: types.WindowAttention,
    *,
    window_size: tuple[int, int],
    shifted: bool,
    window_padding: str = "roll_pad",
    rngs: nnx.Rngs | None = None,
) -> Array:
    """Run `attention` inside the windows of `x` `[B, H, W, C]`, shifted by half a window or not (section 3.2).

    Each side of the window shrinks to the map's, and does not shift there. Where windows do not divide the map, zeros
    fill it at the bottom and right, and `window_padding` tells when, and whether the padding is attended to:

    - `roll_pad`: roll, then pad; attended (timm).
    - `pad_roll`: pad, then roll; attended (the official detection and segmentation code, HF).
    - `masked`: pad, then roll; never attended, so that padding changes nothing.
    """
    if window_padding not in WINDOW_PADDINGS:
        raise ValueError(f"{window_padding=} is none of {WINDOW_PADDINGS}")
    map_size = x.shape[1:3]
    sides = zip(map_size, window_size, strict=True)
    shift = tuple(window // 2 if shifted and size > window else 0 for size, window in sides)
    window_size = tuple(min(size, window) for size, window in zip(map_size, window_size, strict=True))
    if hasattr(attention, "attend_map") and not is_recording():  # it does all that follows by itself
        return attention.attend_map(x, window_size=window_size, shift=shift, window_padding=window_padding)
    padding = tuple(-size % window for size, window in zip(map_size, window_size, strict=True))
    padded_size = (map_size[0] + padding[0], map_size[1] + padding[1])
    attend_padding = window_padding != "masked" or not any(padding)
    mask = shifted_window_mask(map_size, window_size, shift, attend_padding=attend_padding)

    def roll(x, rows, columns):
        return jnp.roll(x, (rows, columns), axis=(1, 2)) if rows or columns else x

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, padding[0]), (0, padding[1]), (0, 0))) if any(padding) else x

    def crop(x):
        return x[:, : map_size[0], : map_size[1]]

    roll_first = window_padding == "roll_pad"
    x = pad(roll(x, -shift[0], -shift[1])) if roll_first else roll(pad(x), -shift[0], -shift[1])
    windows = window_partition(x, window_size)
    windows = attention(windows, window_size=window_size, mask=mask, rngs=rngs)
    x = window_merge(windows, window_size, padded_size)
    return roll(crop(x), *shift) if roll_first else crop(roll(x, *shift))

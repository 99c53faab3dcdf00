"""Positions of tokens in a sequence: sinusoids to add, and rotary angles to turn queries and keys by."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@lru_cache
def sinusoidal_positions(num_positions: int, embed_dim: int, *, interleaved: bool = True) -> np.ndarray:
    """Return `[N, C]` float32, the sinusoids of arXiv 1706.03762, section 3.5: sin in even, cos in odd channels.

    Without `interleaved`, all sines stand before all cosines, as in Marian and tensor2tensor: the same function up to
    the order of the channels, which matters to published weights.
    """
    if embed_dim % 2:
        raise ValueError(f"sinusoidal positions need an even embed_dim, not {embed_dim}")
    angles = np.arange(num_positions)[:, None] * 10_000.0 ** (-np.arange(0, embed_dim, 2) / embed_dim)
    parts = np.sin(angles), np.cos(angles)
    table = np.stack(parts, axis=-1).reshape(num_positions, embed_dim) if interleaved else np.concatenate(parts, axis=1)
    table = table.astype(np.float32)
    table.flags.writeable = False  # cached: shared by all callers
    return table


def rotate(x: Array, positions: Array | np.ndarray, *, base: float = 10_000.0) -> Array:
    """Turn each pair of channels (i, i + d/2) of `[B, N, heads, d]` by position · base^(-2i/d) (RoFormer, arXiv
    2104.09864, eq. 34), so that products of queries and keys depend on their distance alone.

    `positions` are `[N]` or `[B, N]`; angles are in float32. Positions known when the program is compiled are best
    given as a numpy array: XLA would compute the sine and cosine of others anew for every head. Returns x's dtype.
    """
    half = x.shape[-1] // 2
    numbers = np if isinstance(positions, np.ndarray) else jnp
    frequencies = base ** (-np.arange(half, dtype=np.float32) / np.float32(half))
    angles = positions[..., None, None].astype(np.float32) * frequencies  # [..., N, 1, d/2]
    sin, cos = numbers.sin(angles), numbers.cos(angles)
    first, second = jax.lax.split(x.astype(jnp.float32), (half, half), axis=x.ndim - 1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)

"""Masked dot-product attention (arXiv 1706.03762, eq. 1) and the multi-head layer on it."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from swin_jax.nn.materialization import with_materialized_gradient
from swin_jax.nn.positions import rotate
from swin_jax.nn.products import batched_matmul, flat_dot_general
from swin_jax.nn.rng import child
from swin_jax.nn.types import Dense

_recorder: contextvars.ContextVar[list[Array] | None] = contextvars.ContextVar("attention_recorder", default=None)


@contextlib.contextmanager
def recorded_attention() -> Iterator[list[Array]]:
    """Yield a list to which every attention computed inside, in order and outside of jit, adds its probabilities
    `[..., heads, Q, K]`: what a visualisation draws."""
    maps: list[Array] = []
    token = _recorder.set(maps)
    try:
        yield maps
    finally:
        _recorder.reset(token)


def is_recording() -> bool:
    """Return whether `recorded_attention` is on."""
    return _recorder.get() is not None


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    bias: Array | None = None,
    mask: Array | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    rngs: nnx.Rngs | None = None,
) -> Array:
    """Return softmax(scale · query keyᵀ + bias) value, over the keys that `mask` allows.

    Args:
        query: `[..., Q, heads, head_dim]`.
        key, value: `[..., K, heads, head_dim]`; value's last axis may differ.
        bias: added to the scores, broadcastable to `[..., heads, Q, K]`; -inf masks as False does.
        mask: boolean, True = attend, broadcastable to `[..., heads, Q, K]`. A row with nothing to attend to gives
            zeros, and zero gradients.
        scale: of the scores; head_dim ** -0.5 if None.
        dropout_rate: of the attention probabilities; acts only if `rngs` is given.

    Returns `[..., Q, heads, value's last axis]` in value's dtype. Scores and softmax are in float32.
    Raises ValueError for shapes that do not fit and TypeError for a mask that is not boolean.
    """
    _check(query, key, value, bias, mask)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    # Heads first, in so many words: left to find the heads among the other axes, XLA for CPU multiplies strided arrays,
    # at half the pace or less for windows.
    query, key, value = (jnp.swapaxes(part, -3, -2) for part in (query * scale, key, value))
    scores = batched_matmul(query, key.mT, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    # A softmax that survives a row of -inf: its maximum is taken as 0 and its sum as 1, so probabilities and gradients
    # are 0 there, without a second pass over the scores.
    highest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    unnormalized = jnp.exp(scores - jnp.where(jnp.isneginf(highest), 0.0, highest))
    total = unnormalized.sum(axis=-1, keepdims=True)
    probabilities = (unnormalized / jnp.where(total == 0.0, 1.0, total)).astype(value.dtype)
    if (maps := _recorder.get()) is not None:
        maps.append(probabilities)
    if rngs is not None and dropout_rate > 0.0:
        keep = jax.random.bernoulli(rngs.dropout(), 1.0 - dropout_rate, probabilities.shape)
        probabilities = jnp.where(keep, probabilities / (1.0 - dropout_rate), 0.0)
    return jnp.swapaxes(batched_matmul(probabilities, value), -3, -2)


def _check(query: Array, key: Array, value: Array, bias: Array | None, mask: Array | None) -> None:
    shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
    if query.ndim < 3 or query.shape[-2:] != key.shape[-2:] or key.shape[:-1] != value.shape[:-1]:
        raise ValueError(f"attention takes [..., Q, heads, head_dim] and twice [..., K, heads, head_dim], got {shapes}")
    if query.shape[:-3] != key.shape[:-3]:
        raise ValueError(f"query and key differ in their batch axes: {shapes}")
    scores = (*query.shape[:-3], query.shape[-2], query.shape[-3], key.shape[-3])
    for name, array in (("bias", bias), ("mask", mask)):
        if array is not None and not _broadcasts(array.shape, scores):
            raise ValueError(f"{name} of shape {array.shape} does not broadcast to the scores' {scores}")
    if mask is not None and mask.dtype != jnp.bool_:
        raise TypeError(f"mask must be boolean (True = attend), got {mask.dtype}; additive terms go into bias=")


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    return len(shape) <= len(target) and all(s in (1, t) for s, t in zip(shape[::-1], target[::-1], strict=False))


def unstack_projections(projected: Array) -> list[Array]:
    """Return `[..., n, heads, head_dim]` as n arrays `[..., heads, head_dim]`.

    By a split, whose gradient is one concatenation, written once: that of indexing is a sum of n arrays padded with
    zeros.
    """
    parts = jax.lax.split(with_materialized_gradient(projected), (1,) * projected.shape[-3], axis=projected.ndim - 3)
    return [part.squeeze(-3) for part in parts]


class KeysValues(NamedTuple):
    """The projected keys and values of a sequence, each `[B, S, heads, head_dim]`: what a decoder caches."""

    key: Array
    value: Array


class MultiHeadAttention(nnx.Module):
    """Multi-head self- and cross-attention (arXiv 1706.03762, section 3.2.2).

    Query, key and value share one kernel `[C, 3, heads, head_dim]`, so self-attention projects in one matrix product;
    cross-attention uses its query part on `x` and its key and value parts on `context`. With `rotary`, self-attention
    turns queries and keys by their positions (see `embed.rotate`). `core` is `dot_product_attention` or another one of
    `implementations.py`; decoding with a cache is always by the former.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        dropout_rate: float = 0.0,
        rotary: bool = False,
        core: Callable[..., Array] = dot_product_attention,
        dense: Dense = nnx.LinearGeneral,
        rngs: nnx.Rngs,
    ):
        if embed_dim % num_heads:
            raise ValueError(f"{embed_dim=} must be divisible by {num_heads=}")
        head_dim = embed_dim // num_heads
        if rotary and head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, not {embed_dim=} / {num_heads=}")
        self.dropout_rate, self.rotary, self.core = dropout_rate, rotary, core
        self.qkv = dense(embed_dim, (3, num_heads, head_dim), use_bias=qkv_bias, rngs=child(rngs, "qkv"))
        self.proj = dense(embed_dim, embed_dim, rngs=child(rngs, "proj"))

    def __call__(
        self,
        x: Array,
        *,
        context: Array | KeysValues | None = None,
        mask: Array | None = None,
        bias: Array | None = None,
        positions: Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Array:
        """Attend from `x` `[B, N, C]` to itself, or to `context` `[B, S, C]`; returns `[B, N, C]`.

        `mask` (boolean, True = attend) and `bias` (additive) broadcast to `[B, heads, N, N or S]`. `context` may have
        been projected before, by `keys_values`. `positions` `[N]` or `[B, N]` are for rotary attention, 0, 1, ... if
        not given.
        """
        if context is None:
            query, (key, value) = self._project_self(x, positions)
        else:
            query = self._project(x, slice(0, 1))[..., 0, :, :]
            key, value = context if isinstance(context, KeysValues) else self.keys_values(context)
        attended = self.core(query, key, value, bias=bias, mask=mask, dropout_rate=self.dropout_rate, rngs=rngs)
        return self.proj(attended.reshape(x.shape))

    def extend(
        self, x: Array, cache: KeysValues, index: Array, *, mask: Array, positions: Array | None = None
    ) -> tuple[Array, KeysValues]:
        """Attend from the new tokens `x` `[B, N, C]` to those in the cache and to themselves, causally by `mask`.

        The new keys and values are written to the cache from place `index` on; `mask` broadcasts to
        `[B, heads, N, S]`, S the length of the cache. Returns the outcome `[B, N, C]` and the new cache.
        """
        query, new = self._project_self(x, positions)
        cache = KeysValues(
            *(jax.lax.dynamic_update_slice_in_dim(old, part.astype(old.dtype), index, axis=1)
              for old, part in zip(cache, new, strict=True))
        )  # fmt: skip
        attended = dot_product_attention(query, cache.key, cache.value, mask=mask)
        return self.proj(attended.reshape(x.shape)), cache

    def keys_values(self, context: Array) -> KeysValues:
        """Project `context` `[B, S, C]` once, for several calls."""
        return KeysValues(*unstack_projections(self._project(context, slice(1, 3))))

    def _project_self(self, x: Array, positions: Array | None) -> tuple[Array, KeysValues]:
        query, key, value = unstack_projections(self.qkv(x))  # each [B, N, heads, head_dim]
        if self.rotary:
            positions = np.arange(x.shape[-2]) if positions is None else positions
            query, key = rotate(query, positions), rotate(key, positions)
        return query, KeysValues(key, value)

    def _project(self, x: Array, part: slice) -> Array:
        """Apply some of the three projections: `[B, N, C]` → `[B, N, parts, heads, head_dim]`."""
        x, kernel = nnx.nn.dtypes.promote_dtype((x, self.qkv.kernel[...]), dtype=self.qkv.dtype)
        out = flat_dot_general(x, kernel[:, part])
        return out if self.qkv.bias is None else out + self.qkv.bias[...][part].astype(out.dtype)

"""The swap contract: what a factory is called with, and what the layer it makes must do.

A model takes factories (`attention=`, `mlp=`, `norm=`, `block=`): classes or partials, never instances. They are called
with keyword arguments exactly as written in the `...Factory` protocols below; the layers are called as written in the
others. Shapes: `[B, N, C]` tokens, `[B*nW, M, C]` windows of M tokens, `[B, H, W, C]` maps. `rngs` at call time is
None (deterministic) or holds a `dropout` stream.
"""

from collections.abc import Callable
from typing import Any, Protocol

from flax import nnx
from jax import Array

Dense = Callable[..., nnx.Module]
"""`dense(in_features, out_features, *, use_bias=True, rngs)`: a linear layer in the model's precision and init."""


class Norm(Protocol):
    def __call__(self, x: Array) -> Array: ...


class NormFactory(Protocol):
    """`flax.nnx.LayerNorm` and `flax.nnx.RMSNorm` are two."""

    def __call__(self, num_features: int, *, epsilon: float, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> Norm: ...


class Mlp(Protocol):
    def __call__(self, x: Array, *, rngs: nnx.Rngs | None = None) -> Array: ...


class MlpFactory(Protocol):
    def __call__(
        self, embed_dim: int, hidden_dim: int, *, dropout_rate: float, dense: Dense, rngs: nnx.Rngs
    ) -> Mlp: ...


class Attention(Protocol):
    """Self-attention over x, or cross-attention from x to context; mask and bias broadcast to `[B, heads, Q, K]`.

    Rotary attention is also given `positions`, and one that decodes with a cache has `extend` and `keys_values`, as
    `attention.MultiHeadAttention` has them.
    """

    def __call__(
        self,
        x: Array,
        *,
        context: Array | None = None,
        mask: Array | None = None,
        bias: Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Array: ...


class AttentionFactory(Protocol):
    def __call__(
        self, embed_dim: int, num_heads: int, *, qkv_bias: bool, dropout_rate: float, dense: Dense, rngs: nnx.Rngs
    ) -> Attention: ...


class WindowAttention(Protocol):
    """Attention inside each window. `window_size` is that of this call, at most the one given to the factory (a small
    map shrinks it); `mask` is None or `[nW, 1, M, M]`, one for each window of an image.

    One that has `attend_map`, as `kernels.FusedWindowAttention`, is given the map instead, not cut into windows."""

    def __call__(
        self, windows: Array, *, window_size: tuple[int, int], mask: Array | None = None, rngs: nnx.Rngs | None = None
    ) -> Array: ...


class WindowAttentionFactory(Protocol):
    def __call__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        window_size: tuple[int, int],
        qkv_bias: bool,
        dropout_rate: float,
        dense: Dense,
        rngs: nnx.Rngs,
    ) -> WindowAttention: ...


class Block(Protocol):
    """A ViT block maps `[B, N, C]` and may take `mask`; a Swin block maps `[B, H, W, C]`."""

    def __call__(self, x: Array, *, rngs: nnx.Rngs | None = None) -> Array: ...

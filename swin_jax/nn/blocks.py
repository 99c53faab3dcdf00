"""Residual blocks and their parts: the MLP, stochastic depth, LayerScale, and the pre-norm encoder block."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from swin_jax.nn.attention import MultiHeadAttention
from swin_jax.nn.rng import child
from swin_jax.nn.types import AttentionFactory, Dense, MlpFactory, Norm

LayerNorm = partial(nnx.LayerNorm, use_fast_variance=False)
"""LayerNorm with the two-pass variance: E[x²] - E[x]² loses digits where the mean is large."""

gelu = partial(jax.nn.gelu, approximate=False)
"""The exact GELU, with erf (JAX's default is the tanh approximation)."""


class Mlp(nnx.Module):
    """Two linear layers around an activation; dropout after each."""

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        *,
        dropout_rate: float = 0.0,
        activation: Callable[[Array], Array] = gelu,
        dense: Dense,
        rngs: nnx.Rngs,
    ):
        self.fc1 = dense(embed_dim, hidden_dim, rngs=child(rngs, "fc1"))
        self.fc2 = dense(hidden_dim, embed_dim, rngs=child(rngs, "fc2"))
        self.activation = activation
        self.dropout = nnx.Dropout(dropout_rate)

    def __call__(self, x: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        x = self.activation(self.fc1(x))
        x = self.dropout(x, deterministic=rngs is None, rngs=child(rngs, "hidden"))
        return self.dropout(self.fc2(x), deterministic=rngs is None, rngs=child(rngs, "out"))


class DropPath(nnx.Module):
    """Stochastic depth (arXiv 1603.09382): drops a residual branch for whole examples, scaling the kept ones up."""

    def __init__(self, rate: float):
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop path {rate=} must be in [0, 1)")
        self.rate = rate

    def __call__(self, x: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        if rngs is None or self.rate == 0.0:
            return x
        keep = jax.random.bernoulli(rngs.dropout(), 1.0 - self.rate, (x.shape[0],) + (1,) * (x.ndim - 1))
        return jnp.where(keep, x / (1.0 - self.rate), 0.0).astype(x.dtype)


class LayerScale(nnx.Module):
    """A learned factor for each channel of a residual branch (CaiT, arXiv 2103.17239, eq. 4)."""

    def __init__(self, embed_dim: int, *, init_value: float, dtype: DTypeLike, param_dtype: DTypeLike):
        self.dtype = dtype
        self.gamma = nnx.Param(jnp.full((embed_dim,), init_value, param_dtype))

    def __call__(self, x: Array) -> Array:
        return x * self.gamma[...].astype(self.dtype)


@jax.checkpoint
def rematerialized(block: nnx.Module, x: Array, rngs: nnx.Rngs | None) -> Array:
    """Call the block so that the backward pass computes its inside anew instead of keeping it.

    A module is a pytree, so jax.checkpoint serves; nnx.remat would write back to parameters of an outer trace.
    """
    return block(x, rngs=rngs)


class EncoderBlock(nnx.Module):
    """Pre-norm Transformer encoder block (ViT, arXiv 2010.11929, eq. 2 and 3), with LayerScale if `layer_scale` is set.

    `norm(rngs=)` and `dense` carry the model's precision; see `types.py` for the factories.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale: Callable[[], nnx.Module] | None = None,
        attention: AttentionFactory = MultiHeadAttention,
        mlp: MlpFactory = Mlp,
        norm: Callable[..., Norm],
        dense: Dense,
        rngs: nnx.Rngs,
    ):
        self.norm1 = norm(embed_dim, rngs=child(rngs, "norm1"))
        self.attention = attention(
            embed_dim,
            num_heads,
            qkv_bias=qkv_bias,
            dropout_rate=attention_dropout_rate,
            dense=dense,
            rngs=child(rngs, "attention"),
        )
        self.norm2 = norm(embed_dim, rngs=child(rngs, "norm2"))
        hidden_dim = int(embed_dim * mlp_ratio)
        self.mlp = mlp(embed_dim, hidden_dim, dropout_rate=dropout_rate, dense=dense, rngs=child(rngs, "mlp"))
        self.layer_scale1 = layer_scale() if layer_scale else None
        self.layer_scale2 = layer_scale() if layer_scale else None
        self.dropout = nnx.Dropout(dropout_rate)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Array, *, mask: Array | None = None, rngs: nnx.Rngs | None = None) -> Array:
        """Map `[B, N, C]` to `[B, N, C]`; `mask` broadcasts to `[B, heads, N, N]`."""
        y = self.attention(self.norm1(x), mask=mask, rngs=child(rngs, "attention"))
        y = self.dropout(y, deterministic=rngs is None, rngs=child(rngs, "dropout"))
        y = self.layer_scale1(y) if self.layer_scale1 else y
        x = x + self.drop_path(y, rngs=child(rngs, "drop_path1"))
        y = self.mlp(self.norm2(x), rngs=child(rngs, "mlp"))
        y = self.layer_scale2(y) if self.layer_scale2 else y
        return x + self.drop_path(y, rngs=child(rngs, "drop_path2"))

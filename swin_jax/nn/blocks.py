"""Residual blocks and their parts: the MLP, stochastic depth, LayerScale, encoder and decoder block."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from swin_jax.nn.activations import gelu
from swin_jax.nn.attention import KeysValues, MultiHeadAttention
from swin_jax.nn.materialization import with_materialized_gradient
from swin_jax.nn.rng import child
from swin_jax.nn.types import AttentionFactory, Dense, MlpFactory, Norm


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
        is_known = not isinstance(self.rate, jax.Array)  # in a scan over layers it is an array
        if rngs is None or (is_known and self.rate == 0.0):
            return x
        keep = jax.random.bernoulli(rngs.dropout(), 1.0 - self.rate, (x.shape[0],) + (1,) * (x.ndim - 1))
        return jnp.where(keep, x / jnp.asarray(1.0 - self.rate, x.dtype), 0.0).astype(x.dtype)


def add_residual(x: Array, branch: Array) -> Array:
    """Return the residual stream `x` with the outcome of a branch added; for its gradient see `materialization.py`."""
    return with_materialized_gradient(x + branch)


class LayerScale(nnx.Module):
    """A learned factor for each channel of a residual branch (CaiT, arXiv 2103.17239, eq. 4)."""

    def __init__(self, embed_dim: int, *, init_value: float, dtype: DTypeLike, param_dtype: DTypeLike):
        self.dtype = dtype
        self.gamma = nnx.Param(jnp.full((embed_dim,), init_value, param_dtype))

    def __call__(self, x: Array) -> Array:
        return x * self.gamma[...].astype(self.dtype)


@jax.checkpoint
def rematerialized(block: nnx.Module, x: Array, rngs: nnx.Rngs | None, **inputs: Any) -> Any:
    """Call the block so that the backward pass computes its inside anew instead of keeping it.

    A module is a pytree, so jax.checkpoint serves; nnx.remat would write back to parameters of an outer trace.
    """
    return block(x, rngs=rngs, **inputs)


class EncoderBlock(nnx.Module):
    """Transformer encoder block: pre-norm (ViT, arXiv 2010.11929, eq. 2 and 3) or `post_norm` (arXiv 1706.03762,
    section 3.1), with LayerScale if `layer_scale` is set.

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
        post_norm: bool = False,
        layer_scale: Callable[[], nnx.Module] | None = None,
        attention: AttentionFactory = MultiHeadAttention,
        mlp: MlpFactory = Mlp,
        norm: Callable[..., Norm],
        dense: Dense,
        rngs: nnx.Rngs,
    ):
        self.post_norm = post_norm
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

    def __call__(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        positions: Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Array:
        """Map `[B, N, C]` to `[B, N, C]`; `mask` broadcasts to `[B, heads, N, N]`, `positions` are for rotary ones."""
        given = {} if positions is None else {"positions": positions}
        y = x if self.post_norm else self.norm1(x)
        y = self.attention(y, mask=mask, rngs=child(rngs, "attention"), **given)
        y = self.dropout(y, deterministic=rngs is None, rngs=child(rngs, "dropout"))
        y = self.layer_scale1(y) if self.layer_scale1 else y
        x = add_residual(x, self.drop_path(y, rngs=child(rngs, "drop_path1")))
        x = self.norm1(x) if self.post_norm else x
        y = self.mlp(x if self.post_norm else self.norm2(x), rngs=child(rngs, "mlp"))
        y = self.layer_scale2(y) if self.layer_scale2 else y
        x = add_residual(x, self.drop_path(y, rngs=child(rngs, "drop_path2")))
        return self.norm2(x) if self.post_norm else x


class DecoderBlock(nnx.Module):
    """Transformer decoder block (arXiv 1706.03762, section 3.1): self-attention, cross-attention, MLP.

    Post-norm as the paper, or pre-norm as GPT-2 has it; without `cross_attention`, the block of a language model.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        cross_attention: bool = False,
        post_norm: bool = False,
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        attention: AttentionFactory = MultiHeadAttention,
        mlp: MlpFactory = Mlp,
        norm: Callable[..., Norm],
        dense: Dense,
        rngs: nnx.Rngs,
    ):
        def make_attention(name: str, factory: AttentionFactory) -> nnx.Module:
            rate = attention_dropout_rate
            return factory(
                embed_dim, num_heads, qkv_bias=qkv_bias, dropout_rate=rate, dense=dense, rngs=child(rngs, name)
            )

        self.post_norm = post_norm
        self.norm1 = norm(embed_dim, rngs=child(rngs, "norm1"))
        self.attention = make_attention("attention", attention)
        self.norm2 = norm(embed_dim, rngs=child(rngs, "norm2")) if cross_attention else None
        self.cross_attention = make_attention("cross_attention", MultiHeadAttention) if cross_attention else None
        self.norm3 = norm(embed_dim, rngs=child(rngs, "norm3"))
        hidden_dim = int(embed_dim * mlp_ratio)
        self.mlp = mlp(embed_dim, hidden_dim, dropout_rate=dropout_rate, dense=dense, rngs=child(rngs, "mlp"))
        self.dropout = nnx.Dropout(dropout_rate)

    def __call__(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        positions: Array | None = None,
        context: Array | KeysValues | None = None,
        context_mask: Array | None = None,
        cache: KeysValues | None = None,
        index: Array | int = 0,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Array, KeysValues | None]:
        """Map the target `[B, N, C]` to `[B, N, C]`; the second value is the cache, brought up to date.

        Args:
            mask: of the self-attention, `[B, heads, N, N]`, or `[B, heads, N, S]` with a cache of length S.
            context: what the cross-attention sees: the encoder's output `[B, S, C]`, or its keys and values.
            context_mask: `[B, heads, N, S]`.
            cache: earlier tokens; the new ones are at `index` and on. It takes no `rngs`.
        """
        given = {} if positions is None else {"positions": positions}

        def residual(x: Array, norm: Norm, branch: Callable[[Array], Array], name: str) -> Array:
            y = branch(x if self.post_norm else norm(x))
            y = add_residual(x, self.dropout(y, deterministic=rngs is None, rngs=child(rngs, "dropout", name)))
            return norm(y) if self.post_norm else y

        def attend(y: Array) -> Array:
            nonlocal cache
            if cache is None:
                return self.attention(y, mask=mask, rngs=child(rngs, "attention"), **given)
            y, cache = self.attention.extend(y, cache, index, mask=mask, **given)
            return y

        def cross(y: Array) -> Array:
            return self.cross_attention(y, context=context, mask=context_mask, rngs=child(rngs, "cross_attention"))

        x = residual(x, self.norm1, attend, "attention")
        x = residual(x, self.norm2, cross, "cross_attention") if self.cross_attention else x
        # The MLP drops out by itself.
        y = self.mlp(x if self.post_norm else self.norm3(x), rngs=child(rngs, "mlp"))
        x = add_residual(x, y)
        return (self.norm3(x) if self.post_norm else x), cache

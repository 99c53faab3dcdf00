"""What a decoder keeps from token to token."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from swin_jax.nn.attention import KeysValues


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodingCache:
    """The keys and values of all layers of a decoder, for one batch of sequences; a pytree, to carry through jit.

    Rows may begin at different places: shorter prompts are padded on the left, and `start` says where they begin.
    """

    layers: tuple[KeysValues, ...]  # of the tokens so far, each [B, S, heads, head_dim]
    index: Array  # int32 [], places filled
    start: Array  # int32 [B], first place that is no padding
    context: tuple[KeysValues, ...] | None = None  # of the encoder's output, for cross-attention
    context_mask: Array | None = None  # [B, 1, 1, source length]

    @classmethod
    def empty(
        cls,
        batch_size: int,
        max_length: int,
        *,
        depth: int,
        num_heads: int,
        head_dim: int,
        dtype: DTypeLike,
        context: tuple[KeysValues, ...] | None = None,
        context_mask: Array | None = None,
    ) -> "DecodingCache":
        """Return a cache with room for `max_length` tokens."""
        if max_length < 1:
            raise ValueError(f"a cache needs room for a token, got {max_length=}")
        empty = jnp.zeros((batch_size, max_length, num_heads, head_dim), dtype)
        return cls(
            layers=(KeysValues(empty, empty),) * depth,
            index=jnp.zeros((), jnp.int32),
            start=jnp.zeros((batch_size,), jnp.int32),
            context=context,
            context_mask=context_mask,
        )

    @property
    def max_length(self) -> int:
        return self.layers[0].key.shape[1]

    def positions(self, num_tokens: int) -> Array:
        """Return `[B, N]`, the positions of the next tokens in their sequences; 0 for padding."""
        return jnp.maximum(self.index + jnp.arange(num_tokens) - self.start[:, None], 0)

    def mask(self, num_tokens: int, *, both_ways: bool = False) -> Array:
        """Return `[B, 1, N, S]`: the next tokens see what was before them and themselves, without the padding.

        `both_ways`: each sees all N of them.
        """
        places, offsets = jnp.arange(self.max_length), jnp.arange(num_tokens)
        last_seen = self.index + (jnp.full_like(offsets, num_tokens - 1) if both_ways else offsets)
        seen = places <= last_seen[:, None]  # [N, S]
        return (seen & (places >= self.start[:, None, None]))[:, None]

    def take(self, rows: Array) -> "DecodingCache":
        """Return the cache of the batch `rows` of this one, which may repeat: how beams follow their best parents."""
        return jax.tree.map(lambda leaf: leaf[rows] if leaf.ndim else leaf, self)

"""From images and text to tokens: the patch convolution, Swin's patch merging, token embeddings, positions of both."""

from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from swin_jax.nn.initializers import InitScheme
from swin_jax.nn.interpolation import resize_grid
from swin_jax.nn.positions import sinusoidal_positions
from swin_jax.nn.products import flat_dot_general
from swin_jax.nn.rng import child
from swin_jax.nn.types import Dense, Norm

POSITIONS = ("learned", "sinusoidal", "sinusoidal_halves", "rotary")


class PatchEmbed(nnx.Module):
    """Cut the image into patches and project each to `embed_dim`: a convolution whose stride is its size."""

    def __init__(
        self,
        in_channels: int,
        embed_dim: int,
        *,
        patch_size: tuple[int, int],
        norm: Callable[..., Norm] | None = None,
        scheme: InitScheme,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.patch_size = patch_size
        self.proj = nnx.Conv(
            in_channels,
            embed_dim,
            patch_size,
            patch_size,
            padding="VALID",
            kernel_init=scheme.conv,
            bias_init=scheme.conv_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=child(rngs, "proj"),
        )
        self.norm = norm(embed_dim, rngs=child(rngs, "norm")) if norm else None

    def __call__(self, images: Array) -> Array:
        """Map `[B, H, W, in_channels]` to `[B, H/p, W/p, C]`; zeros complete the patches at the bottom and right."""
        rows, columns = (-side % patch for side, patch in zip(images.shape[1:3], self.patch_size, strict=True))
        if rows or columns:
            images = jnp.pad(images, ((0, 0), (0, rows), (0, columns), (0, 0)))
        x = self.proj(images)
        return self.norm(x) if self.norm else x


class PatchMerging(nnx.Module):
    """Halve a map and double its channels (Swin, arXiv 2103.14030, section 3.1): concatenate 2 × 2 neighbours,
    LayerNorm, linear without bias. An odd side is filled up with zeros.

    The neighbours stand in the order of the published weights: (0,0), (1,0), (0,1), (1,1) as (row, column).
    """

    def __init__(self, embed_dim: int, *, norm: Callable[..., Norm], dense: Dense, rngs: nnx.Rngs):
        self.norm = norm(4 * embed_dim, rngs=child(rngs, "norm"))
        self.reduction = dense(4 * embed_dim, 2 * embed_dim, use_bias=False, rngs=child(rngs, "reduction"))

    def __call__(self, x: Array) -> Array:
        """Map `[B, H, W, C]` to `[B, ceil(H/2), ceil(W/2), 2C]`."""
        batch, height, width, channels = x.shape
        if height % 2 or width % 2:
            x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        x = x.reshape(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, x.shape[1], x.shape[3], 4 * channels)
        return self.reduction(self.norm(x))


def resize_position_embedding(
    embedding: Array, old_size: tuple[int, int], new_size: tuple[int, int], *, antialias: bool = True
) -> Array:
    """Resize learned positions `[1, prefix + H·W, C]` to another grid, bicubically; prefix tokens stay as they are.

    timm, whose `dynamic_img_size` this equals, resizes with antialias; HF and the official DeiT without.
    """
    prefix = embedding.shape[1] - old_size[0] * old_size[1]
    if prefix < 0:
        raise ValueError(f"positions of shape {embedding.shape} are too few for a grid of {old_size}")
    if tuple(old_size) == tuple(new_size):
        return embedding
    grid = resize_grid(embedding[0, prefix:].reshape(*old_size, -1), new_size, antialias=antialias)
    grid = grid.reshape(1, new_size[0] * new_size[1], -1).astype(embedding.dtype)
    return jnp.concatenate([embedding[:, :prefix], grid], axis=1)


@lru_cache
def sincos_position_embedding_2d(size: tuple[int, int], embed_dim: int, temperature: float = 10_000.0) -> np.ndarray:
    """Return `[1, H·W, C]` fixed positions: sin and cos of x, then of y, at C/4 frequencies (MoCo v3, arXiv 2104.02057;
    as in arXiv 2205.01580)."""
    if embed_dim % 4 or embed_dim < 8:
        raise ValueError(f"2-D sin-cos positions need {embed_dim=} divisible by 4 and at least 8")
    frequencies = temperature ** -(np.arange(embed_dim // 4) / (embed_dim // 4 - 1))
    y, x = np.mgrid[: size[0], : size[1]].reshape(2, -1, 1) * frequencies
    embedding = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)[None].astype(np.float32)
    embedding.flags.writeable = False  # cached: shared by all callers
    return embedding


class TokenEmbed(nnx.Module):
    """Embed token ids and add their positions; `logits` is the way back with the same table (arXiv 1706.03762,
    section 3.4 and 3.5).

    Args:
        positions: "learned" (a table of `max_length`), "sinusoidal", "sinusoidal_halves" (see `sinusoidal_positions`),
            or "rotary" (nothing is added here: attention turns by them).
        scale: multiply the embeddings by sqrt(embed_dim), as the paper does.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        *,
        positions: str,
        max_length: int,
        scale: bool = False,
        dropout_rate: float = 0.0,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if positions not in POSITIONS:
            raise ValueError(f"{positions=} is none of {', '.join(map(repr, POSITIONS))}")
        if min(vocab_size, max_length) < 1:
            raise ValueError(f"{vocab_size=} and {max_length=} must be at least 1")
        self.vocab_size, self.max_length, self.positions, self.dtype = vocab_size, max_length, positions, dtype
        self.scale = embed_dim**0.5 if scale else 1.0
        init = nnx.initializers.normal(embed_dim**-0.5 if scale else 0.02)
        self.embedding = nnx.Param(init(child(rngs, "embedding").params(), (vocab_size, embed_dim), param_dtype))
        has_table = positions == "learned"
        key = child(rngs, "pos_embed").params()
        self.pos_embed = (
            nnx.Param(0.02 * jax.random.normal(key, (max_length, embed_dim), param_dtype)) if has_table else None
        )
        self.dropout = nnx.Dropout(dropout_rate)

    def __call__(self, tokens: Array, positions: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        """Map ids `[B, N]` at `positions` `[N]` or `[B, N]`, all below `max_length`, to `[B, N, C]`.

        Raises ValueError for an id out of range; inside jit, where none can be raised, it embeds as NaN.
        """
        if not isinstance(tokens, jax.core.Tracer) and tokens.size:
            ids = np.asarray(tokens)  # inside jit an operation of JAX on constants would be traced
            lowest, highest = int(ids.min()), int(ids.max())
            if lowest < 0 or highest >= self.vocab_size:
                wrong = lowest if lowest < 0 else highest
                raise ValueError(f"token id {wrong} is out of range for vocab_size={self.vocab_size}")
        table = self.embedding[...].astype(self.dtype)
        x = table.at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False) * self.scale
        if self.positions == "learned":
            x = x + self.pos_embed[...].astype(self.dtype)[positions]
        elif self.positions != "rotary":
            interleaved = self.positions == "sinusoidal"
            fixed = sinusoidal_positions(self.max_length, x.shape[-1], interleaved=interleaved)
            x = x + jnp.asarray(fixed, self.dtype)[positions]
        return self.dropout(x, deterministic=rngs is None, rngs=rngs)

    def logits(self, x: Array) -> Array:
        """Map `[B, N, C]` to float32 `[B, N, vocab_size]` by the products with all embeddings."""
        table = self.embedding[...].astype(x.dtype).T
        return flat_dot_general(x, table, preferred_element_type=jnp.float32)

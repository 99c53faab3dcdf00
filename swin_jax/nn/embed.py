"""Patches and positions: the patch convolution, Swin's patch merging, learned and sin-cos position embeddings."""

from collections.abc import Callable
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from swin_jax.nn.initializers import InitScheme
from swin_jax.nn.interpolation import resize_grid
from swin_jax.nn.rng import child
from swin_jax.nn.types import Dense, Norm


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

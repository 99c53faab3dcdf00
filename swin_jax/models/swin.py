"""Swin Transformer v1 (arXiv 2103.14030): stages of shifted-window blocks at 1/4, 1/8, 1/16, 1/32 of the image."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from swin_jax.kernels.fused_window_attention import FusedWindowAttention
from swin_jax.nn.blocks import DropPath, Mlp, add_residual
from swin_jax.nn.embed import PatchEmbed, PatchMerging
from swin_jax.nn.implementations import PLATFORMS, choose_attention, cudnn_window_attention
from swin_jax.nn.initializers import dense_factory, init_scheme
from swin_jax.nn.layers import run_layers
from swin_jax.nn.normalization import LayerNorm
from swin_jax.nn.rng import child
from swin_jax.nn.sizes import as_pair
from swin_jax.nn.types import Dense, MlpFactory, NormFactory, WindowAttentionFactory
from swin_jax.nn.windows import WINDOW_PADDINGS, WindowAttention, shifted_window_attention

WINDOW_ATTENTION = {"cudnn": partial(WindowAttention, core=cudnn_window_attention), "pallas": FusedWindowAttention}
"""What takes the place of `WindowAttention` in `choose_attention`."""
WINDOW_PLATFORMS = {**PLATFORMS, "pallas": ("gpu",)}


class SwinBlock(nnx.Module):
    """(Shifted-)window attention and MLP, each pre-norm and residual (arXiv 2103.14030, eq. 3)."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        window_size: tuple[int, int],
        shifted: bool,
        window_padding: str,
        mlp_ratio: float,
        qkv_bias: bool,
        dropout_rate: float,
        attention_dropout_rate: float,
        drop_path_rate: float,
        attention: WindowAttentionFactory,
        mlp: MlpFactory,
        norm: NormFactory,
        dense: Dense,
        rngs: nnx.Rngs,
    ):
        self.window_size, self.shifted, self.window_padding = window_size, shifted, window_padding
        self.norm1 = norm(embed_dim, rngs=child(rngs, "norm1"))
        self.attention = attention(
            embed_dim,
            num_heads,
            window_size=window_size,
            qkv_bias=qkv_bias,
            dropout_rate=attention_dropout_rate,
            dense=dense,
            rngs=child(rngs, "attention"),
        )
        self.norm2 = norm(embed_dim, rngs=child(rngs, "norm2"))
        hidden_dim = int(embed_dim * mlp_ratio)
        self.mlp = mlp(embed_dim, hidden_dim, dropout_rate=dropout_rate, dense=dense, rngs=child(rngs, "mlp"))
        self.dropout = nnx.Dropout(dropout_rate)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        """Map `[B, H, W, C]` to `[B, H, W, C]`."""
        y = shifted_window_attention(
            self.norm1(x),
            self.attention,
            window_size=self.window_size,
            shifted=self.shifted,
            window_padding=self.window_padding,
            rngs=child(rngs, "attention"),
        )
        y = self.dropout(y, deterministic=rngs is None, rngs=child(rngs, "dropout"))
        x = add_residual(x, self.drop_path(y, rngs=child(rngs, "drop_path1")))
        y = self.mlp(self.norm2(x), rngs=child(rngs, "mlp"))
        return add_residual(x, self.drop_path(y, rngs=child(rngs, "drop_path2")))


class SwinStage(nnx.Module):
    """Blocks at one resolution, every second one shifted, behind the patch merging that leads there."""

    SCANNED: ClassVar = {"blocks": 2}  # what `scan` runs, and after how many layers they repeat

    def __init__(self, downsample: nnx.Module | None, blocks: Sequence[nnx.Module], *, remat: bool, scan: bool):
        self.downsample = downsample
        self.blocks = nnx.List(blocks)
        self.remat, self.scan = remat, scan

    def __call__(self, x: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        x = self.downsample(x) if self.downsample else x
        period = self.SCANNED["blocks"]
        return run_layers(self.blocks, x, name="blocks", rngs=rngs, remat=self.remat, scan=self.scan, period=period)


class SwinTransformer(nnx.Module):
    """Swin Transformer v1 for classification and, through `features`, as a backbone.

    Takes images of any size at call time; `image_size` fixes the windows: on a stage whose map is smaller than the
    window, the window and its bias table shrink to the map, per side, as published.

    Args:
        image_size: (height, width) or a side, divisible by `patch_size`.
        embed_dim, depths, num_heads: channels of the first stage; blocks and heads of each stage.
        window_size: side or (height, width) in tokens.
        window_padding: what happens where windows do not divide the map, see `shifted_window_attention`.
        drop_path_rate: of the last block; it grows linearly from 0.
        num_classes: 0 for no head; the model then returns the pooled features.
        init: see `init_scheme`. dtype: of the computation. param_dtype: of the parameters.
        remat: recompute each block in the backward pass: less memory, about a third more time.
        scan: run the blocks of a stage as a `lax.scan` over pairs: compiles sooner, see docs/performance.md.
        attention_implementation: "xla", "cudnn", "pallas" (our kernel) or "auto", see docs/performance.md.
        block, attention, mlp, norm: factories, see `swin_jax/nn/types.py`.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 4,
        in_channels: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int | tuple[int, int] = 7,
        window_padding: str = "roll_pad",
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_eps: float = 1e-5,
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        init: str = "trunc_normal",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        scan: bool = False,
        attention_implementation: str = "auto",
        block: Any = SwinBlock,
        attention: WindowAttentionFactory = WindowAttention,
        mlp: MlpFactory = Mlp,
        norm: NormFactory = LayerNorm,
        rngs: nnx.Rngs,
    ):
        image_size, patch_size = as_pair(image_size, "image_size"), as_pair(patch_size, "patch_size")
        window_size = as_pair(window_size, "window_size")
        depths, num_heads = tuple(depths), tuple(num_heads)
        if len(depths) != len(num_heads) or not depths:
            raise ValueError(f"{depths=} and {num_heads=} must name the same number of stages")
        if any(side % patch for side, patch in zip(image_size, patch_size, strict=True)):
            raise ValueError(f"{image_size=} must be divisible by {patch_size=}")
        if window_padding not in WINDOW_PADDINGS:
            raise ValueError(f"{window_padding=} is none of {WINDOW_PADDINGS}")
        attention = choose_attention(
            attention,
            attention_implementation,
            default=WindowAttention,
            others=WINDOW_ATTENTION,
            platforms=WINDOW_PLATFORMS,
            dtype=dtype,
            head_dim=embed_dim // num_heads[0],
            attention_dropout_rate=attention_dropout_rate,
        )
        scheme = init_scheme(init, conv_fan_in=in_channels * patch_size[0] * patch_size[1])
        dense = dense_factory(scheme.dense, dtype=dtype, param_dtype=param_dtype)
        norm = partial(norm, epsilon=norm_eps, dtype=dtype, param_dtype=param_dtype)

        self.num_features = embed_dim * 2 ** (len(depths) - 1)
        self.dtype = dtype
        self.patch_embed = PatchEmbed(
            in_channels,
            embed_dim,
            patch_size=patch_size,
            norm=norm,
            scheme=scheme,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=child(rngs, "patch_embed"),
        )
        drop_path_rates = iter(np.linspace(0.0, drop_path_rate, sum(depths)).tolist())
        map_size = tuple(side // patch for side, patch in zip(image_size, patch_size, strict=True))
        stages = []
        for index, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            stage_rngs, downsample = child(rngs, "stages", index), None
            if index:
                downsample = PatchMerging(embed_dim, norm=norm, dense=dense, rngs=child(stage_rngs, "downsample"))
                embed_dim *= 2
                map_size = tuple(-(-side // 2) for side in map_size)
            blocks = [
                block(
                    embed_dim,
                    heads,
                    window_size=tuple(min(sides) for sides in zip(window_size, map_size, strict=True)),
                    shifted=number % 2 == 1,
                    window_padding=window_padding,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    dropout_rate=dropout_rate,
                    attention_dropout_rate=attention_dropout_rate,
                    drop_path_rate=next(drop_path_rates),
                    attention=attention,
                    mlp=mlp,
                    norm=norm,
                    dense=dense,
                    rngs=child(stage_rngs, "blocks", number),
                )
                for number in range(depth)
            ]
            stages.append(SwinStage(downsample, blocks, remat=remat, scan=scan))
        self.stages = nnx.List(stages)
        self.norm = norm(self.num_features, rngs=child(rngs, "norm"))
        self.head = dense(self.num_features, num_classes, rngs=child(rngs, "head")) if num_classes else None
        self.dropout = nnx.Dropout(dropout_rate)

    def features(self, images: Array, *, rngs: nnx.Rngs | None = None) -> tuple[Array, ...]:
        """Return the output of every stage, `[B, H/4, W/4, C]`, `[B, H/8, W/8, 2C]`, ... (sides rounded up)."""
        x = self.patch_embed(images.astype(self.dtype))
        x = self.dropout(x, deterministic=rngs is None, rngs=child(rngs, "dropout"))
        pyramid = []
        for index, stage in enumerate(self.stages):
            x = stage(x, rngs=child(rngs, "stages", index))
            pyramid.append(x)
        return tuple(pyramid)

    def __call__(self, images: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        """Map normalised images `[B, H, W, in_channels]` to float32 logits `[B, num_classes]`."""
        x = self.norm(self.features(images, rngs=rngs)[-1])
        x = x.mean(axis=(1, 2), dtype=jnp.float32).astype(self.dtype)  # [B, C]
        return (self.head(x) if self.head else x).astype(jnp.float32)


_TINY = dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
_SMALL = dict(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24))
_BASE = dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
_LARGE = dict(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48))

PRESETS: dict[str, dict[str, Any]] = {
    "swin_tiny_patch4_window7_224": dict(**_TINY, drop_path_rate=0.2),
    "swin_small_patch4_window7_224": dict(**_SMALL, drop_path_rate=0.3),
    "swin_base_patch4_window7_224": dict(**_BASE, drop_path_rate=0.5),
    "swin_base_patch4_window12_384": dict(**_BASE, image_size=384, window_size=12, drop_path_rate=0.5),
    "swin_large_patch4_window7_224": dict(**_LARGE, drop_path_rate=0.2),
    "swin_large_patch4_window12_384": dict(**_LARGE, image_size=384, window_size=12, drop_path_rate=0.2),
    "swin_tiny_c24_patch4_window8_256": dict(
        embed_dim=96,
        depths=(2, 2, 6, 2),
        num_heads=(4, 8, 16, 32),
        image_size=256,
        window_size=8,
        drop_path_rate=0.2,
    ),
}

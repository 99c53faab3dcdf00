"""Vision Transformers: ViT (arXiv 2010.11929), with GAP (2205.01580), DeiT (2012.12877) and DeiT-III (2204.07118)."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from swin_jax.nn.activations import gelu
from swin_jax.nn.attention import MultiHeadAttention
from swin_jax.nn.blocks import EncoderBlock, LayerScale, Mlp
from swin_jax.nn.embed import PatchEmbed, resize_position_embedding, sincos_position_embedding_2d
from swin_jax.nn.implementations import MULTI_HEAD, choose_attention
from swin_jax.nn.initializers import dense_factory, init_scheme
from swin_jax.nn.layers import run_layers
from swin_jax.nn.normalization import LayerNorm
from swin_jax.nn.rng import child
from swin_jax.nn.sizes import as_pair
from swin_jax.nn.types import AttentionFactory, Dense, MlpFactory, NormFactory

_ACTIVATIONS = {"gelu": gelu, "gelu_tanh": partial(jax.nn.gelu, approximate=True)}


class AttentionPool(nnx.Module):
    """Pool tokens by one learned query, with a residual MLP behind it (MAP head, arXiv 2106.04560, section 3.2)."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        mlp: Callable[..., nnx.Module],
        norm: Callable[..., nnx.Module],
        dense: Dense,
        rngs: nnx.Rngs,
    ):
        probe_init = nnx.initializers.xavier_uniform()
        self.probe = nnx.Param(probe_init(child(rngs, "probe").params(), (1, 1, embed_dim)))
        self.attention = MultiHeadAttention(embed_dim, num_heads, dense=dense, rngs=child(rngs, "attention"))
        self.norm = norm(embed_dim, rngs=child(rngs, "norm"))
        hidden_dim = int(embed_dim * mlp_ratio)
        self.mlp = mlp(embed_dim, hidden_dim, dropout_rate=0.0, dense=dense, rngs=child(rngs, "mlp"))

    def __call__(self, x: Array) -> Array:
        """Map `[B, N, C]` to `[B, C]`."""
        probe = jnp.broadcast_to(self.probe[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        y = self.attention(probe, context=x)
        return (y + self.mlp(self.norm(y)))[:, 0]


class VisionTransformer(nnx.Module):
    """ViT for classification and, through `features`, as a backbone of one resolution.

    Takes other image sizes at call time (divisible by `patch_size`); learned positions are resized to the grid.

    Args:
        image_size: (height, width) or a side: the grid of the learned positions. Divisible by `patch_size`.
        pool: "cls" (class token), "gap" (mean of the patches) or "map" (attention pooling).
        class_token: whether there is one; None for "only if pooled by it".
        distilled: a second token and head (DeiT); the logits are the mean of both heads.
        pos_embed: "learned" or "sincos2d" (fixed). pos_embed_prefix: whether learned positions cover class and
            distillation tokens too. pos_embed_antialias: see `resize_position_embedding`.
        layer_scale_init: first value of LayerScale, None for none.
        fc_norm: the last LayerNorm after the pooling instead of before it.
        pre_logits: a layer of `embed_dim` units with tanh below the head (arXiv 2010.11929, section 3.1; big_vision's
            `rep_size=True`).
        drop_path_rate: of the last block. drop_path_schedule: "linear", growing from 0 at the first block, or
            "constant", the same for all (the official DeiT-III).
        num_classes: 0 for no head; the model then returns the pooled features.
        zero_head: start the head at zero.
        scan: run the blocks as a `lax.scan`: compiles sooner, see docs/performance.md.
        attention_implementation: "xla", "cudnn", "pallas" (JAX's) or "auto", see docs/performance.md.
        init, dtype, param_dtype, remat, block, attention, mlp, norm: as in `SwinTransformer`.
    """

    SCANNED: ClassVar = {"blocks": 1}  # what `scan` runs, and after how many layers they repeat

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_channels: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        activation: str = "gelu",
        norm_eps: float = 1e-6,
        pool: str = "cls",
        class_token: bool | None = None,
        distilled: bool = False,
        pos_embed: str = "learned",
        pos_embed_prefix: bool = True,
        pos_embed_antialias: bool = True,
        layer_scale_init: float | None = None,
        fc_norm: bool = False,
        pre_logits: bool = False,
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_path_schedule: str = "linear",
        init: str = "xavier_uniform",
        zero_head: bool = True,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        scan: bool = False,
        attention_implementation: str = "auto",
        block: Any = EncoderBlock,
        attention: AttentionFactory = MultiHeadAttention,
        mlp: MlpFactory = Mlp,
        norm: NormFactory = LayerNorm,
        rngs: nnx.Rngs,
    ):
        image_size, patch_size = as_pair(image_size, "image_size"), as_pair(patch_size, "patch_size")
        class_token = pool == "cls" if class_token is None else class_token
        _check(image_size, patch_size, pool, class_token, distilled, pos_embed, activation)
        if drop_path_schedule not in ("linear", "constant"):
            raise ValueError(f"{drop_path_schedule=} is none of 'linear', 'constant'")
        attention = choose_attention(
            attention,
            attention_implementation,
            default=MultiHeadAttention,
            others=MULTI_HEAD,
            dtype=dtype,
            head_dim=embed_dim // num_heads,
            attention_dropout_rate=attention_dropout_rate,
        )
        scheme = init_scheme(init, conv_fan_in=in_channels * patch_size[0] * patch_size[1])
        dense = dense_factory(scheme.dense, dtype=dtype, param_dtype=param_dtype)
        head_init = nnx.initializers.zeros if zero_head else scheme.dense
        head = dense_factory(head_init, dtype=dtype, param_dtype=param_dtype)
        norm = partial(norm, epsilon=norm_eps, dtype=dtype, param_dtype=param_dtype)
        mlp = partial(mlp, activation=_ACTIVATIONS[activation]) if activation != "gelu" else mlp
        layer_scale = None
        if layer_scale_init is not None:
            layer_scale = partial(
                LayerScale, embed_dim, init_value=layer_scale_init, dtype=dtype, param_dtype=param_dtype
            )

        self.num_features, self.dtype, self.pool, self.remat, self.scan = embed_dim, dtype, pool, remat, scan
        self.pos_embed_prefix, self.pos_embed_antialias = pos_embed_prefix, pos_embed_antialias
        self.patch_embed = PatchEmbed(
            in_channels,
            embed_dim,
            patch_size=patch_size,
            scheme=scheme,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=child(rngs, "patch_embed"),
        )
        self.grid_size = tuple(side // patch for side, patch in zip(image_size, patch_size, strict=True))

        def token_param(name: str, num_tokens: int) -> nnx.Param:
            key = child(rngs, name).params()
            return nnx.Param(nnx.initializers.normal(0.02)(key, (1, num_tokens, embed_dim), param_dtype))

        self.cls_token = token_param("cls_token", 1) if class_token else None
        self.dist_token = token_param("dist_token", 1) if distilled else None
        self.num_prefix_tokens = int(class_token) + int(distilled)
        num_positions = self.grid_size[0] * self.grid_size[1] + self.num_prefix_tokens * pos_embed_prefix
        self.pos_embed = token_param("pos_embed", num_positions) if pos_embed == "learned" else None
        lowest_rate = 0.0 if drop_path_schedule == "linear" else drop_path_rate
        self.blocks = nnx.List(
            block(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                dropout_rate=dropout_rate,
                attention_dropout_rate=attention_dropout_rate,
                drop_path_rate=rate,
                layer_scale=layer_scale,
                attention=attention,
                mlp=mlp,
                norm=norm,
                dense=dense,
                rngs=child(rngs, "blocks", index),
            )
            for index, rate in enumerate(np.linspace(lowest_rate, drop_path_rate, depth).tolist())
        )
        self.norm = None if fc_norm else norm(embed_dim, rngs=child(rngs, "norm"))
        attention_pool = partial(AttentionPool, mlp_ratio=mlp_ratio, mlp=mlp, norm=norm, dense=dense)
        is_map = pool == "map"
        self.attn_pool = attention_pool(embed_dim, num_heads, rngs=child(rngs, "attn_pool")) if is_map else None
        self.fc_norm = norm(embed_dim, rngs=child(rngs, "fc_norm")) if fc_norm else None
        lecun_dense = dense_factory(nnx.initializers.lecun_normal(), dtype=dtype, param_dtype=param_dtype)
        self.pre_logits = lecun_dense(embed_dim, embed_dim, rngs=child(rngs, "pre_logits")) if pre_logits else None
        self.head = head(embed_dim, num_classes, rngs=child(rngs, "head")) if num_classes else None
        has_head_dist = num_classes and distilled
        self.head_dist = head(embed_dim, num_classes, rngs=child(rngs, "head_dist")) if has_head_dist else None
        self.dropout = nnx.Dropout(dropout_rate)

    def _embed(self, images: Array) -> tuple[Array, tuple[int, int]]:
        """Map `[B, H, W, in_channels]` to tokens with positions `[B, prefix + N, C]`, and tell their grid."""
        patch_size = self.patch_embed.patch_size
        if any(side % patch for side, patch in zip(images.shape[1:3], patch_size, strict=True)):
            raise ValueError(f"images of {images.shape[1]}x{images.shape[2]} must be divisible by {patch_size=}")
        x = self.patch_embed(images.astype(self.dtype))
        batch, *grid_size, channels = x.shape
        x = x.reshape(batch, -1, channels)
        tokens = [token[...] for token in (self.cls_token, self.dist_token) if token is not None]
        prefix = [jnp.broadcast_to(t.astype(x.dtype), (batch, 1, channels)) for t in tokens]
        if self.pos_embed is None:
            positions = jnp.asarray(sincos_position_embedding_2d(tuple(grid_size), channels))
        else:
            positions = resize_position_embedding(
                self.pos_embed[...], self.grid_size, tuple(grid_size), antialias=self.pos_embed_antialias
            )
        positions = positions.astype(x.dtype)
        if self.pos_embed is not None and self.pos_embed_prefix:
            x = jnp.concatenate([*prefix, x], axis=1) + positions
        else:
            x = jnp.concatenate([*prefix, x + positions], axis=1)
        return x, tuple(grid_size)

    def _tokens(self, images: Array, rngs: nnx.Rngs | None) -> tuple[Array, tuple[int, int]]:
        """Return the tokens after the last block and its norm, `[B, prefix + N, C]`, and their grid."""
        x, grid_size = self._embed(images)
        x = self.dropout(x, deterministic=rngs is None, rngs=child(rngs, "dropout"))
        x = run_layers(self.blocks, x, name="blocks", rngs=rngs, remat=self.remat, scan=self.scan)
        return (self.norm(x) if self.norm else x), grid_size

    def features(self, images: Array, *, rngs: nnx.Rngs | None = None) -> tuple[Array]:
        """Return the patch tokens as one map, `([B, H/p, W/p, C],)`."""
        x, grid_size = self._tokens(images, rngs)
        return (x[:, self.num_prefix_tokens :].reshape(x.shape[0], *grid_size, x.shape[-1]),)

    def __call__(self, images: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        """Map normalised images `[B, H, W, in_channels]` to float32 logits `[B, num_classes]`."""
        x, _ = self._tokens(images, rngs)
        if self.pool == "map":
            pooled = self.attn_pool(x[:, self.num_prefix_tokens :])
        elif self.pool == "gap":
            pooled = x[:, self.num_prefix_tokens :].mean(axis=1, dtype=jnp.float32).astype(self.dtype)
        else:
            pooled = x[:, 0]
        pooled = self.fc_norm(pooled) if self.fc_norm else pooled
        pooled = jnp.tanh(self.pre_logits(pooled)) if self.pre_logits else pooled
        logits = self.head(pooled) if self.head else pooled
        if self.head_dist:
            logits = (logits + self.head_dist(x[:, 1])) / 2
        return logits.astype(jnp.float32)


def _check(image_size, patch_size, pool, class_token, distilled, pos_embed, activation) -> None:
    if any(side % patch for side, patch in zip(image_size, patch_size, strict=True)):
        raise ValueError(f"{image_size=} must be divisible by {patch_size=}")
    if pool not in ("cls", "gap", "map"):
        raise ValueError(f"{pool=} is none of 'cls', 'gap', 'map'")
    if pool == "cls" and not class_token:
        raise ValueError("pool='cls' needs class_token=True")
    if distilled and pool != "cls":
        raise ValueError(f"distilled=True needs pool='cls', got {pool=}")
    if pos_embed not in ("learned", "sincos2d"):
        raise ValueError(f"{pos_embed=} is none of 'learned', 'sincos2d'")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"{activation=} is none of {tuple(_ACTIVATIONS)}")


_WIDTHS = {  # arXiv 2010.11929 table 1, 2012.12877 table 1, 2106.04560 table 2
    "tiny": dict(embed_dim=192, depth=12, num_heads=3),
    "small": dict(embed_dim=384, depth=12, num_heads=6),
    "medium": dict(embed_dim=512, depth=12, num_heads=8),
    "base": dict(embed_dim=768, depth=12, num_heads=12),
    "large": dict(embed_dim=1024, depth=24, num_heads=16),
    "huge": dict(embed_dim=1280, depth=32, num_heads=16),
    "giant": dict(embed_dim=1408, depth=40, num_heads=16, mlp_ratio=48 / 11),
    "gigantic": dict(embed_dim=1664, depth=48, num_heads=16, mlp_ratio=64 / 13),
}
_VIT = (
    "tiny_patch16_224 tiny_patch16_384 small_patch32_224 small_patch32_384 small_patch16_224 small_patch16_384 "
    "small_patch8_224 base_patch32_224 base_patch32_384 base_patch16_224 base_patch16_384 base_patch8_224 "
    "large_patch32_224 large_patch32_384 large_patch16_224 large_patch16_384 large_patch14_224 huge_patch14_224 "
    "giant_patch14_224 gigantic_patch14_224"
)
_SIGLIP = (
    "base_patch32_siglip_256 base_patch16_siglip_224 base_patch16_siglip_256 base_patch16_siglip_384 "
    "base_patch16_siglip_512 large_patch16_siglip_256 large_patch16_siglip_384 large_patch16_siglip_512"
)
_GAP = "base_patch16_gap_224 huge_patch14_gap_224 huge_patch16_gap_448 giant_patch16_gap_224"  # I-JEPA, 2301.08243
_MEDIUM_GAP = "medium_patch16_gap_240 medium_patch16_gap_256 medium_patch16_gap_384"
_DEIT = "tiny_patch16_224 small_patch16_224 base_patch16_224 base_patch16_384"
_DEIT_DISTILLED = (
    "tiny_distilled_patch16_224 small_distilled_patch16_224 base_distilled_patch16_224 base_distilled_patch16_384"
)
_DEIT3 = (
    "small_patch16_224 small_patch16_384 medium_patch16_224 base_patch16_224 base_patch16_384 large_patch16_224 "
    "large_patch16_384 huge_patch14_224"
)


def _presets(prefix: str, names: str, **options: Any) -> dict[str, dict[str, Any]]:
    """Read width, patch and image size out of each name."""
    presets = {}
    for name in names.split():
        width, *middle, image_size = name.split("_")
        patch_size = next(int(part.removeprefix("patch")) for part in middle if part.startswith("patch"))
        sizes = dict(_WIDTHS[width], patch_size=patch_size, image_size=int(image_size))
        presets[f"{prefix}_{name}"] = {**sizes, **options}
    return presets


_TIMM_INIT = dict(init="trunc_normal", zero_head=False)
PRESETS: dict[str, dict[str, Any]] = {
    **_presets("vit", _VIT),
    **_presets("vit", _SIGLIP, pool="map"),
    **_presets("vit", _GAP, pool="gap", num_heads=16, **_TIMM_INIT),
    **_presets("vit", _MEDIUM_GAP, pool="gap", qkv_bias=False, layer_scale_init=1e-6, **_TIMM_INIT),
    **_presets("deit", _DEIT, drop_path_rate=0.1, **_TIMM_INIT),
    **_presets("deit", _DEIT_DISTILLED, drop_path_rate=0.1, distilled=True, **_TIMM_INIT),
    **_presets("deit3", _DEIT3, layer_scale_init=1e-6, pos_embed_prefix=False, **_TIMM_INIT),
}

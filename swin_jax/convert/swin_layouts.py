"""Swin v1 as the official repository, timm and HF transformers write it."""

from swin_jax.convert.layouts import Layout, strip_prefixes
from swin_jax.convert.rules import CONV, Rule, layer, norm, same
from swin_jax.models.swin import SwinTransformer

_OURS = "stages.{i}.blocks.{j}"
_DOWNSAMPLE = "stages.{i}.downsample"
_QKV = ("query", "key", "value")
_BUFFERS = (r"relative_position_index$|attn_mask$", "a buffer computed from the window and image sizes")
_MASKED_PRE_TRAINING = (r"^(embeddings\.)?mask_token$|^decoder\.", "of masked pre-training")


def _official_block(theirs: str) -> tuple[Rule, ...]:
    table = "relative_position_bias_table"
    return (
        *norm(f"{_OURS}.norm1", f"{theirs}.norm1"),
        *layer(f"{_OURS}.attention.qkv", f"{theirs}.attn.qkv"),
        *same(f"{_OURS}.attention.{table}", f"{theirs}.attn.{table}"),
        *layer(f"{_OURS}.attention.proj", f"{theirs}.attn.proj"),
        *norm(f"{_OURS}.norm2", f"{theirs}.norm2"),
        *layer(f"{_OURS}.mlp.fc1", f"{theirs}.mlp.fc1"),
        *layer(f"{_OURS}.mlp.fc2", f"{theirs}.mlp.fc2"),
    )


def _official(downsample: str) -> tuple[Rule, ...]:
    return (
        *layer("patch_embed.proj", "patch_embed.proj", kernel=CONV),
        *norm("patch_embed.norm", "patch_embed.norm"),
        *_official_block("layers.{i}.blocks.{j}"),
        *norm(f"{_DOWNSAMPLE}.norm", f"{downsample}.norm"),
        *layer(f"{_DOWNSAMPLE}.reduction", f"{downsample}.reduction"),
        *norm("norm", "norm"),
        *layer("head", "head.fc"),
        *layer("head", "head"),
    )


OFFICIAL = Layout(
    name="official Swin",  # and timm's before 0.9: patch merging at the end of a stage
    model_class=SwinTransformer,
    mark=r"^(module\.)?(encoder\.)?layers\.0\.downsample\.",
    rules=_official("layers.{i-1}.downsample"),
    prepare=strip_prefixes("module.", "encoder."),  # the encoder of SimMIM (arXiv 2111.09886)
    ignored=(_BUFFERS, _MASKED_PRE_TRAINING),
)

TIMM = Layout(
    name="timm Swin",  # 0.9 and later: patch merging at the start of a stage
    model_class=SwinTransformer,
    mark=r"^(module\.)?layers\.0\.blocks\.0\.attn\.relative_position_bias_table$",
    rules=_official("layers.{i}.downsample"),
    prepare=strip_prefixes("module."),
    ignored=(_BUFFERS,),
)


def _hf_block(theirs: str) -> tuple[Rule, ...]:
    attention, table = f"{theirs}.attention", "relative_position_bias_table"
    return (
        *norm(f"{_OURS}.norm1", f"{theirs}.layernorm_before"),
        *layer(
            f"{_OURS}.attention.qkv", *(f"{attention}.self.{n}" for n in ("query", "key", "value")), parts=(1, 1, 1)
        ),
        *layer(f"{_OURS}.attention.qkv", *(f"{attention}.{n}_proj" for n in "qkv"), parts=(1, 1, 1)),
        *same(f"{_OURS}.attention.{table}", f"{attention}.self.{table}"),
        *same(f"{_OURS}.attention.{table}", f"{attention}.relative_position_bias.{table}"),
        *layer(f"{_OURS}.attention.proj", f"{attention}.output.dense"),
        *layer(f"{_OURS}.attention.proj", f"{attention}.o_proj"),
        *norm(f"{_OURS}.norm2", f"{theirs}.layernorm_after"),
        *layer(f"{_OURS}.mlp.fc1", f"{theirs}.intermediate.dense"),
        *layer(f"{_OURS}.mlp.fc1", f"{theirs}.mlp.fc1"),
        *layer(f"{_OURS}.mlp.fc2", f"{theirs}.output.dense"),
        *layer(f"{_OURS}.mlp.fc2", f"{theirs}.mlp.fc2"),
    )


HF = Layout(
    name="HF Swin",  # published names first, then those of transformers 5 in memory
    model_class=SwinTransformer,
    mark=r"encoder\.layers\.0\.blocks\.0\.layernorm_before\.",
    rules=(
        *layer("patch_embed.proj", "embeddings.patch_embeddings.projection", kernel=CONV),
        *norm("patch_embed.norm", "embeddings.norm"),
        *_hf_block("encoder.layers.{i}.blocks.{j}"),
        *norm(f"{_DOWNSAMPLE}.norm", "encoder.layers.{i-1}.downsample.norm"),
        *layer(f"{_DOWNSAMPLE}.reduction", "encoder.layers.{i-1}.downsample.reduction"),
        *norm("norm", "layernorm"),
        *layer("head", "classifier"),
    ),
    prepare=strip_prefixes("swin."),
    ignored=(_BUFFERS, _MASKED_PRE_TRAINING),
)

LAYOUTS = (OFFICIAL, TIMM, HF)

"""ViT and DeiT as timm (which is DeiT's own), HF transformers, and Google's two repositories write them."""

import ml_dtypes
import numpy as np

from swin_jax.convert.layouts import Layout, Tensors, strip_prefixes
from swin_jax.convert.rules import CONV, MERGE_HEADS, STACK_BIASES, STACK_KERNELS, Rule, layer, norm, same
from swin_jax.models.vit import VisionTransformer

_QKV = ("query", "key", "value")
_MASKED_PRE_TRAINING = (r"(^|\.)mask_token$|^decoder\.", "of masked pre-training")

TIMM = Layout(
    name="timm ViT",
    model_class=VisionTransformer,
    mark=r"^(module\.)?blocks\.0\.attn\.qkv\.weight$",
    rules=(
        *layer("patch_embed.proj", "patch_embed.proj", kernel=CONV),
        *same("cls_token", "cls_token"),
        *same("dist_token", "dist_token"),
        *same("pos_embed", "pos_embed"),
        *norm("blocks.{i}.norm1", "blocks.{i}.norm1"),
        *layer("blocks.{i}.attention.qkv", "blocks.{i}.attn.qkv"),
        *layer("blocks.{i}.attention.proj", "blocks.{i}.attn.proj"),
        *same("blocks.{i}.layer_scale1.gamma", "blocks.{i}.ls1.gamma"),
        *same("blocks.{i}.layer_scale1.gamma", "blocks.{i}.gamma_1"),  # DeiT-III's own
        *norm("blocks.{i}.norm2", "blocks.{i}.norm2"),
        *layer("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.fc1"),
        *layer("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.fc2"),
        *same("blocks.{i}.layer_scale2.gamma", "blocks.{i}.ls2.gamma"),
        *same("blocks.{i}.layer_scale2.gamma", "blocks.{i}.gamma_2"),
        *norm("norm", "norm"),
        *same("attn_pool.probe", "attn_pool.latent"),
        *layer("attn_pool.attention.qkv", "attn_pool.q", "attn_pool.kv", parts=(1, 2)),
        *layer("attn_pool.attention.proj", "attn_pool.proj"),
        *norm("attn_pool.norm", "attn_pool.norm"),
        *layer("attn_pool.mlp.fc1", "attn_pool.mlp.fc1"),
        *layer("attn_pool.mlp.fc2", "attn_pool.mlp.fc2"),
        *norm("fc_norm", "fc_norm"),
        *layer("head", "head"),
        *layer("head_dist", "head_dist"),
    ),
    prepare=strip_prefixes("module."),
    ignored=(_MASKED_PRE_TRAINING,),
    head_only=r"^pre_logits\.",
)


def _hf_block(theirs: str, *, qkv: str, proj: str, fc1: str, fc2: str) -> tuple[Rule, ...]:
    ours, query_key_value = "blocks.{i}", tuple(f"{theirs}.attention.{qkv.format(name)}" for name in _QKV)
    return (
        *norm(f"{ours}.norm1", f"{theirs}.layernorm_before"),
        *layer(f"{ours}.attention.qkv", *query_key_value, parts=(1, 1, 1)),
        *layer(f"{ours}.attention.proj", f"{theirs}.attention.{proj}"),
        *norm(f"{ours}.norm2", f"{theirs}.layernorm_after"),
        *layer(f"{ours}.mlp.fc1", f"{theirs}.{fc1}"),
        *layer(f"{ours}.mlp.fc2", f"{theirs}.{fc2}"),
    )


HF = Layout(
    name="HF ViT",
    model_class=VisionTransformer,
    mark=r"(encoder\.layer|layers)\.0\.layernorm_before\.weight$",
    rules=(
        *layer("patch_embed.proj", "embeddings.patch_embeddings.projection", kernel=CONV),
        *same("cls_token", "embeddings.cls_token"),
        *same("dist_token", "embeddings.distillation_token"),
        *same("pos_embed", "embeddings.position_embeddings"),
        *_hf_block(
            "encoder.layer.{i}",  # as published
            qkv="attention.{}",
            proj="output.dense",
            fc1="intermediate.dense",
            fc2="output.dense",
        ),
        *_hf_block("layers.{i}", qkv="{0[0]}_proj", proj="o_proj", fc1="mlp.fc1", fc2="mlp.fc2"),  # transformers 5
        *norm("norm", "layernorm"),
        *layer("head", "classifier"),
        *layer("head", "cls_classifier"),
        *layer("head_dist", "distillation_classifier"),
    ),
    prepare=strip_prefixes("vit.", "deit."),
    ignored=(_MASKED_PRE_TRAINING, (r"^pooler\.dense\.", "a pooler that no classifier uses")),
)


def _google(*, attention: str, norm2: str, mlp: str) -> tuple[Rule, ...]:
    """Return the rules of Google's layouts, which count the parts of a block differently."""

    def flax_norm(ours: str, theirs: str) -> tuple[Rule, ...]:
        return (*same(f"{ours}.scale", f"{theirs}/scale"), *same(f"{ours}.bias", f"{theirs}/bias"))

    def flax_layer(ours: str, theirs: str) -> tuple[Rule, ...]:
        return (*same(f"{ours}.kernel", f"{theirs}/kernel"), *same(f"{ours}.bias", f"{theirs}/bias"))

    def flax_attention(ours: str, theirs: str) -> tuple[Rule, ...]:
        return (
            Rule(f"{ours}.qkv.kernel", tuple(f"{theirs}/{name}/kernel" for name in _QKV), STACK_KERNELS),
            Rule(f"{ours}.qkv.bias", tuple(f"{theirs}/{name}/bias" for name in _QKV), STACK_BIASES),
            Rule(f"{ours}.proj.kernel", (f"{theirs}/out/kernel",), MERGE_HEADS),
            *same(f"{ours}.proj.bias", f"{theirs}/out/bias"),
        )

    ours, theirs = "blocks.{i}", "Transformer/encoderblock_{i}"
    return (
        *flax_layer("patch_embed.proj", "embedding"),
        *same("cls_token", "cls"),
        *same("pos_embed", "pos_embedding"),
        *same("pos_embed", "Transformer/pos_embedding"),
        *same("pos_embed", "Transformer/posembed_input/pos_embedding"),
        *flax_norm(f"{ours}.norm1", f"{theirs}/LayerNorm_0"),
        *flax_attention(f"{ours}.attention", f"{theirs}/{attention}"),
        *flax_norm(f"{ours}.norm2", f"{theirs}/{norm2}"),
        *flax_layer(f"{ours}.mlp.fc1", f"{theirs}/{mlp}/Dense_0"),
        *flax_layer(f"{ours}.mlp.fc2", f"{theirs}/{mlp}/Dense_1"),
        *flax_norm("norm", "Transformer/encoder_norm"),
        *same("attn_pool.probe", "MAPHead_0/probe"),
        *flax_attention("attn_pool.attention", "MAPHead_0/MultiHeadDotProductAttention_0"),
        *flax_norm("attn_pool.norm", "MAPHead_0/LayerNorm_0"),
        *flax_layer("attn_pool.mlp.fc1", "MAPHead_0/MlpBlock_0/Dense_0"),
        *flax_layer("attn_pool.mlp.fc2", "MAPHead_0/MlpBlock_0/Dense_1"),
        *flax_layer("pre_logits", "pre_logits"),
        *flax_layer("head", "head"),
    )


def _prepare_google(tensors: Tensors) -> tuple[Tensors, dict[str, str]]:
    """Find the image model in a training checkpoint, and cut stacked blocks (`nn.scan`) into single ones."""
    roots = [name.removesuffix("embedding/kernel") for name in tensors if name.endswith("embedding/kernel")]
    root = min((root for root in roots if f"{root}Transformer/encoder_norm/scale" in tensors), key=len, default="")
    prepared: Tensors = {}
    left_out = {}
    for name, tensor in tensors.items():
        if not name.startswith(root):
            left_out[name] = "not of the image model"
            continue
        name = name.removeprefix(root)
        if tensor.dtype.kind == "V" and tensor.dtype.itemsize == 2:  # how numpy stores bfloat16
            tensor = tensor.view(ml_dtypes.bfloat16)
        before, stacked, after = name.partition("/encoderblock/")
        if not stacked:
            prepared[name] = tensor
            continue
        for index, one in enumerate(np.asarray(tensor)):
            prepared[f"{before}/encoderblock_{index}/{after}"] = one
    return prepared, left_out


GOOGLE = Layout(
    name="Google ViT",  # google-research/vision_transformer: AugReg and the original
    model_class=VisionTransformer,
    mark=r"Transformer/encoderblock_0/MultiHeadDotProductAttention_1/",
    rules=_google(attention="MultiHeadDotProductAttention_1", norm2="LayerNorm_2", mlp="MlpBlock_3"),
    prepare=_prepare_google,
    head_only=r"^pre_logits/",
)

BIG_VISION = Layout(
    name="big_vision ViT",
    model_class=VisionTransformer,
    mark=r"Transformer/encoderblock(_0)?/MultiHeadDotProductAttention_0/",
    rules=_google(attention="MultiHeadDotProductAttention_0", norm2="LayerNorm_1", mlp="MlpBlock_0"),
    prepare=_prepare_google,
    head_only=r"^pre_logits/",
)

LAYOUTS = (TIMM, HF, GOOGLE, BIG_VISION)

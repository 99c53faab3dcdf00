"""ViT and DeiT as timm and HF transformers compute them; Google's files, read by timm."""

import tempfile
from pathlib import Path

import numpy as np
import timm
import torch

from tests.golden.writing import (
    BATCH,
    NUM_CLASSES,
    VIT,
    VIT_NATIVE,
    VIT_OTHER,
    add_gradients,
    add_run,
    golden,
    published_hf_weights,
    random_images,
    randomize,
)


def tiny_timm_vit(size=VIT_NATIVE, cls=None, seed=4, **changes) -> torch.nn.Module:
    options = dict(img_size=size, patch_size=4, num_classes=NUM_CLASSES, **{**VIT, **changes})
    return randomize((cls or timm.models.vision_transformer.VisionTransformer)(**options), seed)


def our_vit(size=VIT_NATIVE, **changes) -> dict:
    return dict(name="vit", image_size=size, patch_size=4, num_classes=NUM_CLASSES, **{**VIT, **changes})


def run_timm_vit(entries: dict, model: torch.nn.Module, size: tuple[int, int]) -> None:
    images = random_images(size)
    has_norm = not isinstance(model.norm, torch.nn.Identity)
    features = model.forward_intermediates(images, indices=1, norm=has_norm, intermediates_only=True)
    add_run(entries, images, model(images), features)


def timm_vit(_) -> dict:
    """Class token, gradients; at another size with learned positions resized by timm (bicubic, antialias)."""
    model = tiny_timm_vit(dynamic_img_size=True)
    entries = golden("timm VisionTransformer", our_vit(pos_embed_antialias=True), model.state_dict())
    run_timm_vit(entries, model, VIT_NATIVE)
    add_gradients(entries, model, random_images(VIT_NATIVE))
    run_timm_vit(entries, model, VIT_OTHER)
    return entries


def timm_vit_gap(_) -> dict:
    model = tiny_timm_vit(global_pool="avg", seed=5)
    our = our_vit(pool="gap", class_token=True, fc_norm=True)
    entries = golden("timm VisionTransformer, global_pool=avg", our, model.state_dict())
    run_timm_vit(entries, model, VIT_NATIVE)
    return entries


def timm_vit_gap_no_token(_) -> dict:
    size, changes = (12, 20), dict(qkv_bias=False)
    model = tiny_timm_vit(size, global_pool="avg", class_token=False, fc_norm=False, init_values=1.0, seed=6, **changes)
    our = our_vit(size, pool="gap", layer_scale_init=1.0, **changes)
    entries = golden("timm VisionTransformer as vit_medium_patch16_gap", our, model.state_dict())
    run_timm_vit(entries, model, size)
    return entries


def timm_vit_map(_) -> dict:
    model = tiny_timm_vit(global_pool="map", class_token=False, seed=7)
    entries = golden("timm VisionTransformer as vit_base_patch16_siglip", our_vit(pool="map"), model.state_dict())
    run_timm_vit(entries, model, VIT_NATIVE)
    return entries


def timm_deit3(_) -> dict:
    model = tiny_timm_vit(no_embed_class=True, init_values=1.0, dynamic_img_size=True, seed=8)
    our = our_vit(pos_embed_prefix=False, layer_scale_init=1.0, pos_embed_antialias=True)
    entries = golden("timm VisionTransformer as deit3", our, model.state_dict())
    run_timm_vit(entries, model, VIT_NATIVE)
    run_timm_vit(entries, model, VIT_OTHER)
    return entries


def timm_deit_distilled(_) -> dict:
    model = tiny_timm_vit(cls=timm.models.deit.VisionTransformerDistilled, dynamic_img_size=True, seed=9)
    entries = golden("timm VisionTransformerDistilled", our_vit(distilled=True), model.state_dict())
    run_timm_vit(entries, model, VIT_NATIVE)
    run_timm_vit(entries, model, VIT_OTHER)
    return entries


def hf_options() -> dict:
    return dict(
        hidden_size=VIT["embed_dim"],
        num_hidden_layers=VIT["depth"],
        num_attention_heads=VIT["num_heads"],
        intermediate_size=4 * VIT["embed_dim"],
        image_size=VIT_NATIVE[0],
        patch_size=4,
        num_labels=NUM_CLASSES,
    )


def hf_vit(_) -> dict:
    """LayerNorm epsilon 1e-12; at another size with learned positions resized without antialias."""
    from transformers import ViTConfig, ViTForImageClassification

    model = randomize(ViTForImageClassification(ViTConfig(**hf_options())), seed=10)
    our = our_vit(norm_eps=1e-12, pos_embed_antialias=False)
    entries = golden("HF ViTForImageClassification", our, published_hf_weights(model))
    for size in (VIT_NATIVE, VIT_OTHER):
        images = random_images(size)
        tokens = model.vit(images, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
        feature = tokens.transpose(1, 2).reshape(BATCH, -1, *(side // 4 for side in size))
        add_run(entries, images, model(images, interpolate_pos_encoding=True).logits, [feature])
    return entries


def hf_deit(_) -> dict:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    model = randomize(DeiTForImageClassificationWithTeacher(DeiTConfig(**hf_options())), seed=11)
    our = our_vit(norm_eps=1e-12, distilled=True)
    entries = golden("HF DeiTForImageClassificationWithTeacher", our, published_hf_weights(model))
    images = random_images(VIT_NATIVE)
    tokens = model.deit(images).last_hidden_state[:, 2:]
    add_run(entries, images, model(images).logits, [tokens.transpose(1, 2).reshape(BATCH, -1, 4, 4)])
    return entries


def google_names(*, big_vision: bool, pool: str) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a tiny ViT in the layouts of google-research/vision_transformer and big_vision."""
    width, heads, hidden = VIT["embed_dim"], VIT["num_heads"], 4 * VIT["embed_dim"]
    attention, norm2, mlp = (0, 1, 0) if big_vision else (1, 2, 3)
    num_positions = VIT_NATIVE[0] * VIT_NATIVE[1] // 16 + (pool == "cls" and not big_vision)
    position = "pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"
    shapes = {"embedding/kernel": (4, 4, 3, width), "embedding/bias": (width,), position: (1, num_positions, width)}

    def add_norm(name: str) -> None:
        shapes.update({f"{name}/scale": (width,), f"{name}/bias": (width,)})

    def add_attention(name: str) -> None:
        for part in ("query", "key", "value"):
            shapes[f"{name}/{part}/kernel"] = (width, heads, width // heads)
            shapes[f"{name}/{part}/bias"] = (heads, width // heads)
        shapes.update({f"{name}/out/kernel": (heads, width // heads, width), f"{name}/out/bias": (width,)})

    def add_mlp(name: str) -> None:
        shapes.update({f"{name}/Dense_0/kernel": (width, hidden), f"{name}/Dense_0/bias": (hidden,)})
        shapes.update({f"{name}/Dense_1/kernel": (hidden, width), f"{name}/Dense_1/bias": (width,)})

    for index in range(VIT["depth"]):
        block = f"Transformer/encoderblock_{index}"
        add_norm(f"{block}/LayerNorm_0")
        add_attention(f"{block}/MultiHeadDotProductAttention_{attention}")
        add_norm(f"{block}/LayerNorm_{norm2}")
        add_mlp(f"{block}/MlpBlock_{mlp}")
    add_norm("Transformer/encoder_norm")
    if pool == "cls":
        shapes["cls"] = (1, 1, width)
    if pool == "map":
        shapes["MAPHead_0/probe"] = (1, 1, width)
        add_attention("MAPHead_0/MultiHeadDotProductAttention_0")
        add_norm("MAPHead_0/LayerNorm_0")
        add_mlp("MAPHead_0/MlpBlock_0")
    shapes.update({"head/kernel": (width, NUM_CLASSES), "head/bias": (NUM_CLASSES,)})
    return shapes


def google(seed: int, our: dict, *, big_vision: bool, pool: str, prefix: str = "", **timm_options) -> dict:
    """Write random weights in one of Google's layouts and let timm's own reader of it run them."""
    generator = np.random.default_rng(seed)
    weights = {}
    for name, shape in google_names(big_vision=big_vision, pool=pool).items():
        noise = generator.standard_normal(shape).astype(np.float32)
        fan_in = np.prod(shape[:-1]) if name.endswith(("embedding/kernel", "out/kernel")) else shape[0]
        weights[prefix + name] = {
            "kernel": lambda: noise / np.float32(fan_in) ** np.float32(0.5),  # noqa: B023
            "scale": lambda: 1 + np.float32(0.3) * noise,  # noqa: B023
        }.get(name.rpartition("/")[2], lambda: np.float32(0.4) * noise)()  # noqa: B023
    model = tiny_timm_vit(**timm_options)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "checkpoint.npz", **weights)
        model.load_pretrained(str(Path(folder) / "checkpoint.npz"))
    entries = golden("timm, reading a Google .npz", our, {k: torch.from_numpy(v) for k, v in weights.items()})
    run_timm_vit(entries, model, VIT_NATIVE)
    # timm's reader runs both with the exact GELU, where Google's own code takes the tanh approximation
    return entries


def google_augreg(_) -> dict:
    return google(12, our_vit(), big_vision=False, pool="cls")


def google_big_vision_map(_) -> dict:
    options = dict(global_pool="map", class_token=False)
    return google(13, our_vit(pool="map"), big_vision=True, pool="map", prefix="params/", **options)


def google_big_vision_gap(_) -> dict:
    options = dict(global_pool="avg", class_token=False, fc_norm=False)
    return google(14, our_vit(pool="gap"), big_vision=True, pool="gap", prefix="opt/target/", **options)

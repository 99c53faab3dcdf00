"""HF transformers' models, configured as their files on the Hub are."""

from pathlib import Path

import torch
import transformers

from tests.golden.writing import outputs_of, randomize
from tools.references import Reference, as_map, other_size

_SWIN = {  # embed_dim, depths, num_heads, window_size, image_size
    "swin_tiny_patch4_window7_224": (96, [2, 2, 6, 2], [3, 6, 12, 24], 7, 224),
    "swin_base_patch4_window12_384": (128, [2, 2, 18, 2], [4, 8, 16, 32], 12, 384),
}
_VIT = {  # hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, patch_size, image_size
    "vit_base_patch16_224": (768, 12, 12, 3072, 16, 224),
    "vit_base_patch32_384": (768, 12, 12, 3072, 32, 384),
    "vit_large_patch16_224": (1024, 24, 16, 4096, 16, 224),
    "deit_small_patch16_224": (384, 12, 6, 1536, 16, 224),
    "deit_base_distilled_patch16_224": (768, 12, 12, 3072, 16, 224),
}
MODELS = (*_SWIN, *_VIT)


def build(name: str) -> Reference:
    return _swin(name) if name in _SWIN else _vit(name)


def _swin(name: str) -> Reference:
    embed_dim, depths, num_heads, window_size, image_size = _SWIN[name]
    config = transformers.SwinConfig(
        embed_dim=embed_dim,
        depths=depths,
        num_heads=num_heads,
        window_size=window_size,
        image_size=image_size,
        num_labels=1000,
    )
    model = randomize(transformers.SwinForImageClassification(config), seed=0)

    def run(images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        with outputs_of(stage.blocks[-1] for stage in model.swin.encoder.layers) as outputs:
            logits = model(images).logits
        sides = [tuple(-(-side // 2 ** (2 + stage)) for side in images.shape[2:]) for stage in range(len(depths))]
        return logits, [as_map(out, *side) for (out, _), side in zip(outputs, sides, strict=True)]

    # The other size first: HF's last stage, once it has seen a map no larger than its window, never shifts again.
    sizes = (other_size(image_size, 4, is_swin=True), (image_size, image_size))
    return Reference(run, _saver(model), sizes, {"window_padding": "pad_roll"})


def _vit(name: str) -> Reference:
    width, depth, num_heads, hidden, patch_size, image_size = _VIT[name]
    options = dict(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=num_heads,
        intermediate_size=hidden,
        patch_size=patch_size,
        image_size=image_size,
        num_labels=1000,
    )
    if "distilled" in name:
        model = transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**options))
        base, num_prefix = model.deit, 2
    else:
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**options))
        base, num_prefix = model.vit, 1
    randomize(model, seed=0)

    def run(images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        with outputs_of([base.layernorm]) as outputs:
            logits = model(images, interpolate_pos_encoding=True).logits
        grid = (side // patch_size for side in images.shape[2:])
        return logits, [as_map(outputs[0], *grid, num_prefix=num_prefix)]

    sizes = ((image_size, image_size), other_size(image_size, patch_size, is_swin=False))
    return Reference(run, _saver(model), sizes, {"norm_eps": 1e-12, "pos_embed_antialias": False})


def _saver(model: transformers.PreTrainedModel):
    def save(folder: Path) -> Path:
        model.save_pretrained(folder)  # under the names of the files on the Hub
        return folder / "model.safetensors"

    return save

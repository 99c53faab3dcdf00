"""timm's models."""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file

from tests.golden.writing import randomize
from tools.references import Reference, other_size

MODELS = (
    "swin_tiny_patch4_window7_224",
    "swin_small_patch4_window7_224",
    "swin_base_patch4_window7_224",
    "swin_base_patch4_window12_384",
    "swin_large_patch4_window7_224",
    "swin_large_patch4_window12_384",
    "swin_tiny_c24_patch4_window8_256",
    "vit_tiny_patch16_224",
    "vit_small_patch32_384",
    "vit_base_patch8_224",
    "vit_large_patch14_224",
    "vit_huge_patch14_224",
    "vit_giant_patch14_224",
    "vit_base_patch16_gap_224",
    "vit_huge_patch14_gap_224",
    "vit_huge_patch16_gap_448",
    "vit_giant_patch16_gap_224",
    "vit_medium_patch16_gap_256",
    "vit_base_patch16_siglip_224",
    "deit_small_patch16_224",
    "deit_base_distilled_patch16_384",
    "deit3_medium_patch16_224",
    "deit3_large_patch16_384",
    "deit3_huge_patch14_224",
)
# Published, but not in timm: configs/swin/swin_tiny_c24_patch4_window8_256.yaml of the official repository.
OTHERS = {
    "swin_tiny_c24_patch4_window8_256": (
        "swin_tiny_patch4_window7_224",
        dict(img_size=256, window_size=8, num_heads=(4, 8, 16, 32)),
    )
}


def build(name: str, *, depth: int | None = None) -> Reference:
    """Return a model by name; `depth` cuts a ViT that is too large to run whole."""
    is_swin = name.startswith("swin")
    timm_name, options = OTHERS.get(name, (name, {}))
    options = {**options, **({} if is_swin else {"dynamic_img_size": True}), **({"depth": depth} if depth else {})}

    def create() -> torch.nn.Module:
        return timm.create_model(timm_name, num_classes=1000, **options).eval()

    model = randomize(create(), seed=0)
    image_size, patch_size = model.patch_embed.img_size[0], model.patch_embed.patch_size[0]
    window_size = model.layers[0].blocks[0].window_size if is_swin else None

    def run(images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        selected: dict[str, Any] = {"norm": True, "indices": 1}  # the last map, after the last norm
        if is_swin:
            model.set_input_size(images.shape[2:], window_size=window_size)
            selected = {"norm": False}
        return model(images), model.forward_intermediates(images, intermediates_only=True, **selected)

    def save(folder: Path) -> Path:
        save_file(model.state_dict(), folder / "model.safetensors")
        return folder / "model.safetensors"

    def read_back(file: Path) -> torch.nn.Module:
        fresh = create()
        fresh.load_state_dict(load_file(file), strict=True)
        return fresh

    sizes = ((image_size, image_size), other_size(image_size, patch_size, is_swin=is_swin))
    return Reference(run, save, sizes, {"depth": depth} if depth else {}, read_back)

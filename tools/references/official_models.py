"""The authors' own models: microsoft/Swin-Transformer's and facebookresearch/deit's, read from checkouts of those."""

from pathlib import Path

import torch
import yaml

from tests.golden.reference import load_official, read_official
from tests.golden.writing import outputs_of, randomize
from tools.references import Reference, as_map

_SWIN = {  # the file in configs/swin that has the architecture, and another image size that the windows divide
    "swin_tiny_patch4_window7_224": ("swin_tiny_patch4_window7_224", (448, 672)),
    "swin_tiny_c24_patch4_window8_256": ("swin_tiny_c24_patch4_window8_256", (512, 768)),
    "swin_base_patch4_window12_384": ("swin_base_patch4_window12_384_finetune", (768, 768)),
    "swin_large_patch4_window7_224": ("swin_large_patch4_window7_224_22kto1k_finetune", (448, 448)),
}
_DEIT = {  # the file and the function that builds the model
    "deit_small_patch16_224": ("models.py", "deit_small_patch16_224"),
    "deit_base_distilled_patch16_384": ("models.py", "deit_base_distilled_patch16_384"),
    "deit3_base_patch16_384": ("models_v2.py", "deit_base_patch16_LS"),
    "deit3_huge_patch14_224": ("models_v2.py", "deit_huge_patch14_LS"),
}
SWIN_MODELS, DEIT_MODELS = tuple(_SWIN), tuple(_DEIT)


def build(name: str, *, swin_repository: Path | None, deit_repository: Path | None) -> Reference:
    """Return a model by name, built by the code of its authors, of which a checkout or bare clone is given."""
    if name in _SWIN and swin_repository:
        return _swin(name, swin_repository)
    if name in _DEIT and deit_repository:
        return _deit(name, deit_repository)
    raise SystemExit(f"{name} needs --{'swin' if name.startswith('swin') else 'deit'}_repository")


def _swin(name: str, repository: Path) -> Reference:
    file, other = _SWIN[name]
    config = yaml.safe_load(read_official(repository, f"configs/swin/{file}.yaml"))
    options = {key.lower(): value for key, value in config["MODEL"]["SWIN"].items()}
    image_size = config.get("DATA", {}).get("IMG_SIZE", 224)
    code = load_official(repository, "models/swin_transformer.py")
    model = randomize(code.SwinTransformer(img_size=image_size, **options), seed=0)

    def run(images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run a model built for these images, which differs in its buffers alone."""
        size = tuple(images.shape[2:])
        at_size = code.SwinTransformer(img_size=size, **options).eval()
        at_size.load_state_dict(dict(model.named_parameters()), strict=False)
        with outputs_of(layer.blocks[-1] for layer in at_size.layers) as outputs:
            logits = at_size(images)
        return logits, [as_map(out, *(side // 2 ** (2 + stage) for side in size)) for stage, out in enumerate(outputs)]

    return Reference(run, _saver(model), ((image_size, image_size), other))


def _deit(name: str, repository: Path) -> Reference:
    file, function = _DEIT[name]
    image_size = int(name.rpartition("_")[2])
    size_option = {"img_size": image_size} if file == "models_v2.py" else {}
    model = randomize(getattr(load_official(repository, file), function)(**size_option), seed=0)
    patch_size = model.patch_embed.patch_size[0]

    def run(images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        with outputs_of([model.norm]) as outputs:
            logits = model(images)
        grid = (side // patch_size for side in images.shape[2:])
        return logits, [as_map(outputs[0], *grid, num_prefix=2 if "distilled" in name else 1)]

    return Reference(run, _saver(model), ((image_size, image_size),))  # the only size that this code takes


def _saver(model: torch.nn.Module):
    def save(folder: Path) -> Path:
        torch.save({"model": model.state_dict()}, folder / "model.pth")
        return folder / "model.pth"

    return save

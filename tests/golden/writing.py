"""What the makers of goldens share: random weights, the entries of a golden, and where features are caught."""

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import timm
import torch

SWIN = dict(embed_dim=8, depths=(2, 2, 1), num_heads=(2, 2, 4), window_size=4)
TWO_STAGES = dict(depths=(2, 2), num_heads=(2, 4))
SWIN_NATIVE, SWIN_OTHER = (32, 32), (44, 34)  # patch 2: 16x16, 8x8, 4x4 tokens; 22x17, 11x9, 6x5
VIT = dict(embed_dim=16, depth=2, num_heads=4)
VIT_NATIVE, VIT_OTHER = (16, 16), (24, 12)  # patch 4: 4x4 and 6x3 tokens
NUM_CLASSES, BATCH = 5, 2
LABELS = (1, 4)


def randomize(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Make every parameter random, at a scale that keeps activations and logits near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and not name.endswith("bias"):  # norms, LayerScale
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.3 * noise)
            elif name.endswith(("table", "token", "pos_embed", "position_embeddings", "latent")):
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return model.eval()


def random_images(size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(BATCH, 3, *size, generator=torch.Generator().manual_seed(seed))


def size_name(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))


def golden(source: str, model: dict, weights: dict[str, torch.Tensor]) -> dict:
    """Start a golden; `model` are the arguments of our create_model that give the same architecture."""
    about = dict(source=source, torch=torch.__version__, timm=timm.__version__, model=model)
    return {"about": json.dumps(about), **{f"weights/{k}": v.detach().clone() for k, v in weights.items()}}


def add_run(entries: dict, images: torch.Tensor, logits: torch.Tensor, features: list[torch.Tensor]) -> None:
    """Add images and outputs; features are [B, C, h, w]."""
    name = size_name(images.shape[2:])
    entries[f"images/{name}"] = images.permute(0, 2, 3, 1)
    entries[f"logits/{name}"] = logits
    for stage, feature in enumerate(features):
        entries[f"features/{name}/{stage}"] = feature.permute(0, 2, 3, 1)


@contextlib.contextmanager
def outputs_of(modules: Iterable[torch.nn.Module]) -> Iterator[list]:
    """Collect what these modules return while the context lasts."""
    outputs: list = []
    hooks = [module.register_forward_hook(lambda _, inputs, output: outputs.append(output)) for module in modules]
    yield outputs
    for hook in hooks:
        hook.remove()


def as_maps(outputs: list[torch.Tensor], size: tuple[int, int]) -> list[torch.Tensor]:
    """Turn the [B, h·w, C] of each Swin stage with patches of 2 into [B, C, h, w]."""
    sides = [[-(-side // (2 * 2**stage)) for side in size] for stage in range(len(outputs))]
    return [out.transpose(1, 2).reshape(BATCH, -1, *side) for out, side in zip(outputs, sides, strict=True)]


def add_gradients(entries: dict, model: torch.nn.Module, images: torch.Tensor) -> None:
    """Add the gradient of the cross-entropy on LABELS with respect to every parameter."""
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(images), torch.tensor(LABELS)).backward()
    for name, parameter in model.named_parameters():
        entries[f"gradients/{name}"] = parameter.grad


def published_hf_weights(model) -> dict[str, torch.Tensor]:
    """Return the weights under the names of the files on the Hub, which are not those in memory."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")

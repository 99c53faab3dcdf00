"""Reference models of full size: timm's, HF transformers' and the official ones, with random weights."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Run = Callable[[torch.Tensor], tuple[torch.Tensor, list[torch.Tensor]]]


@dataclass(frozen=True)
class Reference:
    """A reference model, and how ours is built beside it.

    Attributes:
        run: images `[B, 3, H, W]` → logits, and the map `[B, C, h, w]` of every stage.
        save: writes the weights into a folder as they are published, and returns the file.
        sizes: (height, width) of the images to compare on, in the order to run them in.
        options: arguments of `create_model` where the reference is not as our preset.
        read_back: the logits function of the same reference with weights from a file in timm's layout, if that is
            the reference's.
    """

    run: Run
    save: Callable[[Path], Path]
    sizes: tuple[tuple[int, int], ...]
    options: dict[str, Any] = field(default_factory=dict)
    read_back: Callable[[Path], Callable[[torch.Tensor], torch.Tensor]] | None = None


def other_size(image_size: int, patch_size: int, *, is_swin: bool) -> tuple[int, int]:
    """Return another size (height, width): no multiple of Swin's windows; for ViT one more patch, and about half."""
    grid = image_size // patch_size
    height, width = (grid + 1, grid + 9) if is_swin else (grid + 1, grid // 2 + 1)
    return height * patch_size, width * patch_size


def as_map(tokens: torch.Tensor, height: int, width: int, *, num_prefix: int = 0) -> torch.Tensor:
    """Turn tokens `[B, prefix + h·w, C]` into their map `[B, C, h, w]`."""
    return tokens[:, num_prefix:].transpose(1, 2).unflatten(2, (height, width))

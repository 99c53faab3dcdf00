"""Our weights as files that timm reads."""

from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from swin_jax.convert import swin_layouts, vit_layouts
from swin_jax.convert.load import parameters_of
from swin_jax.errors import UserError
from swin_jax.models.swin import SwinTransformer
from swin_jax.models.vit import VisionTransformer
from swin_jax.nn.embed import sincos_position_embedding_2d

_LAYOUTS = {SwinTransformer: swin_layouts.TIMM, VisionTransformer: vit_layouts.TIMM}


def timm_state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
    """Return the parameters of a Swin or ViT under timm's names and in PyTorch's order of axes.

    Fixed sin-cos positions become learned ones, which timm has. Raises UserError for a model timm has no names for.
    """
    layout = _LAYOUTS.get(type(model))
    if layout is None:
        raise UserError(f"only {' and '.join(known.__name__ for known in _LAYOUTS)} can be written for timm")
    tensors = {}
    for path, variable in parameters_of(model).items():
        sources = layout.sources(path)
        if not sources:
            raise UserError(f"timm has no place for the parameter {path}")
        rule, names = sources[0]
        parts = rule.transform.save(np.asarray(variable[...]))
        tensors.update({name: np.ascontiguousarray(part) for name, part in zip(names, parts, strict=True)})
    if isinstance(model, VisionTransformer) and model.pos_embed is None:
        positions = sincos_position_embedding_2d(model.grid_size, model.num_features)
        prefix = np.zeros((1, model.num_prefix_tokens, model.num_features), np.float32)
        tensors["pos_embed"] = np.concatenate([prefix, positions], axis=1)
    return tensors


def save_timm(model: nnx.Module, path: str | Path) -> None:
    """Write a Swin or ViT as timm's `.safetensors`, whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        safetensors.numpy.save_file(timm_state_dict(model), temporary, metadata={"format": "pt"})
        temporary.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error}") from error

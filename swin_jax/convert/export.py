"""Our weights as files that timm and HF transformers read."""

from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from swin_jax.convert import swin_layouts, text_layouts, vit_layouts
from swin_jax.convert.layouts import Layout, Tensors
from swin_jax.convert.load import parameters_of
from swin_jax.errors import UserError
from swin_jax.models.swin import SwinTransformer
from swin_jax.models.transformer import CausalTransformer, Transformer
from swin_jax.models.vit import VisionTransformer
from swin_jax.nn.embed import sincos_position_embedding_2d

_TIMM = {SwinTransformer: swin_layouts.TIMM, VisionTransformer: vit_layouts.TIMM}
_HF = {CausalTransformer: text_layouts.GPT2, Transformer: text_layouts.MARIAN}


def published_state_dict(model: nnx.Module) -> Tensors:
    """Return a model's parameters as they are published: timm's names for images, HF's for text.

    Raises UserError for a model that neither has.
    """
    if type(model) not in {**_TIMM, **_HF}:
        known = ", ".join(known.__name__ for known in (*_TIMM, *_HF))
        raise UserError(f"a {type(model).__name__} has no published layout to be written in; {known} have")
    return hf_state_dict(model) if type(model) in _HF else timm_state_dict(model)


def timm_state_dict(model: nnx.Module) -> Tensors:
    """Return the parameters of a Swin or ViT under timm's names and in PyTorch's order of axes.

    Fixed sin-cos positions become learned ones, which timm has. Raises UserError for a model timm has no names for.
    """
    layout = _TIMM.get(type(model))
    if layout is None:
        raise UserError(f"only {' and '.join(known.__name__ for known in _TIMM)} can be written for timm")
    tensors = _tensors(model, layout)
    if isinstance(model, VisionTransformer) and model.pos_embed is None:
        positions = sincos_position_embedding_2d(model.grid_size, model.num_features)
        prefix = np.zeros((1, model.num_prefix_tokens, model.num_features), np.float32)
        tensors["pos_embed"] = np.concatenate([prefix, positions], axis=1)
    return tensors


def hf_state_dict(model: nnx.Module) -> Tensors:
    """Return the parameters of a causal model as HF's GPT2LMHeadModel, or of an encoder–decoder as its MarianMTModel.

    Raises UserError for a model that is not built as those are: their positions, norms and biases.
    """
    layout = _HF.get(type(model))
    if layout is None:
        raise UserError(f"only {' and '.join(known.__name__ for known in _HF)} can be written for HF transformers")
    if objection := layout.objection(model):
        raise UserError(f"this model is no {layout.name}, {objection}")
    paths = parameters_of(model).keys()
    for path in paths:
        layer, _, name = path.rpartition(".")
        if name in ("kernel", "scale") and layer != "head" and f"{layer}.bias" not in paths:
            raise UserError(f"this model is no {layout.name}, which has a bias in {layer}")
    return _tensors(model, layout)


def _tensors(model: nnx.Module, layout: Layout) -> Tensors:
    tensors = {}
    for path, variable in parameters_of(model).items():
        sources = layout.sources(path)
        if not sources:
            raise UserError(f"the layout {layout.name} has no place for the parameter {path}")
        rule, names = sources[0]
        parts = rule.transform.save(np.asarray(variable[...]))
        tensors.update({name: np.ascontiguousarray(part) for name, part in zip(names, parts, strict=True)})
    return tensors


def save_timm(model: nnx.Module, path: str | Path) -> None:
    """Write a Swin or ViT as timm's `.safetensors`, whole or not at all."""
    write_safetensors(timm_state_dict(model), path)


def save_hf(model: nnx.Module, path: str | Path) -> None:
    """Write a GPT-2 or Marian as HF's `model.safetensors`, whole or not at all."""
    write_safetensors(hf_state_dict(model), path)


def write_safetensors(tensors: Tensors, path: str | Path) -> None:
    """Write tensors as `.safetensors`, whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        safetensors.numpy.save_file(tensors, temporary, metadata={"format": "pt"})
        temporary.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error}") from error

"""Models by name: `create_model`, `list_models`."""

import inspect
from typing import Any

import jax.numpy as jnp
from flax import nnx

from swin_jax.errors import UserError, did_you_mean
from swin_jax.models import swin, transformer, vit
from swin_jax.models.swin import SwinTransformer
from swin_jax.models.transformer import CausalTransformer, MaskedTransformer, Transformer
from swin_jax.models.vit import VisionTransformer
from swin_jax.named import import_named

__all__ = [
    "CausalTransformer",
    "MaskedTransformer",
    "SwinTransformer",
    "Transformer",
    "VisionTransformer",
    "create_model",
    "list_models",
]

_FAMILIES = {
    "swin": SwinTransformer,
    "vit": VisionTransformer,
    "transformer": Transformer,
    "causal_transformer": CausalTransformer,
    "masked_transformer": MaskedTransformer,
}
_PRESETS = {
    name: (family, options)
    for family, presets in (
        (SwinTransformer, swin.PRESETS),
        (VisionTransformer, vit.PRESETS),
        (Transformer, transformer.PRESETS),
        (CausalTransformer, transformer.CAUSAL_PRESETS),
    )
    for name, options in presets.items()
}
_FACTORIES = ("block", "attention", "mlp", "norm")
_DTYPES = ("dtype", "param_dtype")


def list_models(*families: str) -> list[str]:
    """Return the names of all presets (timm's for images), or of some families: `list_models("swin", "vit")`."""
    for family in families:
        if family not in _FAMILIES:
            raise UserError(f"unknown family of models {family!r}{did_you_mean(family, _FAMILIES)}")
    wanted = {_FAMILIES[family] for family in families or _FAMILIES}
    return sorted(name for name, (family, _) in _PRESETS.items() if family in wanted)


def create_model(name: str, *, rngs: nnx.Rngs, **overrides: Any) -> nnx.Module:
    """Build a published model, with any argument of its constructor overridden.

    `name` is one of `list_models()`, or a family (`"swin"`, `"vit"`, `"transformer"`, `"causal_transformer"`,
    `"masked_transformer"`) whose constructor's defaults then hold, or the `"module:Name"` of a class of your own. The
    factories `block`, `attention`, `mlp` and `norm` may be such strings too, and dtypes names.
    Raises UserError, a ValueError, for an unknown name or argument (naming the nearest) and for values that do not fit.
    """
    if name in _FAMILIES:
        family, options = _FAMILIES[name], {}
    elif name in _PRESETS:
        family, options = _PRESETS[name]
    elif ":" in name:
        family, options = _import("model.name", name), {}
    else:
        known = [*_PRESETS, *_FAMILIES]
        raise UserError(f"unknown model {name!r}{did_you_mean(name, known)} (list_models() names all)")
    arguments = set(inspect.signature(family.__init__).parameters) - {"self", "rngs"}
    for key in overrides:
        if key not in arguments:
            raise UserError(f"{name} takes no argument {key!r}{did_you_mean(key, arguments)}")
    overrides = {key: _resolve(key, value) for key, value in overrides.items()}
    try:
        return family(**{**options, **overrides}, rngs=rngs)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def _resolve(key: str, value: Any) -> Any:
    """Turn the strings that a config can hold into dtypes and factories."""
    if key in _DTYPES:
        try:
            return jnp.dtype(value)
        except TypeError as error:
            raise UserError(f"{key}={value!r} is no dtype") from error
    return _import(key, value) if key in _FACTORIES and isinstance(value, str) else value


def _import(key: str, value: str) -> Any:
    module, _, attribute = value.partition(":")
    try:
        return import_named(module, attribute)
    except UserError:
        raise
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}={value!r} is not importable as 'module:Name': {error}") from error

"""Loading published weights into a model, with every tensor and every parameter accounted for."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isqrt, prod
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from swin_jax.convert import resize as resizing
from swin_jax.convert import swin_layouts, text_layouts, vit_layouts
from swin_jax.convert.layouts import Layout, Tensors, detect
from swin_jax.convert.misfit import HEADS, misfit, unknown_layout
from swin_jax.convert.readers import read_checkpoint
from swin_jax.errors import UserError

LAYOUTS = (*swin_layouts.LAYOUTS, *vit_layouts.LAYOUTS, *text_layouts.LAYOUTS)


@dataclass(frozen=True)
class LoadReport:
    """What `load_pretrained` did with each parameter of the model and each tensor of the file.

    Attributes:
        layout: name of the file's layout.
        loaded: parameters taken as they are, up to the order of axes.
        reshaped: parameter → how it was changed.
        fresh: parameter → why it kept the model's own initial value.
        ignored: the file's tensor or entry → why it was not needed.
    """

    layout: str
    loaded: tuple[str, ...]
    reshaped: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{self.layout}: {len(self.loaded)} parameters loaded"]
        for verb in ("reshaped", "fresh", "ignored"):
            entries = getattr(self, verb)
            if entries:
                reasons = ", ".join(sorted(set(entries.values())))
                parts.append(f"{len(entries)} {verb} ({reasons})")
        return "; ".join(parts)


def load_pretrained(
    model: nnx.Module,
    path: str | Path,
    *,
    fresh_head: bool = False,
    resize: str | None = None,
    antialias: bool = False,
    old_window_size: tuple[int, int] | None = None,
    old_grid_size: tuple[int, int] | None = None,
    class_indices: np.ndarray | None = None,
) -> LoadReport:
    """Load published weights into `model`, in place, and report on every tensor and parameter.

    Reads Swin v1 as the official repository, timm and HF write it, ViT as Google's two repositories, timm and HF do,
    DeiT, and HF's GPT-2 and Marian, from .npz, .safetensors and PyTorch files (`read_checkpoint` tells which paths it
    takes). The layout is told apart by the file's keys. If anything does not fit, the model stays as it was.

    Args:
        fresh_head: keep the model's own heads, for another number of classes.
        resize: "bicubic" or "geometric", to take relative position bias tables to the model's windows that way (see
            `resize_bias_table`), and learned positions to its grid, bicubically.
        antialias: of the resized learned positions; see `resize_positions`.
        old_window_size, old_grid_size: the file's window and grid (height, width) in tokens, where they are not square.
        class_indices: which of the file's classes the model's are, in order, as from ImageNet-22k to ImageNet-1k.

    Raises UserError for what cannot be read, and its subclass LoadError for what is missing, unexpected or of another
    shape.
    """
    if resize not in (None, *resizing.METHODS):
        raise UserError(f"{resize=} is none of {', '.join(map(repr, resizing.METHODS))}")
    tensors, left_out = read_checkpoint(path)
    layout = detect(tensors, LAYOUTS)
    if layout is None:
        raise UserError(unknown_layout(path, tensors))
    if not isinstance(model, layout.model_class):
        wanted = layout.model_class.__name__
        raise UserError(f"{path} holds a {layout.name}, which a {wanted} takes, not a {type(model).__name__}")
    if objection := layout.objection(model):
        raise UserError(f"{path} holds a {layout.name}, {objection}")
    tensors, more_left_out = layout.prepare(tensors)
    ignored = left_out | more_left_out

    parameters = parameters_of(model)
    fresh = {name: "fresh_head=True" for name in parameters if fresh_head and name.startswith(HEADS)}
    values, used, missing, misshapen = _translate(tensors, layout, [name for name in parameters if name not in fresh])
    has_head = "head.kernel" in parameters
    drops_head = "head.kernel" not in values and (has_head or layout.has_class_head)
    ignored |= _unneeded(tensors, layout, used, has_head=has_head, drops_head=drops_head)
    unexpected = [name for name in tensors if name not in used and name not in ignored]

    reshaped = _place_class_position(model, parameters, values)
    if class_indices is not None:
        reshaped |= _pick_classes(values, class_indices)
    if resize:
        for name, change in resizing.changes(model, values, old_window_size, old_grid_size).items():
            values[name] = change.apply(values[name], method=resize, antialias=antialias)
            reshaped[name] = str(change)
    resizable = set()
    for name, value in values.items():
        shape = tuple(parameters[name].shape)
        if not _fits(value.shape, shape):
            misshapen[name] = f"{value.shape} in the file, {shape} in the model"
            if name in resizing.sites(model) and value.shape[-1] == shape[-1] and not resize:
                resizable.add(name)
    if missing or unexpected or misshapen:
        raise misfit(
            f"{path} ({layout.name})", type(model).__name__, missing, unexpected, misshapen, resizable=resizable
        )

    arrays = {}
    for name, value in values.items():
        like = parameters[name]
        arrays[name] = jnp.asarray(value.reshape(like.shape), like.dtype)
    set_parameters(model, arrays)
    loaded = tuple(name for name in parameters if name in values and name not in reshaped)
    return LoadReport(layout.name, loaded, reshaped, fresh, ignored)


def _flat_state(model: nnx.Module) -> dict[str, tuple[tuple, nnx.Variable]]:
    return {".".join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def parameters_of(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Return a model's parameters by name, as "blocks.0.mlp.fc1.kernel"."""
    return {name: variable for name, (_, variable) in _flat_state(model).items()}


def set_parameters(model: nnx.Module, arrays: dict[str, jnp.ndarray]) -> None:
    """Put arrays, by the names of `parameters_of`, into a model."""
    state = _flat_state(model)
    nnx.update(model, nnx.from_flat_state([(state[name][0], state[name][1].replace(a)) for name, a in arrays.items()]))


def _translate(
    tensors: Tensors, layout: Layout, names: Iterable[str]
) -> tuple[Tensors, set[str], list[str], dict[str, str]]:
    """Return the values of our parameters `names`, the tensors used for them, the parameters missing and misshapen."""
    values, used, missing, misshapen = {}, set(), [], {}
    for name in names:
        for rule, sources in layout.sources(name):
            if all(source in tensors for source in sources):
                used.update(sources)
                try:
                    values[name] = rule.transform.load(*(tensors[source] for source in sources))
                except ValueError:  # numpy's for axes that cannot be stacked or transposed so
                    shapes = ", ".join(str(tensors[source].shape) for source in sources)
                    misshapen[name] = f"{shapes} in the file, which are the shapes of something else"
                break
        else:
            missing.append(name)
    return values, used, missing, misshapen


def _unneeded(tensors: Tensors, layout: Layout, used: set[str], *, has_head: bool, drops_head: bool) -> dict[str, str]:
    """Return the tensors that hold nothing for this model, and why."""
    ignored = {}
    head = "of the file's head, where the model keeps its own" if has_head else "of a head, which the model lacks"
    head_names = {name for rule in layout.rules if rule.ours.startswith(HEADS) for name in rule.theirs}
    for name in tensors.keys() - used:
        reason = next((reason for pattern, reason in layout.ignored if re.search(pattern, name)), None)
        if drops_head and (name in head_names or re.search(layout.head_only, name)):
            reason = head
        if reason:
            ignored[name] = reason
    return ignored


def _place_class_position(model: nnx.Module, parameters: dict[str, nnx.Variable], values: Tensors) -> dict[str, str]:
    """Where the file has a position for the class token and the model none, or the reverse, write the same sum.

    A class token is summed with its position anyhow (big_vision keeps the sum, the original ViT the summands).
    """
    positions, token = values.get("pos_embed"), values.get("cls_token")
    if positions is None or token is None or positions.ndim != 3 or model.num_prefix_tokens != 1:
        return {}
    if positions.shape == parameters["pos_embed"].shape:
        return {}
    has_position = isqrt(positions.shape[1]) ** 2 != positions.shape[1]
    if has_position and not model.pos_embed_prefix and isqrt(positions.shape[1] - 1) ** 2 == positions.shape[1] - 1:
        values["cls_token"] = token + positions[:, :1]
        values["pos_embed"] = positions[:, 1:]
        return dict.fromkeys(("cls_token", "pos_embed"), "the class token's position added to the token")
    if not has_position and model.pos_embed_prefix:
        values["pos_embed"] = np.concatenate([np.zeros_like(positions[:, :1]), positions], axis=1)
        return {"pos_embed": "a zero position put before it for the class token"}
    return {}


def _pick_classes(values: Tensors, class_indices: np.ndarray) -> dict[str, str]:
    heads = [name for name in values if name.startswith(HEADS)]
    for name in heads:
        num_classes = values[name].shape[-1]
        if class_indices.size == 0 or class_indices.min() < 0 or class_indices.max() >= num_classes:
            raise UserError(f"the class indices must be some of the file's {num_classes} classes, from 0 on")
        values[name] = values[name][..., class_indices]
    return dict.fromkeys(heads, f"{len(class_indices)} of its classes picked")


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a loaded shape is the parameter's, up to trailing axes merged into one (heads)."""
    merged = len(shape) - 1
    return 0 < len(shape) <= len(wanted) and shape == (*wanted[:merged], prod(wanted[merged:]))

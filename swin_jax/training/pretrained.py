"""Published weights as arrays on the devices: the start of a fine-tuning, or what is evaluated."""

import pathlib
from typing import Any

import jax
import numpy as np

from swin_jax.convert.load import LoadReport, load_pretrained, parameters_of
from swin_jax.convert.misfit import LoadError
from swin_jax.errors import UserError
from swin_jax.training.sharding import path_name
from swin_jax.training.state import ModelDef, TrainState

# What a LoadError advises -> the config's key for it.
_ADVICE = {"pass fresh_head=True": "set init_fresh_head=True", "pass resize='bicubic'": "set init_resize='bicubic'"}


def read_parameters(
    target: TrainState, model_def: ModelDef, path: str, **options: Any
) -> tuple[dict[str, np.ndarray], LoadReport]:
    """Return the parameters that a file has for a model, by name, and the report on them.

    `target` may hold shapes only. Options and errors as of `load_pretrained`.
    """
    model = model_def.merge(target.params, target.model_state)
    report = load_pretrained(model, path, **options)
    parameters = parameters_of(model)
    return {name: np.asarray(parameters[name][...]) for name in parameters if name not in report.fresh}, report


def place(arrays: dict[str, np.ndarray], tree: Any) -> Any:
    """Return a tree of parameters with these arrays in it, by name, each cut over the devices as the leaf it was."""

    def placed(path: tuple[Any, ...], leaf: Any) -> Any:
        array = arrays.get(path_name(path))
        if array is None:
            return leaf
        # A copy, as the state is donated to each step.
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: np.array(array[index]))

    return jax.tree_util.tree_map_with_path(placed, tree)


def read_class_map(path: str) -> np.ndarray | None:
    """Read which of a checkpoint's classes the model's are, one number a line; None for no path."""
    if not path:
        return None
    try:
        return np.array(pathlib.Path(path).read_text().split(), np.int64)
    except (OSError, ValueError) as error:
        raise UserError(f"the class map {path} cannot be read: {error}") from error


def read_initial(
    target: TrainState, model_def: ModelDef, path: str, *, fresh_head: bool, resize: str, class_map: str
) -> tuple[dict[str, np.ndarray], LoadReport]:
    """Return what a fine-tuning starts from; see `init_from` in the config. Raises UserError for what does not fit."""
    try:
        return read_parameters(
            target,
            model_def,
            path,
            fresh_head=fresh_head,
            resize=resize or None,
            class_indices=read_class_map(class_map),
        )
    except LoadError as error:
        message = str(error)
        for advice, key in _ADVICE.items():
            message = message.replace(advice, key)
        raise UserError(message) from error

"""One file for each kind of work: its loss, its metrics and its evaluation."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from flax import nnx

from swin_jax.errors import UserError, did_you_mean
from swin_jax.named import import_named

BUILT_IN = {
    "classification": "swin_jax.tasks.classification:Classification",
    "multi_label": "swin_jax.tasks.multi_label:MultiLabel",
    "language_modeling": "swin_jax.tasks.language:LanguageModeling",
    "sequence_to_sequence": "swin_jax.tasks.language:SequenceToSequence",
}
LOSS_WEIGHT = "loss_weight"


class Task(Protocol):
    """What the training loop knows of a kind of work. Everything here but `summarize` runs inside jit."""

    best_metric: str  # the figure of `summarize` whose highest value makes a checkpoint the best one,
    lowest_is_best: bool  # or whose lowest

    def loss(
        self, model: nnx.Module, batch: Mapping[str, jax.Array], rngs: nnx.Rngs
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the mean loss to minimise and scalars to log; `rngs` has the streams `dropout` and `augment`.

        Where the mean is over other things than examples, such as tokens, the scalar `LOSS_WEIGHT` is their number, and
        microbatches count by it (`training/accumulation.py`). Loss and scalars must be finite even where it is 0.
        """

    def evaluate(self, model: nnx.Module, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return sums over the examples where `batch["valid"]`, their number among them as `count`."""

    def summarize(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Turn sums over the whole evaluation set into the figures to report."""


def create_task(name: str, **options: Any) -> Task:
    """Return the task `name`, a built-in one or `my_module:MyTask`, made with `options`."""
    return _factory(name)(**options)


def task_arguments(name: str) -> set[str] | None:
    """Return the options that a task takes, or None where it takes any."""
    parameters = inspect.signature(_factory(name)).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return None if takes_any else set(parameters)


def _factory(name: str) -> Callable[..., Task]:
    module_name, _, attribute = BUILT_IN.get(name, name).partition(":")
    if not attribute:
        raise UserError(f"unknown task {name!r}{did_you_mean(name, BUILT_IN)}")
    try:
        if name in BUILT_IN:
            return getattr(importlib.import_module(module_name), attribute)
        return import_named(module_name, attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"task {name!r} cannot be imported: {error}") from error

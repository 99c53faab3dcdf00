"""One file for each kind of work: its loss, its metrics and its evaluation."""

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

import jax
from flax import nnx

from swin_jax.errors import UserError, did_you_mean

BUILT_IN = {
    "classification": "swin_jax.tasks.classification:Classification",
    "multi_label": "swin_jax.tasks.multi_label:MultiLabel",
}
LOSS_WEIGHT = "loss_weight"


class Task(Protocol):
    """What the training loop knows of a kind of work. Everything here but `summarize` runs inside jit."""

    best_metric: str  # the figure of `summarize` whose highest value makes a checkpoint the best one

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
    module_name, _, attribute = BUILT_IN.get(name, name).partition(":")
    if not attribute:
        raise UserError(f"unknown task {name!r}{did_you_mean(name, BUILT_IN)}")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"task {name!r} cannot be imported: {error}") from error
    return factory(**options)

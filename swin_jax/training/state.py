"""What training carries from step to step, as plain nested dicts, and the way from there to an NNX model and back."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from swin_jax.errors import UserError
from swin_jax.training.sharding import state_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """One pytree of arrays: donated to each step, checkpointed whole. No random state: that is (seed, step)."""

    step: jax.Array  # int32 [], updates done
    params: dict[str, Any]
    model_state: dict[str, Any]  # arrays of the model that no gradient reaches, such as BatchNorm's averages
    opt_state: optax.OptState
    ema_params: dict[str, Any] | None

    @property
    def eval_params(self) -> dict[str, Any]:
        """The parameters to evaluate: the averaged ones where there are any."""
        return self.params if self.ema_params is None else self.ema_params


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ModelDef:
    """A model without its arrays."""

    graphdef: nnx.GraphDef
    paths: tuple[tuple[Any, ...], ...]  # NNX's own paths: those through an nnx.List have integers

    def merge(self, params: dict[str, Any], model_state: dict[str, Any]) -> nnx.Module:
        """Return the model that has these arrays."""
        flat = {**flatten_dict(params), **flatten_dict(model_state)}
        own = unflatten_dict({path: flat[tuple(map(str, path))] for path in self.paths})
        return nnx.merge(self.graphdef, own)


def split_model(model: nnx.Module) -> tuple[ModelDef, dict[str, Any], dict[str, Any]]:
    """Split a model into its definition, its parameters and its other arrays, the last two as dicts with string keys.

    Raises UserError for a model that holds random state: randomness is passed to the call as `rngs`.
    """
    graphdef, params, random, rest = nnx.split(model, nnx.Param, nnx.RngState, ...)
    random_paths = [".".join(map(str, path[:-1])) for path, _ in nnx.to_flat_state(random)]
    if random_paths:
        raise UserError(f"the model holds random state in {random_paths[0]!r}: build dropout without rngs")
    flat_params, flat_rest = (flatten_dict(nnx.to_pure_dict(part)) for part in (params, rest))
    model_def = ModelDef(graphdef, (*flat_params, *flat_rest))
    return model_def, _string_keys(flat_params), _string_keys(flat_rest)


def _string_keys(flat: dict[tuple[Any, ...], Any]) -> dict[str, Any]:
    return unflatten_dict({tuple(map(str, path)): jnp.asarray(leaf) for path, leaf in flat.items()})


def abstract_state(
    build_model: Callable[[], nnx.Module], *, optimizer: optax.GradientTransformation, ema: bool, mesh: Mesh
) -> tuple[TrainState, ModelDef, Callable[[], TrainState]]:
    """Return the state's shapes and shardings, the model's definition, and `init() -> TrainState` that fills them.

    `init` builds the model inside jit with those shardings, so that no device ever holds more than its part.
    """

    def init():
        model_def, params, model_state = split_model(build_model())
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            model_state=model_state,
            opt_state=optimizer.init(params),
            ema_params=jax.tree.map(jnp.copy, params) if ema else None,
        )
        return state, model_def

    shapes, model_def = jax.eval_shape(init)
    shardings = state_shardings(shapes, mesh)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
    return abstract, model_def, jax.jit(lambda: init()[0], out_shardings=shardings, compiler_options=run_once_options())


def run_once_options() -> dict[str, int] | None:
    """Return compiler options for what runs once: on the CPU, XLA takes a third of the time without optimizing."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None

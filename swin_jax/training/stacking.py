"""The parameters of layers that a scan runs, stacked for as long as a run lasts.

On disk, in published weights and in rules by path each layer has arrays of its own: `blocks.0.norm1.scale`,
`blocks.1.norm1.scale`, ... A scan wants them stacked, `blocks.kinds.0.norm1.scale`: to do that in each step copies all
of them, and has XLA compile the optimizer for each. `Layout` goes from one form to the other, and back to save.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from swin_jax.nn.layers import LayerStack, num_scanned
from swin_jax.training.parameter_groups import Multipliers, decay_factors, learning_rate_factors
from swin_jax.training.state import ModelDef, split_model

ELEMENTWISE = ("adamw", "sgd", "lion")
"""Optimizers that do not ask which array an entry is in. The others keep a state by layer; the step stacks for them."""


@dataclasses.dataclass(frozen=True)
class Layers:
    """A list of layers that is scanned: its path in the parameters, their number, and after how many they repeat."""

    path: tuple[str, ...]
    count: int
    period: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which lists of layers are stacked, for a model that then is `model_def`; none: the ordinary form."""

    model_def: ModelDef
    lists: tuple[Layers, ...] = ()

    def stack(self, tree: Any) -> Any:
        """Return a state, or any part of it, with the layers' arrays stacked; arrays outside of jit are given up."""
        return self._map(_stack_layers, tree)

    def unstack(self, tree: Any) -> Any:
        """Return what `stack` was given."""
        return self._map(_unstack_layers, tree)

    def shared(self, tree: Any) -> Any:
        """Return values by parameter, such as weight decay, stacked: one for all layers of a kind, which must agree.

        Raises ValueError if they do not.
        """
        return self._map(functools.partial(_stack_layers, combine=_agreed), tree)

    def ordinary_shapes(self, params: Any) -> Any:
        """Return the shapes of stacked parameters in the ordinary form, whose paths the rules are about."""
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
        return self.unstack(shapes)

    def _map(self, change: Callable[[Mapping[str, Any], Layers], Any], tree: Any) -> Any:
        if not self.lists:
            return tree

        def in_parameters(params: Any) -> Any:  # or moments, averages: dicts of the same paths
            for layers in self.lists:
                params = _replaced(params, layers.path, functools.partial(change, layers=layers))
            return params

        def is_dict(node: Any) -> bool:
            return isinstance(node, dict)

        return jax.tree.map(lambda node: in_parameters(node) if is_dict(node) else node, tree, is_leaf=is_dict)


def stacked_layout(build_model: Callable[[], nnx.Module]) -> Layout:
    """Return the layout with all layers stacked that the model scans; not those of a list that has some left over."""
    lists = []

    def build() -> tuple[ModelDef, Any, Any]:
        model = build_model()
        for path, module in [*nnx.iter_modules(model)]:
            for name, period in getattr(module, "SCANNED", {}).items():
                layers = getattr(module, name, ())
                if module.scan and len(layers) == num_scanned(len(layers), period):
                    setattr(module, name, LayerStack(layers, period=period))
                    lists.append(Layers((*map(str, path), name), len(layers), period))
        return split_model(model)

    model_def = jax.eval_shape(build)[0]
    return Layout(model_def, tuple(lists))


def can_stack(
    layout: Layout,
    params: Any,
    *,
    optimizer: str,
    learning_rate_multipliers: Multipliers,
    weight_decay_multipliers: Multipliers,
    layer_decay: float,
) -> bool:
    """Return whether this optimizer updates stacked arrays as it would each layer's own; `params` are the ordinary."""
    if optimizer not in ELEMENTWISE:
        return False
    rates = learning_rate_factors(params, multipliers=learning_rate_multipliers, layer_decay=layer_decay)
    try:
        layout.shared(rates), layout.shared(decay_factors(params, weight_decay_multipliers))
    except ValueError:
        return False
    return True


def _replaced(params: Any, path: Sequence[str], change: Callable[[Any], Any]) -> Any:
    """Return `params` with what is at `path` changed, if there is anything."""
    if not path:
        return change(params)
    if not isinstance(params, dict) or path[0] not in params:
        return params
    return {**params, path[0]: _replaced(params[path[0]], path[1:], change)}


def _stack_layers(
    by_number: Mapping[str, Any], layers: Layers, combine: Callable[..., Any] | None = None
) -> dict[str, Any]:
    kinds = [
        [by_number[str(number)] for number in range(kind, layers.count, layers.period)] for kind in range(layers.period)
    ]
    return {"kinds": {str(kind): jax.tree.map(combine or _stack, *alike) for kind, alike in enumerate(kinds)}}


def _unstack_layers(stacked: Mapping[str, Any], layers: Layers) -> dict[str, Any]:
    rounds = layers.count // layers.period
    by_number = {}
    for kind in range(layers.period):
        parts = jax.tree.map(lambda leaf: _unstack(leaf, rounds), stacked["kinds"][str(kind)])
        for number in range(rounds):
            by_number[str(number * layers.period + kind)] = jax.tree.map(
                lambda part, number=number: part[number], parts, is_leaf=lambda node: isinstance(node, list)
            )
    return {str(number): by_number[str(number)] for number in range(layers.count)}


def _stack(*leaves: Any) -> Any:
    """Stack arrays, or their descriptions, each staying on its devices as it was."""
    first = leaves[0]
    if isinstance(first, jax.ShapeDtypeStruct):
        cut = None if first.sharding is None else _cut_as_each(first.sharding)
        return jax.ShapeDtypeStruct((len(leaves), *first.shape), first.dtype, sharding=cut)
    if isinstance(first, jax.core.Tracer):
        return jnp.stack(leaves)
    stacked = _stacker(_cut_as_each(first.sharding))(leaves)
    for leaf in leaves:
        leaf.delete()
    return stacked


def _unstack(leaf: Any, count: int) -> list[Any]:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)] * count
    if isinstance(leaf, jax.core.Tracer):
        return [leaf[number] for number in range(count)]
    spec = PartitionSpec(*leaf.sharding.spec[1:])
    return _unstacker(NamedSharding(leaf.sharding.mesh, spec), count)(leaf)


def _cut_as_each(sharding: NamedSharding) -> NamedSharding:
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


@functools.cache
def _stacker(sharding: NamedSharding) -> Callable[..., Any]:
    return jax.jit(jnp.stack, out_shardings=sharding)


@functools.cache
def _unstacker(sharding: NamedSharding, count: int) -> Callable[..., Any]:
    return jax.jit(lambda leaf: [leaf[number] for number in range(count)], out_shardings=[sharding] * count)


def _agreed(*values: Any) -> Any:
    if any(value != values[0] for value in values):
        raise ValueError(f"layers of a kind differ: {values}")
    return values[0]

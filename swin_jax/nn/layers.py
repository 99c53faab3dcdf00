"""Layers one after the other: as a Python loop, or as one `lax.scan` whose body is compiled once for all of them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from swin_jax.nn.attention import is_recording
from swin_jax.nn.blocks import DropPath, rematerialized
from swin_jax.nn.rng import child


def run_layers(
    layers: "Sequence[nnx.Module] | LayerStack",
    x: Array,
    *,
    name: str,
    rngs: nnx.Rngs | None,
    remat: bool = False,
    scan: bool = False,
    period: int = 1,
    **inputs: Any,
) -> Array:
    """Return `x` after all layers, each called as `layer(x, rngs=..., **inputs)` with rngs of (`name`, its number).

    With `scan` the parameters of layers that are alike are stacked, and one body serves for them all; `period` is after
    how many layers they repeat (2 where every second one is shifted). The outcome, and the randomness, is that of the
    loop. Two layers or fewer of a kind gain nothing and stay a loop, as does anything recorded.

    A layer may return a tuple, of which `x` is the first. Raises ValueError if layers to scan differ in more than their
    parameters and drop path rates, or have arrays that are no parameters, such as BatchNorm's averages.
    """
    if isinstance(layers, LayerStack):
        return layers(x, name=name, rngs=rngs, remat=remat, **inputs)
    scanned = num_scanned(len(layers), period) if scan and not is_recording() else 0
    if scanned:
        x = LayerStack(layers[:scanned], period=period)(x, name=name, rngs=rngs, remat=remat, **inputs)
    for index in range(scanned, len(layers)):
        layer_rngs = child(rngs, name, index)
        call = rematerialized if remat else _call
        x = _first(call(layers[index], x, layer_rngs, **inputs))
    return x


def num_scanned(count: int, period: int) -> int:
    """Return how many of `count` layers a scan runs: whole rounds, if there are at least two of them."""
    return count // period * period if count >= 2 * period else 0


class LayerStack(nnx.Module):
    """Layers as one of each kind, `kinds`, whose parameters have the layers of that kind as their first axis.

    Layer `number` is the one of kind `number % period` in round `number // period`.
    """

    def __init__(self, layers: Sequence[nnx.Module], *, period: int):
        opened = [_open(layer) for layer in layers]
        for index, (definition, *_) in enumerate(opened):
            if definition != opened[index % period][0]:
                raise ValueError(
                    f"scan=True needs layers that are alike, and layer {index} differs from an earlier one"
                )
        kinds = []
        for kind in range(period):
            alike = [arrays for _, arrays, _ in opened[kind::period]]
            kinds.append(nnx.merge(opened[kind][0], jax.tree.map(lambda *leaves: jnp.stack(leaves), *alike)))
        self.kinds = nnx.List(kinds)
        self.drop_path_rates = tuple(rates for *_, rates in opened)

    def __call__(self, x: Array, *, name: str, rngs: nnx.Rngs | None, remat: bool, **inputs: Any) -> Array:
        """Return `x` after all layers, see `run_layers`."""
        period = len(self.kinds)
        definitions, arrays = zip(*(nnx.split(kind) for kind in self.kinds), strict=True)
        rates = [jnp.array(self.drop_path_rates[kind::period], jnp.float32) for kind in range(period)]
        dropped = [[*map(any, zip(*self.drop_path_rates[kind::period], strict=True))] for kind in range(period)]

        def one_round(x: Array, scanned: tuple[Array, Any, Any]) -> tuple[Array, None]:
            number, arrays, rates = scanned
            for kind, definition in enumerate(definitions):
                layer = nnx.merge(definition, arrays[kind])
                for index, drop_path in enumerate(_drop_paths(layer)):
                    if dropped[kind][index]:  # else it is 0, without a mask
                        drop_path.rate = nnx.data(rates[kind][index])
                x = _first(layer(x, rngs=child(rngs, name, number * period + kind), **inputs))
            return x, None

        body = jax.checkpoint(one_round, prevent_cse=False, policy=None if remat else _is_kept)
        rounds = jnp.arange(len(self.drop_path_rates) // period)
        return jax.lax.scan(body, x, (rounds, arrays, rates))[0]


def _is_kept(primitive: Any, *_: Any, **__: Any) -> bool:
    """Tell jax.checkpoint whether a scan stacks an outcome for the backward pass: all but data in another order.

    Stacked, it would be put back in order, and what `products.py` wrote transposed is transposed for its layout alone.
    """
    return primitive not in (jax.lax.transpose_p, jax.lax.optimization_barrier_p)


def _open(layer: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, tuple[float, ...]]:
    """Return what layers of a kind share, the layer's parameters, and its drop path rates."""
    twin = nnx.merge(*nnx.split(layer))  # the same arrays in modules of its own
    rates = []
    for drop_path in _drop_paths(twin):
        rates.append(drop_path.rate)
        drop_path.rate = 0.0
    definition, parameters, others = nnx.split(twin, nnx.Param, ...)
    if jax.tree.leaves(others):
        raise ValueError(f"scan=True needs layers whose arrays are parameters, {type(layer).__name__} has others")
    return definition, parameters, tuple(rates)


def _drop_paths(layer: nnx.Module) -> list[DropPath]:
    return [module for _, module in nnx.iter_modules(layer) if isinstance(module, DropPath)]


def _call(layer: nnx.Module, x: Array, rngs: nnx.Rngs | None, **inputs: Any) -> Any:
    return layer(x, rngs=rngs, **inputs)


def _first(result: Any) -> Array:
    return result[0] if isinstance(result, tuple) else result

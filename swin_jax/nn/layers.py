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
    layers: Sequence[nnx.Module],
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
    rounds = len(layers) // period
    scanned = rounds * period if scan and rounds > 1 and not is_recording() else 0
    if scanned:
        x = _scan(layers[:scanned], x, name=name, rngs=rngs, remat=remat, period=period, inputs=inputs)
    for index in range(scanned, len(layers)):
        layer_rngs = child(rngs, name, index)
        call = rematerialized if remat else _call
        x = _first(call(layers[index], x, layer_rngs, **inputs))
    return x


def _scan(
    layers: Sequence[nnx.Module],
    x: Array,
    *,
    name: str,
    rngs: nnx.Rngs | None,
    remat: bool,
    period: int,
    inputs: dict[str, Any],
) -> Array:
    opened = [_open(layer) for layer in layers]
    definitions = [definition for definition, _, _ in opened[:period]]
    for index, (definition, _, _) in enumerate(opened):
        if definition != definitions[index % period]:
            raise ValueError(f"scan=True needs layers that are alike, and {name}.{index} differs from an earlier one")

    def stacked(offset: int) -> Any:
        """Return the arrays and drop path rates of every `period`-th layer, stacked."""
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(rest for _, *rest in opened[offset::period]))

    def one_round(x: Array, scanned: tuple[Array, list[Any]]) -> tuple[Array, None]:
        number, parts = scanned
        for offset, (definition, (arrays, rates)) in enumerate(zip(definitions, parts, strict=True)):
            layer = nnx.merge(definition, arrays)
            for drop_path, rate in zip(_drop_paths(layer), rates, strict=True):
                drop_path.rate = nnx.data(rate)
            x = _first(layer(x, rngs=child(rngs, name, number * period + offset), **inputs))
        return x, None

    body = jax.checkpoint(one_round, prevent_cse=False) if remat else one_round
    rounds = jnp.arange(len(layers) // period)
    return jax.lax.scan(body, x, (rounds, [stacked(offset) for offset in range(period)]))[0]


def _open(layer: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, list[Array]]:
    """Return what layers of a kind share, the layer's parameters, and its drop path rates."""
    twin = nnx.merge(*nnx.split(layer))  # the same arrays in modules of its own
    rates = []
    for drop_path in _drop_paths(twin):
        rates.append(jnp.float32(drop_path.rate))
        drop_path.rate = 0.0
    definition, parameters, others = nnx.split(twin, nnx.Param, ...)
    if jax.tree.leaves(others):
        raise ValueError(f"scan=True needs layers whose arrays are parameters, {type(layer).__name__} has others")
    return definition, parameters, rates


def _drop_paths(layer: nnx.Module) -> list[DropPath]:
    return [module for _, module in nnx.iter_modules(layer) if isinstance(module, DropPath)]


def _call(layer: nnx.Module, x: Array, rngs: nnx.Rngs | None, **inputs: Any) -> Any:
    return layer(x, rngs=rngs, **inputs)


def _first(result: Any) -> Array:
    return result[0] if isinstance(result, tuple) else result

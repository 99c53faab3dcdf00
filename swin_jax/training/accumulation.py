"""Gradient accumulation: one update from several microbatches, one after the other inside the compiled step."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from swin_jax.tasks import LOSS_WEIGHT


def microbatches(batch: Mapping[str, jax.Array], number: int, mesh: Mesh) -> dict[str, jax.Array]:
    """Return the batch `[B, ...]` as `[number, B / number, ...]`: microbatch i has the examples i, i + number, ...

    So a microbatch is spread over the devices as the batch was, no example changes its device, and the microbatches
    are the same on any number of devices.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))

    def cut(array: jax.Array) -> jax.Array:
        array = array.reshape(-1, number, *array.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(array, sharding)

    return {name: cut(array) for name, array in batch.items()}


def accumulate(
    gradients: Callable[[jax.Array, dict[str, jax.Array], Any], tuple[dict[str, jax.Array], Any, Any]],
    batches: dict[str, jax.Array],
    model_state: Any,
    *,
    like: Any,
) -> tuple[dict[str, jax.Array], Any, Any]:
    """Return what `gradients(index, batch, model_state) -> (metrics, model_state, gradient)` gives for all batches.

    The gradient, shaped and sharded as `like`, is summed in float32. Gradient and metrics are means over the batches,
    weighted by `LOSS_WEIGHT` where the task reports it; `model_state` goes from each batch to the next.
    """

    def add(carry, numbered):
        model_state, sums = carry
        metrics, model_state, grads = gradients(*numbered, model_state)
        weight = jnp.asarray(metrics.get(LOSS_WEIGHT, 1.0), jnp.float32)
        sums = jax.tree.map(lambda total, grad: total + weight * grad.astype(jnp.float32), sums, grads)
        return (model_state, sums), (metrics, weight)

    zeros = jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(jnp.zeros(leaf.shape, jnp.float32), leaf.sharding), like
    )
    indices = jnp.arange(len(jax.tree.leaves(batches)[0]))
    (model_state, sums), (metrics, weights) = jax.lax.scan(add, (model_state, zeros), (indices, batches))
    total = weights.sum()
    divisor = jnp.where(total == 0, 1, total)  # a batch of padding alone teaches nothing
    grads = jax.tree.map(lambda leaf, grad: (grad / divisor).astype(leaf.dtype), like, sums)
    means = {name: (value * weights).sum() / divisor for name, value in metrics.items()}
    return means | ({LOSS_WEIGHT: total} if LOSS_WEIGHT in metrics else {}), model_state, grads

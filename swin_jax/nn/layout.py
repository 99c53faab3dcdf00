"""What layers know of devices: that a batch stays cut where parameters are cut too, and whether heads are cut."""

import jax
from jax import Array
from jax.sharding import PartitionSpec

BATCH_AXES = ("data", "fsdp")  # of the mesh that is set, if one is; the axes over which a batch is cut
PARAMETER_AXIS = "fsdp"  # over which parameters are cut for storage alone
HEADS_AXIS = "tensor"  # over which heads are cut, and the kernels that make them


def keep_batch_cut(x: Array) -> Array:
    """Return `x` `[B * ..., C]`, cut over the devices as the batch is; its last axis stays as XLA likes it.

    Left alone, XLA takes a parameter that is cut for storage for one that is cut for computation: it gathers the whole
    batch on every device, multiplies it by a part of the kernel, and adds up what comes out.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get(PARAMETER_AXIS, 1) == 1:
        return x
    parts = 1
    for axis in BATCH_AXES:
        parts *= mesh.shape.get(axis, 1)
    if x.shape[0] % parts:
        return x
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES, *free))


def are_heads_cut() -> bool:
    """Return whether attention heads are cut over the devices of the mesh that is set."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape.get(HEADS_AXIS, 1) > 1

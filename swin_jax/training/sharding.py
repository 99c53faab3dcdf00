"""Where every array lives: the device mesh, the rules for parameters, and batches.

Three mesh axes: `data` (replicas), `fsdp` (parameters and their optimizer state cut up, gathered for use) and `tensor`
(attention heads and hidden units cut up). A batch is cut over `data` and `fsdp`.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from swin_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

# Path of a parameter -> the axis of it that `tensor` cuts: heads and hidden units on the way in, again on the way out.
TENSOR_RULES = (
    (r"\.qkv\.kernel$", 2),  # [C, 3, heads, head_dim]
    (r"\.qkv\.bias$", 1),  # [3, heads, head_dim]
    (r"\.relative_position_bias_table$", 1),  # [positions, heads]
    (r"attention\.proj\.kernel$", 0),  # [heads * head_dim, C]
    (r"\.fc1\.kernel$", 1),  # [C, hidden]
    (r"\.fc1\.bias$", 0),
    (r"\.fc2\.kernel$", 0),  # [hidden, C]
)
HEARTBEAT_SECONDS = 300  # while they start and compile hosts may be busy with nothing else for long
MIN_FSDP_SIZE = 1024  # smaller parameters cost more to gather than they save


def initialize_distributed() -> None:
    """Join the other hosts, before any other use of JAX.

    They are found from the cluster (Slurm, Open MPI, Cloud TPU, TPUs on GKE), or from the variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. JAX ends all if one gives no sign of life for
    `HEARTBEAT_SECONDS`; `hosts.py` is sooner. Raises UserError if they cannot be joined.
    """
    try:
        numbers = {name: os.environ.get(f"JAX_{name.upper()}") for name in ("num_processes", "process_id")}
        numbers = {name: int(number) for name, number in numbers.items() if number}
        jax.distributed.initialize(
            **numbers, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=HEARTBEAT_SECONDS
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the other hosts cannot be joined: {str(error).splitlines()[0]}") from error


def path_name(path: tuple[Any, ...]) -> str:
    """Return a pytree path as `stages.0.blocks.1.mlp.fc1.kernel`."""
    return ".".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh over all devices of all hosts; `data=-1` takes those that the other two axes leave."""
    num_devices = jax.device_count() if devices is None else len(devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    bad = [f"mesh.{axis}={size}" for axis, size in sizes.items() if size < 1 and (axis, size) != ("data", -1)]
    if bad:
        raise UserError(f"a mesh axis is at least 1 (data may be -1): {', '.join(bad)}")
    if data == -1:
        sizes["data"] = max(num_devices // (fsdp * tensor), 1)
    if math.prod(sizes.values()) != num_devices:
        shape = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise UserError(f"the mesh {shape} does not fit the {num_devices} device(s) that there are")
    devices = jax.devices() if devices is None else devices
    if len({getattr(device, "slice_index", 0) for device in devices}) > 1:
        raise UserError("the devices are of several TPU slices, and a mesh over slices is not supported")
    # jax.make_mesh refuses an axis of 16 on a torus of 4 x 8 x 8
    grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def partition_spec(path: str, shape: tuple[int, ...], axis_sizes: Mapping[str, int]) -> PartitionSpec:
    """Return how one array is cut: `tensor` by rule, `fsdp` along the largest axis left, each where it divides."""
    spec: list[str | None] = [None] * len(shape)
    for rule, axis in TENSOR_RULES:
        if re.search(rule, path) and axis < len(shape) and shape[axis] % axis_sizes["tensor"] == 0:
            spec[axis] = "tensor"
    if math.prod(shape) >= MIN_FSDP_SIZE:
        free = [axis for axis in range(len(shape)) if spec[axis] is None and shape[axis] % axis_sizes["fsdp"] == 0]
        if free:
            spec[max(free, key=lambda axis: shape[axis])] = "fsdp"
    return PartitionSpec(*(name if name and axis_sizes[name] > 1 else None for name in spec))


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Return the sharding of every array in a (possibly abstract) TrainState.

    Optimizer state and averaged parameters end in their parameter's path and have its shape, so the same rules cut
    them alike.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, partition_spec(path_name(path), leaf.shape, mesh.shape)), state
    )


def cut_as(grads: Any, like: Any, mesh: Mesh) -> Any:
    """Return gradients cut as their parameters, so that a compiler that can may add up only each device's part."""
    if mesh.shape["fsdp"] == 1:
        return grads
    return jax.tree.map(lambda grad, leaf: jax.lax.with_sharding_constraint(grad, leaf.sharding), grads, like)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its first axis over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def batch_shards(mesh: Mesh) -> int:
    """Return into how many parts a batch is cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch_size(batch_size: int, mesh: Mesh, *, accumulation_steps: int = 1) -> None:
    """Raise a UserError unless the batch can be cut evenly into microbatches, over the mesh and over the hosts."""
    shards = batch_shards(mesh)
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
    if batch_size % shards:
        raise UserError(
            f"batch_size={batch_size} is not divisible by the {shards} devices that share a batch "
            f"(mesh data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']})"
        )
    if batch_size % accumulation_steps:
        raise UserError(f"{batch_size=} is not divisible by {accumulation_steps=}")
    if batch_size // accumulation_steps % shards:
        raise UserError(
            f"a microbatch of batch_size / accumulation_steps = {batch_size // accumulation_steps} is not divisible by "
            f"the {shards} devices that share it"
        )
    if shards % jax.process_count():
        raise UserError(f"mesh data x fsdp = {shards} is not divisible by the {jax.process_count()} hosts")


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Return this host's part of a batch as part of the global arrays, on the devices."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}

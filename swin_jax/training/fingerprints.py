"""Fingerprints of arrays, 32 bits each, the same on any devices and in numpy."""

import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swin_jax.training.sharding import path_name
from swin_jax.training.state import TrainState, run_once_options

BLOCK = 1 << 20  # elements that numpy hashes at a time


def fingerprints(state: TrainState) -> dict[str, int]:
    """Return the fingerprint of each array by its path, computed where the arrays are."""
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    everywhere = state.step.sharding
    compute = jax.jit(_fingerprint_leaves, out_shardings=everywhere, compiler_options=run_once_options())
    return dict(zip(names, np.asarray(compute(jax.tree.leaves(state))).tolist(), strict=True))


def _fingerprint_leaves(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([fingerprint(leaf) for leaf in leaves])


def fingerprint(array: jax.Array) -> jax.Array:
    """Sum over all elements, modulo 2**32, of a hash of (bits, position) that is one-to-one in the bits."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    width = min(array.dtype.itemsize, 4) * 8
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{width}")).astype(jnp.uint32)
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    bits = _mix(bits ^ _mix(position + jnp.uint32(0x9E3779B9)))
    return bits.sum(dtype=jnp.uint32)


def _mix(bits: jax.Array) -> jax.Array:
    """Apply MurmurHash3's 32-bit finalizer, a bijection."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def host_fingerprint(array: np.ndarray) -> int:
    """Return what `fingerprint` does, in numpy, without a device."""
    width = min(array.dtype.itemsize, 4)
    bits = np.ascontiguousarray(array).reshape(-1).view(f"uint{8 * width}")
    total = 0
    for start in range(0, bits.size, BLOCK):
        block = bits[start : start + BLOCK].astype(np.uint32)
        position = np.arange(start, start + block.size, dtype=np.uint64).astype(np.uint32)
        total += int(_mix_on_host(block ^ _mix_on_host(position + np.uint32(0x9E3779B9))).sum(dtype=np.uint64))
    return total % 2**32


def _mix_on_host(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> np.uint32(16))


def checksum(value: Any) -> int:
    """Return the CRC of anything that JSON can hold."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())

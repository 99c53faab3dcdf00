"""Keys by name: every layer derives its own from its path, so swapping one layer leaves the others' keys alone."""

import zlib

import jax
import numpy as np
from flax import nnx


def child(rngs: nnx.Rngs | None, *path: str | int) -> nnx.Rngs | None:
    """Return the `Rngs` of a sub-layer: every stream's key folded with each part of `path`; None stays None.

    Unlike `rngs.fork()`, this neither counts up nor depends on what was drawn before: it is a function of (key, path).
    """
    if rngs is None:
        return None
    streams = {}
    for name, stream in rngs.items():
        key = stream.key[...]
        for part in path:
            key = jax.random.fold_in(key, part if isinstance(part, int) else zlib.crc32(part.encode()))
        streams[name] = key
    result = nnx.Rngs(**streams)
    for _, stream in result.items():
        # As no tracer. With each draw flax asks a count for its sharding, and a tracer, which has none, searches the
        # whole trace for its origin first: two thirds of the time that a large model took to trace.
        stream.count = nnx.RngCount(np.zeros(stream.key.shape, np.uint32), tag=stream.tag)
    return result

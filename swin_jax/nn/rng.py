"""Keys by name: every layer derives its own from its path, so swapping one layer leaves the others' keys alone."""

import zlib

import jax
from flax import nnx


def child(rngs: nnx.Rngs | None, *path: str | int | jax.Array) -> nnx.Rngs | None:
    """Return the `Rngs` of a sub-layer: every stream's key folded with each part of `path`; None stays None.

    Unlike `rngs.fork()`, this neither counts up nor depends on what was drawn before: it is a function of (key, path).
    """
    if rngs is None:
        return None
    streams = {}
    for name, stream in rngs.items():
        key = stream.key[...]
        for part in path:
            key = jax.random.fold_in(key, zlib.crc32(part.encode()) if isinstance(part, str) else part)
        streams[name] = key
    return nnx.Rngs(**streams)

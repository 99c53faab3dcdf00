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
    children = nnx.Rngs()
    for name, stream in rngs.items():
        key = stream.key[...]
        for part in path:
            key = jax.random.fold_in(key, zlib.crc32(part.encode()) if isinstance(part, str) else part)
        setattr(children, name, _Stream(key, tag=stream.tag))
    return children


class _Stream(nnx.RngStream):
    """The same keys as Flax's, counted in Python.

    Flax counts in an array, and for every draw that is traced JAX looks through all that was traced before: the time to
    trace a model grew with the square of its depth.
    """

    def __init__(self, key: jax.Array, *, tag: str):
        super().__init__(key, tag=tag)
        self.draws = 0

    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], self.draws)
        self.draws += 1
        return key

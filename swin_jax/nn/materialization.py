"""Arrays that XLA for CPU writes to memory once, where it would compute them anew for each of their uses.

It fuses cheap operations into all that need their outcome. The gradient of a residual stream is a sum with a term from
each later layer, and fused so, every layer computes that sum from its beginning. Elsewhere nothing is done.
"""

import jax
from jax import Array
from jax.experimental.xla_metadata import set_xla_metadata

_function = jax.jit(jax.lax.optimization_barrier)  # of the identity JAX would make nothing


def materialized(x: Array) -> Array:
    """Return `x`. On a CPU, XLA fuses nothing before it with anything after it: fusion ends at calls."""
    return jax.lax.platform_dependent(x, cpu=_call, default=lambda x: x)


@jax.custom_jvp
def with_materialized_gradient(x: Array) -> Array:
    """Return `x`, the gradient of which is `materialized`."""
    return x


@with_materialized_gradient.defjvp
def _with_materialized_gradient_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return primals[0], materialized(tangents[0])


def _call(x: Array) -> Array:
    with set_xla_metadata(inlineable="false"):
        return _function(x)

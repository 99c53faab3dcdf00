"""LayerNorm, with a derivative in closed form: the backward pass keeps one array of the input's size, not several."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike


class LayerNorm(nnx.Module):
    """Normalise the last axis, scale and shift it (arXiv 1607.06450, eq. 4), in float32; returns `dtype`.

    The variance is that of the differences from the mean: E[x²] - E[x]² loses digits where the mean is large.
    Parameters are called as those of `flax.nnx.LayerNorm`.
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.epsilon, self.dtype = epsilon, dtype
        self.scale = nnx.Param(jnp.ones((num_features,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((num_features,), param_dtype))

    def __call__(self, x: Array) -> Array:
        """Map `[..., C]` to `[..., C]`."""
        scale, bias = (parameter[...].astype(jnp.float32) for parameter in (self.scale, self.bias))
        return _normalize(self.epsilon, x.astype(jnp.float32), scale, bias).astype(self.dtype or x.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _normalize(epsilon: float, x: Array, scale: Array, bias: Array) -> Array:
    centred, inverse = _standardize(epsilon, x)
    return centred * (inverse * scale) + bias


@_normalize.defjvp
def _normalize_jvp(
    epsilon: float, primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    (x, scale, bias), (dx, dscale, dbias) = primals, tangents
    centred, inverse = _standardize(epsilon, x)
    standard = centred * inverse
    # What of dx changes the mean or the variance leaves no trace in the outcome.
    seen = dx - dx.mean(axis=-1, keepdims=True) - standard * (standard * dx).mean(axis=-1, keepdims=True)
    return centred * (inverse * scale) + bias, inverse * seen * scale + standard * dscale + dbias


def _standardize(epsilon: float, x: Array) -> tuple[Array, Array]:
    """Return x less its mean, and one over its standard deviation, `[..., 1]`."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred, jax.lax.rsqrt((centred * centred).mean(axis=-1, keepdims=True) + epsilon)

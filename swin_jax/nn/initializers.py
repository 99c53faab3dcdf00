"""How parameters start: the schemes of the published models, and the factory of dense layers that carries one."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from swin_jax.nn.products import flat_dot_general

Initializer = jax.nn.initializers.Initializer


class InitScheme(NamedTuple):
    """Initializers of dense kernels, of the patch convolution's kernel and of its bias."""

    dense: Initializer
    conv: Initializer
    conv_bias: Initializer


def init_scheme(name: str, *, conv_fan_in: int) -> InitScheme:
    """Return the initialisation called `name`.

    - `trunc_normal`: Swin, DeiT and timm. Normal of std 0.02 (their truncation, at ±2, is a hundred deviations out);
      the patch convolution keeps PyTorch's default, uniform within 1/sqrt(fan_in) for kernel and bias.
    - `xavier_uniform`: ViT as Google trained it (arXiv 2010.11929): Glorot uniform, LeCun normal convolution.
    - `fan_in`: LeCun normal everywhere; the better start for narrow models (widths under about 200).

    Raises ValueError for another name.
    """
    lecun, zeros = jax.nn.initializers.lecun_normal(), jax.nn.initializers.zeros
    if name == "trunc_normal":
        bound = conv_fan_in**-0.5

        def uniform(key, shape, dtype=jnp.float32, out_sharding=None):
            return jax.random.uniform(key, shape, dtype, -bound, bound, out_sharding=out_sharding)

        return InitScheme(jax.nn.initializers.normal(0.02), uniform, uniform)
    if name == "xavier_uniform":
        return InitScheme(jax.nn.initializers.xavier_uniform(), lecun, zeros)
    if name == "fan_in":
        return InitScheme(lecun, lecun, zeros)
    raise ValueError(f"init={name!r} is none of 'trunc_normal', 'xavier_uniform', 'fan_in'")


def dense_factory(kernel_init: Initializer, *, dtype: DTypeLike, param_dtype: DTypeLike) -> Callable[..., nnx.Module]:
    """Return `dense(in_features, out_features, *, use_bias=True, rngs)`, a linear layer in this precision and scheme.

    `out_features` may be a tuple `(n, heads, head_dim)`: n projections in one matrix product, each of them initialised
    as a matrix of its own, so that fan-in and fan-out are those of one projection.
    """

    def dense(in_features: int, out_features: int | tuple[int, ...], *, use_bias: bool = True, rngs: nnx.Rngs):
        stacked = out_features[0] if isinstance(out_features, tuple) else 1

        def stacked_init(key, shape, dtype=jnp.float32):
            if stacked == 1:
                return kernel_init(key, shape, dtype)
            one = (*shape[:-1], shape[-1] // stacked)
            return jnp.concatenate([kernel_init(k, one, dtype) for k in jax.random.split(key, stacked)], axis=-1)

        return nnx.LinearGeneral(
            in_features,
            out_features,
            use_bias=use_bias,
            kernel_init=stacked_init,
            dtype=dtype,
            param_dtype=param_dtype,
            dot_general=flat_dot_general,
            rngs=rngs,
        )

    return dense

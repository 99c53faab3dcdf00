"""The matrix products of dense layers and of attention."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from swin_jax.nn.layout import are_heads_cut, keep_batch_cut
from swin_jax.nn.materialization import materialized

LONG = 32  # a sum over more rows than so many times the kernel's shorter side is long


def flat_dot_general(
    x: Array, kernel: Array, dimension_numbers: Any = None, precision: Any = None, **options: Any
) -> Array:
    """Contract the last axis of `x` with the first of `kernel`, all other axes of each made one for the product.

    The gradient of the kernel then sums over one axis. Over several, XLA for CPU transposes the other factor, and
    computes whatever fused into it (a GELU's gradient) element by element: an MLP's backward took twice the time. A
    kernel with several axes it copies in each pass. Kernels whose heads are cut over devices keep their axes.
    """
    x_axes, kernel_axes = x.shape[:-1], kernel.shape[1:]
    flat = keep_batch_cut(x.reshape(-1, x.shape[-1]))

    def product(x: Array, kernel: Array) -> Array:
        return jax.lax.dot_general(x, kernel, (((1,), (0,)), ((), ())), precision=precision, **options)

    if are_heads_cut():
        flat = product(flat, kernel)
    else:
        flat = _with_fast_gradient(product)(flat, kernel.reshape(kernel.shape[0], -1))
    return keep_batch_cut(flat).reshape(*x_axes, *kernel_axes)


def _with_fast_gradient(product: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """Return `product(x, kernel)` of matrices, whose gradient for the kernel, xᵀg, suits XLA for CPU.

    There the fast library (YNNPACK) takes no transposed first factor. Written transposed, x goes to it; what is left
    to the other one (Eigen) has 0.6 to 0.8 of its pace. Only long sums are faster there, if the outcome is wide.
    """
    multiply = jax.custom_jvp(product)

    @multiply.defjvp
    def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
        (x, kernel), (x_change, kernel_change) = primals, tangents
        inputs, outputs = kernel.shape
        factor = x  # of the product whose transpose is the gradient
        if x.shape[0] <= LONG * min(inputs, outputs):
            factor = _written_transposed(x)
        elif outputs < inputs:
            kernel_change = _written_transposed(kernel_change)
        return multiply(x, kernel), product(x_change, kernel) + product(factor, kernel_change)

    return multiply


def batched_matmul(x: Array, y: Array, **options: Any) -> Array:
    """Return jnp.matmul(x, y) for `x` `[..., M, K]` and `y` `[..., K, N]`, with a gradient that suits XLA for CPU.

    JAX computes that of y as gᵀx, of which the fast library wants g written transposed, as above. The other one also
    leaves a batch of matrices to one core.
    """

    def multiply(x: Array, y: Array) -> Array:
        return jnp.matmul(x, y, **options)

    product = jax.custom_jvp(multiply)

    @product.defjvp
    def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
        (x, y), (x_change, y_change) = primals, tangents
        return product(x, y), multiply(x_change, y) + _with_gradient_written_transposed(multiply(x, y_change))

    return product(x, y)


def _written_transposed(x: Array) -> Array:
    """Return `x`, the matrices of which a CPU has in memory column by column."""
    return jax.lax.platform_dependent(x, cpu=lambda x: _transposed_twice(materialized(x)), default=lambda x: x)


def _with_gradient_written_transposed(x: Array) -> Array:
    """Return `x`, the gradient of which a CPU has in memory column by column: it goes through this from the end."""
    return jax.lax.platform_dependent(x, cpu=lambda x: materialized(_transposed_twice(x)), default=lambda x: x)


def _transposed_twice(x: Array) -> Array:
    """Return `x`; the barrier keeps XLA from leaving out what is between, the transpose."""
    return jax.lax.optimization_barrier(x.mT).mT

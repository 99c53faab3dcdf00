"""The matrix product of dense layers."""

from collections.abc import Callable
from typing import Any

import jax
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


def _written_transposed(matrix: Array) -> Array:
    """Return `matrix`, which a CPU has in memory column by column; the barrier keeps XLA from taking that back."""
    return jax.lax.platform_dependent(
        matrix, cpu=lambda matrix: jax.lax.optimization_barrier(materialized(matrix).T).T, default=lambda matrix: matrix
    )

"""What XLA for CPU is kept from computing twice, and that it changes nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swin_jax.nn.materialization import materialized, with_materialized_gradient
from swin_jax.nn.products import LONG, batched_matmul, flat_dot_general


def multiplied_each(keep, x, kernel):
    """A residual stream, each state of which is multiplied."""
    outcomes = []
    for _ in range(4):
        x = keep(x * 1.5 + x[0])
        outcomes.append(x @ kernel)
    return outcomes


def operations_of_largest_fusion(keep):
    matrix = jnp.ones((64, 64))
    text = jax.jit(lambda x, kernel: multiplied_each(keep, x, kernel)).lower(matrix, matrix).compile().as_text()
    computations = [part for part in text.split("\n\n") if part.lstrip().startswith("%fused_computation")]
    return max(part.count(" multiply(") for part in computations)


def test_no_fusion_goes_beyond():
    assert operations_of_largest_fusion(lambda x: x) == 4
    assert operations_of_largest_fusion(materialized) == 1


def test_nothing_but_fusion_changes():
    x, direction = (jax.random.normal(jax.random.key(seed), (3, 4)) for seed in range(2))
    for keep in (materialized, with_materialized_gradient):
        np.testing.assert_array_equal(keep(x), x)
        np.testing.assert_array_equal(jax.vmap(keep)(x), x)
        for got, expected in zip(jax.jvp(keep, (x,), (direction,)), (x, direction), strict=True):
            np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(jax.grad(lambda x, keep=keep: jnp.sum(keep(x) ** 2))(x), 2 * x)


def test_the_gradient_alone():
    """In the forward pass a call would end fusion for nothing."""
    x = jnp.ones((4, 4))
    assert " call(" not in jax.jit(lambda x: with_materialized_gradient(2 * x) + 1).lower(x).compile().as_text()


def dense_loss(product, x, kernel):
    return jnp.sum(jnp.sin(product(x, kernel)))


def plain(x, kernel):
    return jnp.tensordot(x, kernel, 1)


SHAPES = {  # of x, and of the kernel
    "short sum": ((2, 5, 8), (8, 12)),
    "long sum, wide outcome": ((2, 4 * LONG, 4), (4, 12)),
    "long sum, narrow outcome": ((2, 4 * LONG, 12), (12, 4)),
    "heads": ((2, 5, 12), (12, 3, 2, 6)),
    "no batch": ((8,), (8, 3)),
}
PRODUCTS = [(name, (flat_dot_general, plain), *shapes) for name, shapes in SHAPES.items()]
PRODUCTS.append(("batched", (batched_matmul, jnp.matmul), (2, 3, 5, 8), (2, 3, 8, 4)))


@pytest.mark.parametrize(
    ("products", "x_shape", "kernel_shape"), [each[1:] for each in PRODUCTS], ids=[each[0] for each in PRODUCTS]
)
def test_products_and_their_derivatives(products, x_shape, kernel_shape):
    x, x_change = (jax.random.normal(jax.random.key(seed), x_shape) for seed in range(2))
    kernel, kernel_change = (jax.random.normal(jax.random.key(seed), kernel_shape) for seed in range(2, 4))

    def derivatives(product):
        def loss(x, kernel):
            return dense_loss(product, x, kernel)

        _, forward = jax.jvp(loss, (x, kernel), (x_change, kernel_change))
        curvature = jax.jvp(jax.grad(loss, argnums=(0, 1)), (x, kernel), (x_change, kernel_change))
        each = jax.vmap(jax.grad(loss, argnums=1), in_axes=(0, None))(jnp.stack([x, x_change]), kernel)
        return product(x, kernel), forward, curvature, each

    for got, expected in zip(*(jax.tree.leaves(jax.jit(lambda f=f: derivatives(f))()) for f in products), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("product", [flat_dot_general, batched_matmul])
def test_gradients_of_half_precision_have_it(product):
    x, kernel = jnp.ones((4, 8), jnp.bfloat16), jnp.ones((8, 8), jnp.bfloat16)
    loss = lambda x, kernel: jnp.sum(product(x, kernel, preferred_element_type=jnp.float32))  # noqa: E731
    assert product(x, kernel, preferred_element_type=jnp.float32).dtype == jnp.float32
    for gradient in jax.grad(loss, argnums=(0, 1))(x, kernel):
        assert gradient.dtype == jnp.bfloat16
        np.testing.assert_array_equal(gradient, jnp.full_like(gradient, 8 if gradient.shape == x.shape else 4))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_a_cpu_is_told(platform):
    x, kernel = jnp.ones((4, 8)), jnp.ones((8, 8))

    def loss(x, kernel):
        return jnp.sum(with_materialized_gradient(batched_matmul(flat_dot_general(x, kernel), kernel)) ** 2)

    lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(x, kernel).lower(lowering_platforms=(platform,))
    for trace in ("inlineable", "optimization_barrier"):
        assert (trace in lowered.as_text()) == (platform == "cpu")
    if platform == "cpu":
        assert "conditional(" not in lowered.compile().as_text()  # the choice is made before

"""LayerNorm and GELU against formulas in double precision and JAX's own: values and derivatives of any order."""

from math import erfc, exp, pi, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swin_jax.nn.activations import gelu
from swin_jax.nn.normalization import LayerNorm

EPSILON = 1e-5


def flax_layer(scale, bias, **options):
    layer = nnx.LayerNorm(len(scale), epsilon=EPSILON, use_fast_variance=False, rngs=nnx.Rngs(0), **options)
    layer.scale[...], layer.bias[...] = scale, bias
    return layer


def own_layer(scale, bias, **options):
    layer = LayerNorm(len(scale), epsilon=EPSILON, rngs=nnx.Rngs(0), **options)
    layer.scale[...], layer.bias[...] = scale, bias
    return layer


@pytest.fixture(scope="module")
def numbers():
    rng = np.random.default_rng(0)
    x = 3 * rng.standard_normal((2, 5, 12)) + 1
    return [
        jnp.asarray(array, jnp.float32) for array in (x, *rng.standard_normal((2, 12)), rng.standard_normal(x.shape))
    ]


def test_layer_norm_keeps_its_digits_around_a_large_mean():
    x = 1e3 + np.random.default_rng(0).standard_normal((4, 64))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPSILON)
    layer = LayerNorm(64, epsilon=EPSILON, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float32)), expected, atol=2e-3)


def test_layer_norm_and_its_gradients_are_those_of_flax(numbers):
    x, scale, bias, gradient = numbers

    def both(make):
        return jax.vjp(lambda x, scale, bias: make(scale, bias)(x), x, scale, bias)

    (own, own_backward), (theirs, their_backward) = both(own_layer), both(flax_layer)
    np.testing.assert_allclose(own, theirs, rtol=1e-6, atol=1e-6)
    for found, expected in zip(own_backward(gradient), their_backward(gradient), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_second_derivatives_of_layer_norm(numbers):
    x, scale, bias, direction = numbers

    def product(make):
        layer = make(scale, bias)
        return jax.jvp(jax.grad(lambda x: (layer(x) ** 3).sum()), (x,), (direction,))[1]

    np.testing.assert_allclose(product(own_layer), product(flax_layer), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("given", ["bfloat16", "float32"])
def test_half_precision_is_rounded_once_at_the_end(numbers, given):
    x, scale, bias, _ = numbers
    layer = own_layer(scale, bias, dtype=jnp.bfloat16)
    x = x.astype(given)
    expected = own_layer(scale, bias)(x.astype(jnp.float32)).astype(jnp.bfloat16)
    assert layer(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(layer(x), expected)


def test_names_of_the_parameters_are_those_of_flax():
    own, theirs = (nnx.state(make(8, rngs=nnx.Rngs(0))).flat_state() for make in (LayerNorm, nnx.LayerNorm))
    assert [path for path, _ in own] == [path for path, _ in theirs]


X = np.linspace(-9, 9, 4001)


def test_gelu_against_double_precision():
    expected = np.array([x * erfc(-x / sqrt(2)) / 2 for x in X])
    np.testing.assert_allclose(gelu(jnp.float32(X)), expected, rtol=3e-7, atol=6e-7)  # 1 + erf is rounded


def test_slope_of_gelu_against_double_precision():
    expected = np.array([erfc(-x / sqrt(2)) / 2 + x * exp(-x * x / 2) / sqrt(2 * pi) for x in X])
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(jnp.float32(X)), expected, rtol=5e-7, atol=5e-7)


def test_gelu_of_infinity_and_nan():
    np.testing.assert_array_equal(gelu(jnp.float32([jnp.inf, 0.0, jnp.nan])), [np.inf, 0.0, np.nan])


def test_gelu_in_half_precision_is_rounded_once():
    x = jnp.asarray(X, jnp.bfloat16)
    np.testing.assert_array_equal(gelu(x), gelu(x.astype(jnp.float32)).astype(jnp.bfloat16))
    assert jax.grad(lambda x: gelu(x).sum())(x).dtype == jnp.bfloat16


def test_second_derivative_of_gelu():
    second = jax.vmap(jax.grad(jax.grad(gelu)))
    plain = jax.vmap(jax.grad(jax.grad(lambda x: jax.nn.gelu(x, approximate=False))))
    x = jnp.float32(X[::50])
    np.testing.assert_allclose(second(x), plain(x), atol=1e-6)

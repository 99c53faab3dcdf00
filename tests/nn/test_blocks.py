"""Stochastic depth, keys by name and initialisation schemes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swin_jax.nn.blocks import DropPath
from swin_jax.nn.initializers import dense_factory, init_scheme
from swin_jax.nn.rng import child


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 3))
    y = np.asarray(DropPath(0.25)(x, rngs=nnx.Rngs(0)))
    assert (y == y[:, :1, :1]).all()
    values, counts = np.unique(y[:, 0, 0], return_counts=True)
    np.testing.assert_allclose(values, [0.0, 1 / 0.75], rtol=1e-6)
    assert abs(counts[0] / 4000 - 0.25) < 0.03
    np.testing.assert_array_equal(DropPath(0.25)(x), x)
    with pytest.raises(ValueError, match=r"rate=1\.0"):
        DropPath(1.0)


def test_a_childs_key_depends_on_its_path_alone():
    rngs = nnx.Rngs(0)
    first = child(rngs, "blocks", 1).params()
    rngs.params()
    child(rngs, "norm").params()
    assert (child(rngs, "blocks", 1).params() == first).all()
    assert (child(rngs, "blocks", 2).params() != first).any()
    assert child(None, "blocks") is None


def test_stacked_projections_start_as_matrices_of_their_own():
    scheme = init_scheme("xavier_uniform", conv_fan_in=48)
    dense = dense_factory(scheme.dense, dtype=jnp.float32, param_dtype=jnp.float32)
    kernel = dense(64, (3, 4, 16), rngs=nnx.Rngs(0)).kernel[...]
    assert kernel.shape == (64, 3, 4, 16)
    limit = np.sqrt(6 / (64 + 64))
    for part in range(3):
        assert 0.95 * limit < np.abs(kernel[:, part]).max() <= limit
    assert (kernel[:, 0] != kernel[:, 1]).any()


@pytest.mark.parametrize(("name", "std"), [("trunc_normal", 0.02), ("fan_in", 400**-0.5)])
def test_schemes_have_the_spread_they_promise(name, std):
    kernel = init_scheme(name, conv_fan_in=48).dense(jax.random.key(0), (400, 300), jnp.float32)
    assert abs(float(kernel.std()) / std - 1) < 0.02
    with pytest.raises(ValueError, match="fan_in"):
        init_scheme("orthogonal", conv_fan_in=1)

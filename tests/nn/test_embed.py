"""Patches and positions against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swin_jax.nn.embed import (
    PatchEmbed,
    PatchMerging,
    resize_position_embedding,
    sincos_position_embedding_2d,
)
from swin_jax.nn.initializers import dense_factory, init_scheme
from swin_jax.nn.interpolation import resize_grid, resize_matrix

PRECISION = dict(dtype=jnp.float32, param_dtype=jnp.float32)


def test_patch_embedding_is_one_matrix_for_each_patch_and_completes_the_last():
    layer = PatchEmbed(
        3, 5, patch_size=(2, 4), scheme=init_scheme("trunc_normal", conv_fan_in=24), rngs=nnx.Rngs(0), **PRECISION
    )
    images = np.asarray(jax.random.normal(jax.random.key(0), (1, 5, 10, 3)))
    padded = np.pad(images, ((0, 0), (0, 1), (0, 2), (0, 0)))
    patches = padded.reshape(1, 3, 2, 3, 4, 3).swapaxes(2, 3).reshape(1, 3, 3, -1)
    expected = patches @ layer.proj.kernel[...].reshape(24, 5) + layer.proj.bias[...]
    np.testing.assert_allclose(layer(images), expected, atol=1e-5)


def test_patch_merging_takes_neighbours_in_the_published_order():
    dense = dense_factory(nnx.initializers.normal(1.0), **PRECISION)
    layer = PatchMerging(3, norm=lambda dim, rngs: lambda x: x, dense=dense, rngs=nnx.Rngs(0))
    x = np.asarray(jax.random.normal(jax.random.key(0), (1, 3, 5, 3)))
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    corners = [padded[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
    expected = np.concatenate(corners, axis=-1) @ layer.reduction.kernel[...]
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("antialias", [False, True])
def test_resizing_a_constant_or_to_the_same_size_changes_nothing(antialias):
    for old, new in ((7, 12), (12, 7), (5, 5), (1, 4)):
        matrix = resize_matrix(old, new, antialias=antialias)
        np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(resize_matrix(6, 6, antialias=antialias), np.eye(6), atol=1e-7)


def test_resizing_keeps_a_ramp_inside_and_works_on_rectangles():
    ramp = np.arange(16.0)[:, None, None] * np.ones((16, 4, 2))
    resized = resize_grid(ramp, (32, 6), antialias=True)
    np.testing.assert_allclose(
        resized[6:-6, :, 0], ((np.arange(32) + 0.5) / 2 - 0.5)[6:-6, None] * np.ones(6), rtol=1e-5
    )


def test_antialiased_shrinking_equals_jax_image():
    grid = np.random.default_rng(0).standard_normal((12, 9, 3)).astype(np.float32)
    expected = jax.image.resize(grid, (5, 4, 3), "cubic", antialias=True)
    np.testing.assert_allclose(resize_grid(grid, (5, 4), antialias=True), expected, atol=1e-5)


def test_prefix_tokens_stay_when_positions_are_resized():
    embedding = np.random.default_rng(0).standard_normal((1, 2 + 12, 4)).astype(np.float32)
    resized = resize_position_embedding(embedding, (3, 4), (6, 5))
    assert resized.shape == (1, 2 + 30, 4)
    np.testing.assert_array_equal(resized[:, :2], embedding[:, :2])
    grid = resize_grid(embedding[0, 2:].reshape(3, 4, 4), (6, 5), antialias=True)
    np.testing.assert_allclose(resized[0, 2:], grid.reshape(30, 4), atol=1e-6)
    assert resize_position_embedding(embedding, (3, 4), (3, 4)) is embedding
    with pytest.raises(ValueError, match="too few"):
        resize_position_embedding(embedding, (4, 4), (2, 2))


def test_sincos_positions_entry_by_entry():
    embedding = sincos_position_embedding_2d((2, 3), 8)
    assert embedding.shape == (1, 6, 8)
    for token, (y, x) in enumerate(np.ndindex(2, 3)):
        w = np.array([1.0, 1e-4])
        expected = np.concatenate([np.sin(x * w), np.cos(x * w), np.sin(y * w), np.cos(y * w)])
        np.testing.assert_allclose(embedding[0, token], expected, atol=1e-6)
    with pytest.raises(ValueError, match="embed_dim=6"):
        sincos_position_embedding_2d((2, 3), 6)

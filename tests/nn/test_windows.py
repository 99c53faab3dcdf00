"""Windows: the inverse, the index, and shifted attention against windows cut by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from swin_jax.nn.initializers import dense_factory
from swin_jax.nn.windows import (
    WINDOW_PADDINGS,
    WindowAttention,
    relative_position_index,
    shifted_window_attention,
    window_merge,
    window_partition,
)

sides = st.tuples(st.integers(1, 4), st.integers(1, 4))


@pytest.fixture(scope="module")
def attention():
    dense = dense_factory(nnx.initializers.normal(0.5), dtype=jnp.float32, param_dtype=jnp.float32)
    layer = WindowAttention(8, 2, window_size=(3, 4), dense=dense, rngs=nnx.Rngs(0))
    table = layer.relative_position_bias_table
    table[...] = jax.random.normal(jax.random.key(1), table.shape)
    layer.qkv.bias[...] = jax.random.normal(jax.random.key(2), layer.qkv.bias.shape)
    return layer


@given(sides, sides, st.integers(1, 3), st.integers(1, 3))
def test_merge_undoes_partition(window_size, counts, batch, channels):
    map_size = (window_size[0] * counts[0], window_size[1] * counts[1])
    x = np.random.default_rng(0).standard_normal((batch, *map_size, channels))
    windows = window_partition(x, window_size)
    assert windows.shape == (batch * counts[0] * counts[1], window_size[0] * window_size[1], channels)
    np.testing.assert_array_equal(windows[0].reshape(*window_size, -1), x[0, : window_size[0], : window_size[1]])
    np.testing.assert_array_equal(window_merge(windows, window_size, map_size), x)


def test_windows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="6x8"):
        window_partition(np.zeros((1, 6, 8, 1)), (4, 4))
    with pytest.raises(ValueError, match="6x8"):
        window_merge(np.zeros((2, 16, 1)), (4, 4), (6, 8))


@given(sides, sides)
def test_relative_position_index_is_a_row_for_each_offset(window_size, more):
    table_size = (window_size[0] + more[0] - 1, window_size[1] + more[1] - 1)
    index = relative_position_index(window_size, table_size)
    places = list(np.ndindex(*window_size))
    for q, (qy, qx) in enumerate(places):
        for k, (ky, kx) in enumerate(places):
            row, column = qy - ky + table_size[0] - 1, qx - kx + table_size[1] - 1
            assert index[q, k] == row * (2 * table_size[1] - 1) + column


def by_hand(x, attention, window_size, shift):
    """Each group of real tokens that share an unrolled, shifted window attends within itself, alone."""
    _, height, width, channels = x.shape
    groups = {}
    for row, column in np.ndindex(height, width):
        key = ((row - shift[0]) // window_size[0], (column - shift[1]) // window_size[1])
        groups.setdefault(key, []).append((row, column))
    out = np.zeros(x.shape, np.float32)
    kernel, bias = attention.qkv.kernel[...], attention.qkv.bias[...]
    table = attention.relative_position_bias_table[...]
    th, tw = attention.table_size
    for places in groups.values():
        rows, columns = np.array(places).T
        qkv = jnp.einsum("bnc,cphd->bpnhd", x[:, rows, columns], kernel) + bias[:, None]
        offsets = (rows[:, None] - rows + th - 1) * (2 * tw - 1) + columns[:, None] - columns + tw - 1
        scores = jnp.einsum("bqhd,bkhd->bhqk", qkv[:, 0], qkv[:, 1]) / np.sqrt(kernel.shape[-1])
        weights = jax.nn.softmax(scores + table[offsets].transpose(2, 0, 1))
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, qkv[:, 2]).reshape(x.shape[0], -1, channels)
        out[:, rows, columns] = attention.proj(y)
    return out


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("map_size", [(6, 8), (7, 9), (3, 9), (2, 3), (4, 4), (1, 11)])
def test_masked_padding_is_attention_within_each_window_of_the_real_map(attention, map_size, shifted):
    x = jax.random.normal(jax.random.key(3), (2, *map_size, 8))
    result = shifted_window_attention(x, attention, window_size=(3, 4), shifted=shifted, window_padding="masked")
    window = tuple(min(pair) for pair in zip((3, 4), map_size, strict=True))
    shift = tuple(w // 2 if shifted and m > w else 0 for m, w in zip(map_size, (3, 4), strict=True))
    np.testing.assert_allclose(result, by_hand(x, attention, window, shift), atol=2e-5)


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 3), st.booleans())
def test_the_three_paddings_agree_where_windows_divide_the_map(attention, rows, shifted):
    x = jax.random.normal(jax.random.key(rows), (1, 3 * rows, 8, 8))
    results = [
        shifted_window_attention(x, attention, window_size=(3, 4), shifted=shifted, window_padding=padding)
        for padding in WINDOW_PADDINGS
    ]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_the_three_paddings_differ_where_they_do_not(attention):
    x = jax.random.normal(jax.random.key(0), (1, 7, 9, 8))
    results = [
        np.asarray(shifted_window_attention(x, attention, window_size=(3, 4), shifted=True, window_padding=padding))
        for padding in WINDOW_PADDINGS
    ]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(results[i] - results[j]).max() > 0.01


def test_an_unknown_padding_is_refused(attention):
    with pytest.raises(ValueError, match="roll_pad"):
        shifted_window_attention(
            jnp.zeros((1, 4, 4, 8)), attention, window_size=(3, 4), shifted=True, window_padding="reflect"
        )

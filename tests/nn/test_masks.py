"""Masks against their definitions, spelled out token by token."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swin_jax.nn.masks import (
    causal_mask,
    combine_masks,
    padding_mask,
    prefix_mask,
    segment_mask,
    segment_positions,
    shifted_window_mask,
)


def test_causal():
    np.testing.assert_array_equal(causal_mask(3)[0, 0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(causal_mask(2, 4)[0, 0], [[1, 1, 1, 0], [1, 1, 1, 1]])
    with pytest.raises(ValueError, match="num_keys=1"):
        causal_mask(2, 1)


def test_padding_and_prefix():
    np.testing.assert_array_equal(padding_mask(jnp.array([2, 0]), 3)[:, 0, 0], [[1, 1, 0], [0, 0, 0]])
    mask = prefix_mask(jnp.array([2, 0]), 3)
    np.testing.assert_array_equal(mask[0, 0], [[1, 1, 0], [1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(mask[1, 0], np.tri(3))


def test_combination_is_the_conjunction_and_skips_none():
    padding = padding_mask(jnp.array([2, 3]), 3)
    combined = combine_masks(causal_mask(3), None, padding)
    assert combined.shape == (2, 1, 3, 3)
    np.testing.assert_array_equal(combined[0, 0], np.tri(3) * [1, 1, 0])
    assert combine_masks(None, None) is None
    with pytest.raises(TypeError, match="boolean"):
        combine_masks(np.ones((1, 1, 3, 3)))


def brute_force_shift_mask(map_size, window_size, shift, attend_padding):
    """Walk over every pair of places of the padded, rolled map: same window, and no seam of the roll between them."""
    padded = [-(-size // window) * window for size, window in zip(map_size, window_size, strict=True)]
    windows = [padded[i] // window_size[i] for i in range(2)]
    tokens = window_size[0] * window_size[1]
    mask = np.zeros((windows[0] * windows[1], tokens, tokens), bool)
    for window in np.ndindex(*windows):
        for q in np.ndindex(*window_size):
            for k in np.ndindex(*window_size):
                here = [[window[i] * window_size[i] + place[i] for i in range(2)] for place in (q, k)]
                origin = [[(place[i] + shift[i]) % padded[i] for i in range(2)] for place in here]
                # Unrolled neighbours lie as far apart in the original map as in the rolled one.
                ok = all(origin[0][i] - origin[1][i] == here[0][i] - here[1][i] for i in range(2))
                ok &= attend_padding or all(origin[1][i] < map_size[i] for i in range(2))
                index = window[0] * windows[1] + window[1]
                mask[index, q[0] * window_size[1] + q[1], k[0] * window_size[1] + k[1]] = ok
    return mask


@given(st.data())
def test_shifted_window_mask_against_brute_force(data):
    window_size = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    map_size = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    shift = tuple(data.draw(st.integers(0, window - 1)) for window in window_size)
    attend_padding = data.draw(st.booleans())
    expected = brute_force_shift_mask(map_size, window_size, shift, attend_padding)
    mask = shifted_window_mask(map_size, window_size, shift, attend_padding=attend_padding)
    if mask is None:
        assert expected.all()
    else:
        np.testing.assert_array_equal(mask[:, 0], expected)


def test_no_shift_and_no_padding_needs_no_mask():
    assert shifted_window_mask((8, 8), (4, 4), (0, 0)) is None
    with pytest.raises(ValueError, match="shift"):
        shifted_window_mask((8, 8), (4, 4), (4, 0))


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_segments_see_themselves_and_count_from_zero(lengths):
    num_padding = 20 - sum(lengths)  # one shape, compiled once
    segments = [number for number, length in enumerate(lengths, 1) for _ in range(length)] + [0] * num_padding
    mask = np.asarray(segment_mask(jnp.array([segments]), jnp.array([segments])))[0, 0]
    for q, k in np.ndindex(mask.shape):
        assert mask[q, k] == (segments[q] == segments[k] != 0)
    expected = [place for length in [*lengths, num_padding] for place in range(length)]
    np.testing.assert_array_equal(segment_positions(jnp.array([segments]))[0], expected)

"""Rollout against hand-made matrices and all paths; windows against known patterns and a search by coordinates."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swin_jax.nn.masks import shifted_window_mask
from swin_jax.nn.windows import WINDOW_PADDINGS
from swin_jax.visualization.maps import (
    attention_from,
    attention_received,
    attention_rollout,
    find_token,
    mask_regions,
    merge_windows,
    rolled_window_tokens,
    window_tokens,
    windows_of_map,
)


def random_attention(rng, *shape):
    scores = rng.exponential(size=shape)
    return scores / scores.sum(-1, keepdims=True)


def test_rollout_by_hand():
    """Half of each token stays: [[1/2, 1/2], [0, 1]], then [[1, 0], [1/2, 1/2]] of it."""
    first, second = np.array([[[0.0, 1.0], [0.0, 1.0]]]), np.array([[[1.0, 0.0], [1.0, 0.0]]])
    np.testing.assert_allclose(attention_rollout([first]), [[0.5, 0.5], [0.0, 1.0]])
    np.testing.assert_allclose(attention_rollout([first, second]), [[0.5, 0.5], [0.25, 0.75]])
    np.testing.assert_allclose(attention_rollout([first, second], residual=0.0), [[0.0, 1.0], [0.0, 1.0]])


def test_rollout_averages_heads_and_leaves_a_row_without_attention_to_itself():
    heads = np.array([[[0.0, 1.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
    np.testing.assert_allclose(attention_rollout([heads]), [[0.75, 0.25], [0.0, 1.0]])
    np.testing.assert_allclose(attention_rollout([heads], residual=0.0), [[0.5, 0.5], [0.0, 1.0]])


def test_rollout_is_the_sum_over_all_paths():
    layers = list(random_attention(np.random.default_rng(0), 3, 2, 4, 4))
    steps = [0.7 * layer.mean(0) + 0.3 * np.eye(4) for layer in layers]
    expected = np.zeros((4, 4))
    for path in itertools.product(range(4), repeat=4):  # input, after layer 1, after layer 2, output
        source, middle, later, last = path
        expected[last, source] += steps[0][middle, source] * steps[1][later, middle] * steps[2][last, later]
    np.testing.assert_allclose(attention_rollout(layers, residual=0.3), expected)


@pytest.mark.parametrize("shapes", [[], [(3, 3)], [(2, 3, 4)], [(2, 3, 3), (2, 4, 4)]])
def test_rollout_refuses_what_is_no_self_attention_of_one_length(shapes):
    with pytest.raises(ValueError, match="one N"):
        attention_rollout([np.zeros(shape) for shape in shapes])
    with pytest.raises(ValueError, match="residual=1"):
        attention_rollout([np.ones((1, 1, 1))], residual=1.0)


def test_tokens_of_known_windows():
    plain = window_tokens((4, 4), window_size=(2, 2), shifted=False)
    assert plain.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    shifted = [[5, 6, 9, 10], [7, 4, 11, 8], [13, 14, 1, 2], [15, 12, 3, 0]]  # rolled up and left by one
    assert window_tokens((4, 4), window_size=(2, 2), shifted=True).tolist() == shifted
    assert rolled_window_tokens((4, 4), (2, 2), (1, 1)).tolist() == shifted
    padded = [[0, 1, 3, 4], [2, -1, 5, -1], [6, 7, -1, -1], [8, -1, -1, -1]]
    assert window_tokens((3, 3), window_size=(2, 2), shifted=False).tolist() == padded
    assert window_tokens((2, 2), window_size=(7, 7), shifted=True).tolist() == [[0, 1, 2, 3]]  # shrinks to the map


def test_padding_comes_before_or_behind_the_roll():
    roll_pad = window_tokens((3, 2), window_size=(2, 2), shifted=True, window_padding="roll_pad")
    assert roll_pad.tolist() == [[2, 3, 4, 5], [0, 1, -1, -1]]
    for padding in ("pad_roll", "masked"):
        pad_roll = window_tokens((3, 2), window_size=(2, 2), shifted=True, window_padding=padding)
        assert pad_roll.tolist() == [[2, 3, 4, 5], [-1, -1, 0, 1]]


sides = st.tuples(st.integers(1, 7), st.integers(1, 7))


@given(sides, st.tuples(st.integers(1, 4), st.integers(1, 4)), st.booleans(), st.sampled_from(WINDOW_PADDINGS))
@settings(max_examples=15, deadline=None)
def test_merged_windows_are_the_map(map_size, window_size, shifted, window_padding):
    tokens = window_tokens(map_size, window_size=window_size, shifted=shifted, window_padding=window_padding)
    image = np.random.default_rng(0).normal(size=(3, *map_size))
    cut = image.reshape(3, -1)[:, tokens].swapaxes(0, 1)  # [nW, 3, M]; what padding holds is not looked at
    np.testing.assert_array_equal(merge_windows(cut, tokens, map_size), image)
    numbers = windows_of_map(tokens, map_size)
    for token in range(map_size[0] * map_size[1]):
        window, place = find_token(tokens, token)
        assert tokens[window, place] == token
        assert numbers.ravel()[token] == window


@pytest.mark.parametrize(("map_size", "window_size", "shift"), [((8, 12), (4, 3), (2, 1)), ((6, 4), (3, 2), (1, 0))])
def test_tokens_belong_to_the_masks(map_size, window_size, shift):
    """Who sees whom, by coordinates: tokens of one window that are less than a window apart."""
    mask = shifted_window_mask(map_size, window_size, shift)
    tokens = rolled_window_tokens(map_size, window_size, shift)
    places = np.stack(np.divmod(tokens, map_size[1]), axis=-1)  # [nW, M, 2]
    distances = np.abs(places[:, :, None] - places[:, None])
    np.testing.assert_array_equal(mask[:, 0], (distances < window_size).all(-1))
    regions = mask_regions(mask)
    np.testing.assert_array_equal(mask[:, 0], regions[:, :, None] == regions[:, None, :])
    assert (regions[:, 0] == 0).all()


def test_attention_of_one_query_stays_in_its_window():
    rng = np.random.default_rng(0)
    tokens = window_tokens((4, 4), window_size=(2, 2), shifted=True)
    probabilities = random_attention(rng, 4, 3, 4, 4)
    window, place = find_token(tokens, 12)
    heat = attention_from(probabilities, tokens, (4, 4), window=window, place=place)
    expected = np.zeros((3, 4, 4))
    for key, (row, column) in enumerate([(3, 3), (3, 0), (0, 3), (0, 0)]):  # the four corners
        expected[:, row, column] = probabilities[3, :, 1, key]
    np.testing.assert_array_equal(heat, expected)


def test_attention_received():
    tokens = window_tokens((3, 3), window_size=(2, 2), shifted=False)
    probabilities = random_attention(np.random.default_rng(0), 4, 2, 4, 4)
    heat = attention_received(probabilities, tokens, (3, 3))
    np.testing.assert_allclose(heat[:, 0, 0], probabilities[0, :, :, 0].sum(-1))
    np.testing.assert_allclose(heat[:, 0, 2], probabilities[1, :, 0, 0] + probabilities[1, :, 2, 0])  # not of padding
    np.testing.assert_allclose(heat[:, 2, 2], probabilities[3, :, 0, 0])
    evenly = np.full((4, 2, 4, 4), 0.25)
    assert (attention_received(evenly, tokens, (3, 3))[:, :2, :2] == 1).all()

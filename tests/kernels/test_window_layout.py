"""The layout's arithmetic against the map that is really padded, rolled and cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swin_jax.kernels.window_layout import WindowLayout, sees
from swin_jax.nn.masks import shifted_window_mask
from swin_jax.nn.windows import window_partition

CASES = {
    "plain": WindowLayout((6, 9), (3, 3)),
    "shifted": WindowLayout((8, 12), (4, 4), (2, 2)),
    "shifted on one side": WindowLayout((3, 8), (3, 4), (0, 3)),
    "roll, then pad": WindowLayout((7, 10), (4, 4), (2, 2), roll_first=True),
    "pad, then roll": WindowLayout((7, 10), (4, 3), (1, 2)),
    "padding hidden": WindowLayout((5, 6), (4, 5), (2, 2), attend_padding=False),
}


@pytest.mark.parametrize("layout", CASES.values(), ids=CASES.keys())
def test_places_and_sight_are_those_of_the_rolled_map(layout):
    (height, width), (padded_height, padded_width) = layout.map_size, layout.padded_size
    batch = 2
    rows = np.arange(batch * padded_height * padded_width).reshape(batch, padded_height, padded_width, 1)
    shift = [-side for side in layout.shift]
    if layout.roll_first:
        rows[:, :height] = np.roll(rows[:, :height], shift[0], axis=1)
        rows[:, :, :width] = np.roll(rows[:, :, :width], shift[1], axis=2)
    else:
        rows = np.roll(rows, shift, axis=(1, 2))
    expected = np.asarray(window_partition(jnp.asarray(rows), layout.window_size))[..., 0]
    mask = shifted_window_mask(layout.map_size, layout.window_size, layout.shift, attend_padding=layout.attend_padding)
    tokens = jnp.arange(layout.tokens + 3)  # the last three are none

    @jax.jit
    @jax.vmap
    def look(window):
        places = layout.places(window, tokens)
        return places.row, places.is_token, sees(places, places)

    row, is_token, seen = map(np.asarray, look(jnp.arange(batch * layout.windows)))
    np.testing.assert_array_equal(row[:, : layout.tokens], expected)
    np.testing.assert_array_equal(is_token, np.tile(np.arange(layout.tokens + 3) < layout.tokens, (len(row), 1)))
    assert not seen[..., layout.tokens :].any()
    seen = seen[:, : layout.tokens, : layout.tokens]
    everybody = np.ones((layout.windows, layout.tokens, layout.tokens), bool)
    np.testing.assert_array_equal(seen, np.tile(everybody if mask is None else mask[:, 0], (batch, 1, 1)))
    assert layout.masks(layout.tokens) == (mask is not None)


def test_a_shift_as_large_as_the_window_is_refused():
    with pytest.raises(ValueError, match="shift < window"):
        WindowLayout((8, 8), (4, 4), (4, 0))

"""Where the tokens of a window are in the map, and which of them see each other, as arithmetic on their numbers."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

# Loads and stores are masked there. That no map is so large matters to the interpreter alone: its masked store writes
# back what it found, so it must not find what another token writes.
NO_ROW = 2**30


class Places(NamedTuple):
    """Of some tokens of one window, each `[T]`: where they are, and what decides who sees them."""

    row: Array  # in the padded batch of maps, flattened: [B*H*W]
    region: Array  # tokens of different regions do not see each other
    is_key: Array  # whether there is such a token, and it may be attended to
    is_token: Array  # whether there is such a token


@dataclasses.dataclass(frozen=True)
class WindowLayout:
    """The windows of a map, padded at the bottom and right and rolled by -shift (arXiv 2103.14030, section 3.2).

    `roll_first`, `attend_padding`: of `window_padding` in `nn.windows.shifted_window_attention`, roll_pad is
    (True, True), pad_roll (False, True) and masked (False, False).
    Raises ValueError for a shift that is not inside the window.
    """

    map_size: tuple[int, int]  # before padding
    window_size: tuple[int, int]
    shift: tuple[int, int] = (0, 0)
    roll_first: bool = False
    attend_padding: bool = True

    def __post_init__(self):
        for size, window, shift in zip(self.map_size, self.window_size, self.shift, strict=True):
            if not 0 <= shift < window or size < 1:
                raise ValueError(f"need 0 <= shift < window and a map, got {self}")

    @property
    def counts(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        return tuple(-(-size // window) for size, window in zip(self.map_size, self.window_size, strict=True))

    @property
    def padded_size(self) -> tuple[int, int]:
        return tuple(count * window for count, window in zip(self.counts, self.window_size, strict=True))

    @property
    def tokens(self) -> int:
        """Tokens of a window."""
        return math.prod(self.window_size)

    @property
    def windows(self) -> int:
        """Windows of an image."""
        return math.prod(self.counts)

    def places(self, window: Array | int, tokens: Array) -> Places:
        """Return where the tokens numbered `tokens` (int32 `[T]`, row by row) of a window of the batch are.

        Tokens beyond the last one of the window are no tokens, and no keys; their row is `NO_ROW`.
        """
        is_token = tokens < self.tokens
        window = jnp.asarray(window, jnp.int32)
        image, window = lax.div(window, self.windows), lax.rem(window, self.windows)
        inside = lax.div(tokens, self.window_size[1]), lax.rem(tokens, self.window_size[1])
        numbers = lax.div(window, self.counts[1]), lax.rem(window, self.counts[1])
        rolled = [number * side + place for number, side, place in zip(numbers, self.window_size, inside, strict=True)]

        region, is_key, source = jnp.zeros_like(tokens), is_token, []
        for place, size, padded, shift in zip(rolled, self.map_size, self.padded_size, self.shift, strict=True):
            if shift:  # what the roll brought to the end
                region = 2 * region + jnp.where(place >= padded - shift, 1, 0)
                end = size if self.roll_first else padded
                turned = jnp.where(place + shift >= end, place + shift - end, place + shift)
                place = jnp.where(place < size, turned, place) if self.roll_first else turned
            if not self.attend_padding and padded != size:
                is_key = is_key & (place < size)
            source.append(place)
        height, width = self.padded_size
        row = (image * height + source[0]) * width + source[1]
        return Places(jnp.where(is_token, row, NO_ROW), region, is_key, is_token)

    def masks(self, tile: int) -> bool:
        """Whether any query of a window does not see all of its keys, cut into tiles of `tile` tokens."""
        hides_padding = not self.attend_padding and self.padded_size != self.map_size
        return any(self.shift) or hides_padding or bool(self.tokens % tile)


def sees(queries: Places, keys: Places) -> jax.Array:
    """Return `[Q, K]`, whether each query sees each key."""
    return (queries.region[:, None] == keys.region[None, :]) & keys.is_key[None, :]

"""Pillow's affine transforms and big_vision's cutout for a batch in which each image has an operation of its own.

Images are uint8 `[B, H, W, C]`; `function` `[B]` holds numbers in `policies.FUNCTIONS`, `argument` `[B]` float32 their
arguments. All affine functions are one warp, which leaves an image whose function is of another kind unchanged.
"""

import functools

import jax
import jax.numpy as jnp

from swin_jax.data.color_ops import is_function


def affine_matrices(function: jax.Array, argument: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Return the map from output to input (x, y) of each image, `[B, 2, 3]`, of pixels whose centres are at .5.

    The argument of `rotate` is in degrees, counterclockwise about the image's centre; of `shear_x` and `shear_y` the
    shift for each pixel from the upper left corner; of `translate_x` and `translate_y` pixels to the left and up. The
    matrices are those that Pillow's `transform` takes.
    """

    def of(name, neutral=0.0):
        return jnp.where(is_function(function, name), argument, neutral)

    center_y, center_x = size[0] / 2, size[1] / 2
    angle = jnp.deg2rad(of("rotate"))
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    from_x = cos, of("shear_x") - sin, (1 - cos) * center_x + sin * center_y + of("translate_x")
    from_y = of("shear_y") + sin, cos, (1 - cos) * center_y - sin * center_x + of("translate_y")
    return jnp.stack([jnp.stack(from_x, -1), jnp.stack(from_y, -1)], axis=1)


def warp_pixels(
    images: jax.Array,
    matrices: jax.Array,
    *,
    fill: tuple[int, ...],
    interpolation: str,
    is_bicubic: jax.Array | None = None,
) -> jax.Array:
    """Sample each image at `matrix @ (x, y, 1)` of every output pixel, as Pillow's `transform(AFFINE)`.

    A pixel from outside of the image is `fill`; inside, the border is extended for the filter; the result is rounded
    down. Coordinates are float32 where Pillow has float64: where a source lies within about 1e-4 pixels of the image's
    border (or, if nearest, of another pixel) it may fall on the other side, elsewhere the result is within 1 grey
    level.

    Args:
      fill: one value a channel.
      interpolation: "nearest", "bilinear", "bicubic", or "random": `is_bicubic` `[B]` says which of the last two.
    """
    if interpolation != "random":
        is_bicubic = jnp.full(len(images), interpolation == "bicubic")
    pixels, matrices = jax.lax.optimization_barrier((images.astype(jnp.float32), matrices))  # see color_ops
    warp = functools.partial(_warp, fill=fill, interpolation=interpolation)
    return jax.vmap(warp)(pixels, matrices, is_bicubic).astype(jnp.uint8)


def _warp(image, matrix, is_bicubic, *, fill, interpolation):
    height, width, channels = image.shape
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    x, y = (row[0] * x + row[1] * y + row[2] for row in matrix)
    is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    if interpolation == "nearest":
        (column,), (row,), offsets = [x], [y], (0,)
    else:
        column, row, offsets = x - 0.5, y - 0.5, (0, 1) if interpolation == "bilinear" else (-1, 0, 1, 2)
    right, below = (column - jnp.floor(column))[..., None], (row - jnp.floor(row))[..., None]
    column, row = jnp.floor(column).astype(jnp.int32), jnp.floor(row).astype(jnp.int32)
    columns = [jnp.clip(column + offset, 0, width - 1) for offset in offsets]
    starts = [jnp.clip(row + offset, 0, height - 1) * width for offset in offsets]
    pixels = image.reshape(-1, channels)

    def row_of(start):
        values = [pixels.at[start + column].get(mode="promise_in_bounds") for column in columns]
        return _interpolate(values, right, is_bicubic)

    sampled = jnp.clip(_interpolate([row_of(start) for start in starts], below, is_bicubic), 0, 255)
    return jnp.where(is_inside[..., None], sampled, jnp.array(fill, jnp.float32))


def _interpolate(values, at, is_bicubic):
    """Return the polynomial through 1, 2 or 4 neighbours at `at`, 0 to 1 between the middle ones.

    In Horner's form as Pillow has it: exact where the values are equal or `at` is 0, so rounding down does no harm.
    """
    if len(values) == 1:
        return values[0]
    if len(values) == 2:
        return values[0] + at * (values[1] - values[0])
    before, left, right, after = values
    cubic = left + at * (
        (right - before) + at * ((2 * (before - left) + right - after) + at * (left - before + after - right))
    )
    return jnp.where(is_bicubic, cubic, left + at * (right - left))


def cut_out(images: jax.Array, half_side: jax.Array, center: jax.Array, *, fill: tuple[int, ...]) -> jax.Array:
    """Overwrite a box of `2 * half_side` pixels about `center` with `fill`; the image's border may cut it.

    `half_side` is `[B]`, 0 for none; `center` `[B, 2]` is (row, column) in [0, 1) of the height and width.
    """
    height, width = images.shape[1:3]
    half_side = half_side[:, None]

    def is_near(position, length):
        distance = jnp.arange(length) - jnp.floor(position[:, None] * length)
        return (distance >= -half_side) & (distance < half_side)

    rows, columns = is_near(center[:, 0], height), is_near(center[:, 1], width)
    is_inside = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(is_inside, jnp.array(fill, jnp.uint8), images)

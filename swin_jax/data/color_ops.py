"""Pillow's ImageOps, ImageEnhance and GaussianBlur for a batch in which each image has an operation of its own.

Images are uint8 `[B, H, W, C]` with 1 or 3 channels; `function` `[B]` holds numbers in `policies.FUNCTIONS`, `argument`
`[B]` float32 their arguments. An image whose function is of another kind passes unchanged. Everything is computed for
all images and chosen from, so a kind costs the same whatever was drawn: a table look-up, a blend, or twelve short
filters.
"""

from collections.abc import Collection

import jax
import jax.numpy as jnp
from jax.lax import optimization_barrier

from swin_jax.data.policies import FUNCTIONS

# A barrier stands before whatever reads a value several times: XLA would compute it anew for each reader (measured on a
# CPU: 7 times as long for RandAugment).


def is_function(function: jax.Array, name: str) -> jax.Array:
    """Return where `function` is the one called `name`."""
    return function == FUNCTIONS.index(name)


def remap_points(images: jax.Array, function: jax.Array, argument: jax.Array, names: Collection[str]) -> jax.Array:
    """Apply those of POINT_FUNCTIONS that `names` has: each is a table from old to new value for a channel.

    `auto_contrast` and `equalize` take no argument, nor does `invert`; that of `posterize` is the bits to keep, of
    `solarize` the threshold, of `solarize_add` what is added to values below 128. All equal Pillow's results but
    `auto_contrast`, which rounds down exactly where Pillow's float64 falls just short of a whole number: 1 grey level.
    """
    value = jnp.arange(256)
    whole = argument.astype(jnp.int32)[:, None, None]
    makers = {
        "auto_contrast": lambda: _contrast_tables(images),
        "equalize": lambda: _equalizing_tables(_histograms(images)),
        "invert": lambda: 255 - value,
        "posterize": lambda: (value >> (8 - whole)) << (8 - whole),
        "solarize": lambda: jnp.where(value < whole, value, 255 - value),
        "solarize_add": lambda: jnp.where(value < 128, jnp.minimum(value + whole, 255), value),
    }
    images = optimization_barrier(images)
    tables = jnp.broadcast_to(value, (images.shape[0], images.shape[-1], 256))
    for name, make in makers.items():
        if name in names:
            tables = jnp.where(is_function(function, name)[:, None, None], make(), tables)

    def look_up(image, table):
        entries = image.astype(jnp.int32) + 256 * jnp.arange(image.shape[-1])
        return table.reshape(-1).at[entries].get(mode="promise_in_bounds")

    return jax.vmap(look_up)(images, optimization_barrier(tables.astype(jnp.uint8)))


def _contrast_tables(images: jax.Array) -> jax.Array:
    """Stretch each channel's values to 0..255: `[B, C, 256]`."""
    low = images.min(axis=(1, 2)).astype(jnp.int32)[..., None]
    high = images.max(axis=(1, 2)).astype(jnp.int32)[..., None]
    value = jnp.arange(256)
    stretched = jnp.clip((value - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, stretched, value)


def _histograms(images: jax.Array) -> jax.Array:
    """Count each channel's values: int32 `[B, C, 256]`."""

    def count(image):
        channels = image.shape[-1]
        bins = image.astype(jnp.int32) + 256 * jnp.arange(channels)
        counts = jnp.zeros(256 * channels, jnp.int32).at[bins.reshape(-1)].add(1, mode="promise_in_bounds")
        return counts.reshape(channels, 256)

    return jax.vmap(count)(images)


def _equalizing_tables(histograms: jax.Array) -> jax.Array:
    """Make the values of each channel about equally frequent, in Pillow's whole numbers: `[B, C, 256]`."""
    value = jnp.arange(256)
    highest = 255 - jnp.argmax(histograms[..., ::-1] > 0, axis=-1)
    of_highest = jnp.take_along_axis(histograms, highest[..., None], axis=-1)
    step = (histograms.sum(axis=-1, keepdims=True) - of_highest) // 255
    below = jnp.cumsum(histograms, axis=-1) - histograms
    equal = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, equal, value)


def enhance(images: jax.Array, function: jax.Array, argument: jax.Array, names: Collection[str]) -> jax.Array:
    """Apply those of ENHANCE_FUNCTIONS that `names` has: `plain + factor * (image - plain)`, cut to 0..255, rounded
    down.

    `plain` is black for `brightness`, the mean grey for `contrast`, the greyscale image for `color` and the smoothed
    one for `sharpness`, all as Pillow rounds them; for `contrast_by_size` the grey of number of pixels / 256, which
    big_vision's contrast blends with. The factor is the argument.
    """
    height, width = images.shape[1:3]
    images = optimization_barrier(images)
    grey = _greyscale(images)
    makers = {
        "brightness": lambda: 0,
        "contrast": lambda: (2 * grey.sum((1, 2, 3), keepdims=True) + height * width) // (2 * height * width),
        "contrast_by_size": lambda: min(height * width // 256, 255),
        "color": lambda: grey,
        "sharpness": lambda: _smooth(images),
    }
    plain, factor = jnp.zeros((1, 1, 1, 1), jnp.int32), jnp.ones_like(argument)
    for name, make in makers.items():
        if name in names:
            is_chosen = is_function(function, name)
            plain = jnp.where(is_chosen[:, None, None, None], make(), plain)
            factor = jnp.where(is_chosen, argument, factor)
    plain = plain.astype(jnp.float32)
    blended = plain + factor[:, None, None, None] * (images - plain)
    return jnp.clip(blended, 0, 255).astype(jnp.uint8)


def _greyscale(images: jax.Array) -> jax.Array:
    """Return ITU-R 601-2 luma in Pillow's fixed point: int32 `[B, H, W, 1]`."""
    if images.shape[-1] == 1:
        return images.astype(jnp.int32)
    red, green, blue = jnp.split(images.astype(jnp.int32), 3, axis=-1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _smooth(images: jax.Array) -> jax.Array:
    """Return the mean of 3x3 pixels, the middle one counted five times, the border as it was: int32."""
    images = images.astype(jnp.int32)
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    sums = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * images[:, 1:-1, 1:-1]
    return images.at[:, 1:-1, 1:-1].set((2 * sums + 13) // 26)


def gaussian_blur(images: jax.Array, radius: jax.Array) -> jax.Array:
    """Blur each image by Pillow's GaussianBlur of `radius` `[B]`, from 0 (unchanged) to 2.4 pixels.

    Three box filters each way stand for the Gaussian (Gwosdek et al. 2011, "Theoretical Foundations of Gaussian
    Convolution by Extended Box Filtering", equations 7, 11 and 14), in 24-bit fixed point.
    """
    variance = radius**2 / 3
    inner = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)  # whole pixels that the box has on each side
    outer = (2 * inner + 1) * (inner * (inner + 1) - 3 * variance) / (6 * (variance - (inner + 1) ** 2))
    full = (2.0**24 / (2 * (inner + outer) + 1)).astype(jnp.uint32)
    part = (2**24 - (2 * inner.astype(jnp.uint32) + 1) * full) // 2
    weights = full, jnp.where(inner > 0, full, part), jnp.where(inner > 0, part, 0)  # of distance 0, 1 and 2
    weights = [weight[:, None, None, None] for weight in weights]

    def box_filter(images, axis):
        length, images = images.shape[axis], optimization_barrier(images)
        padded = jnp.pad(images, [(2, 2) if i == axis else (0, 0) for i in range(4)], mode="edge")
        shifted = [jax.lax.slice_in_dim(padded, start, start + length, axis=axis) for start in range(5)]
        sums = weights[0] * shifted[2] + weights[1] * (shifted[1] + shifted[3]) + weights[2] * (shifted[0] + shifted[4])
        return (sums + 2**23) >> 24

    blurred = images.astype(jnp.uint32)
    for axis in (2, 2, 2, 1, 1, 1):
        blurred = box_filter(blurred, axis)
    return blurred.astype(jnp.uint8)

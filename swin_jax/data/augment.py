"""Device-side augmentation: pure functions of a key on a whole batch, for use inside jit.

Images are `[B, H, W, C]`; `augment` takes them as uint8, the functions after `normalize` as float32. Each image draws
its own parameters, except in `mix`, which draws one set for the batch.
"""

import jax
import jax.numpy as jnp

from swin_jax.data.auto_augment import apply_policy, jitter_colors
from swin_jax.data.policies import INTERPOLATIONS, mean_color, parse_policy
from swin_jax.errors import UserError, did_you_mean

PerChannel = float | tuple[float, ...]  # one number, or one a channel


def normalize(images_u8: jax.Array, *, mean: PerChannel, std: PerChannel) -> jax.Array:
    """Return `(images / 255 - mean) / std` in float32; `mean` and `std` are of pixels in 0..1."""
    return (images_u8.astype(jnp.float32) / 255.0 - jnp.asarray(mean)) / jnp.asarray(std)


def augment(
    key: jax.Array,
    images: jax.Array,
    *,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    policy: str = "",
    interpolation: str = "bicubic",
    color_jitter: float = 0.0,
    crop_padding: int = 0,
    flip: bool = False,
    degrees: float = 0.0,
    translate: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    erasing: float = 0.0,
    fill: PerChannel = 0.0,
) -> jax.Array:
    """Augment images and normalise them: those steps that are not off, in timm's order for ImageNet.

    Of uint8 images: horizontal flip; `policy`; colour jitter; normalisation by `mean` and `std`; affine map; padded
    crop; random erasing. Without policy and jitter the flip comes after the crop. Images of another type count as
    normalised.

    Args:
      policy: see `policies.parse_policy`; "" for none. What it brings in from outside is the mean colour.
      interpolation: of the policy's affine operations: "nearest", "bilinear", "bicubic", or "random" for one of the
        last two. timm takes that of the crop, where the crop's is not random.
      color_jitter: strength of `auto_augment.jitter_colors`. As in timm (transforms_imagenet_train), it is off where
        there is a policy, but for three-augment: the official Swin sets RandAugment and jitter 0.4, and trains without
        jitter.
      fill: normalised value of what the affine map and the crop bring in from outside, so 0 is the mean colour and
        black is `-mean / std`.

    See the functions below for the other arguments. A user's mistake in any is a UserError.
    """
    check_options(policy=policy, interpolation=interpolation, color_jitter=color_jitter, erasing=erasing)
    affine_key, crop_key, flip_key, erasing_key = jax.random.split(key, 4)
    color_jitter = color_jitter if not policy or parse_policy(policy).keeps_color_jitter else 0.0
    if (policy or color_jitter) and images.dtype != jnp.uint8:
        raise ValueError(f"a policy and colour jitter need uint8 images, not {images.dtype}")
    if flip and (policy or color_jitter):
        images, flip = random_flip(flip_key, images), False
    if policy:
        images = apply_policy(
            jax.random.fold_in(key, 4),
            images,
            parse_policy(policy),
            fill=mean_color(mean, images.shape[-1]),
            interpolation=interpolation,
        )
    if color_jitter:
        images = jitter_colors(jax.random.fold_in(key, 5), images, strength=color_jitter)
    if images.dtype == jnp.uint8:
        images = normalize(images, mean=mean, std=std)
    if degrees or translate or scale or shear:
        images = random_affine(
            affine_key, images, degrees=degrees, translate=translate, scale=scale, shear=shear, fill=fill
        )
    if crop_padding:
        images = random_crop_pad(crop_key, images, pad=crop_padding, fill=fill)
    if flip:
        images = random_flip(flip_key, images)
    if erasing:
        images = random_erasing(erasing_key, images, probability=erasing)
    return images


def check_options(
    *, policy: str = "", interpolation: str = "bicubic", color_jitter: float = 0.0, **probabilities: float
) -> None:
    """Raise a UserError for an unknown policy or interpolation, negative jitter, or a probability not in [0, 1]."""
    if policy:
        parse_policy(policy)
    if interpolation not in INTERPOLATIONS:
        near = did_you_mean(interpolation, INTERPOLATIONS)
        raise UserError(f"unknown interpolation {interpolation!r}, known: {', '.join(INTERPOLATIONS)}{near}")
    if not color_jitter >= 0:
        raise UserError(f"color_jitter={color_jitter} must be at least 0")
    for name, probability in probabilities.items():
        if not 0 <= probability <= 1:
            raise UserError(f"{name}={probability} must be a probability, from 0 to 1")


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirror each image left to right with probability one half."""
    is_flipped = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(is_flipped, images[:, :, ::-1], images)


def random_crop_pad(key: jax.Array, images: jax.Array, *, pad: int, fill: PerChannel = 0.0) -> jax.Array:
    """Shift each image by up to `pad` whole pixels each way: pad all sides, then crop the old size at random."""
    height, width = images.shape[1:3]
    rows, columns = jax.random.randint(key, (2, images.shape[0]), 0, 2 * pad + 1)
    padded = jnp.pad(_above(images, fill), [(0, 0), (pad, pad), (pad, pad), (0, 0)])

    def crop(image, row, column):
        return jax.lax.dynamic_slice(image, (row, column, 0), (height, width, image.shape[-1]))

    return jax.vmap(crop)(padded, rows, columns) + jnp.asarray(fill, jnp.float32)


def random_affine(
    key: jax.Array,
    images: jax.Array,
    *,
    degrees: float = 0.0,
    translate: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    fill: PerChannel = 0.0,
) -> jax.Array:
    """Rotate, scale, shear and shift each image at random about its centre, sampled bilinearly.

    Args:
      degrees: rotation in ±degrees.
      translate: shift in ±translate of the height and the width.
      scale: magnification in [1 - scale, 1 + scale].
      shear: horizontal shear angle in ±shear degrees.
      fill: the value outside of the image.
    """
    matrices = sample_affine(key, images.shape[:3], degrees=degrees, translate=translate, scale=scale, shear=shear)
    return warp_affine(images, matrices, fill=fill)


def sample_affine(
    key: jax.Array,
    shape: tuple[int, int, int],
    *,
    degrees: float = 0.0,
    translate: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
) -> jax.Array:
    """Draw maps from output to input (y, x) about the centre, `[B, 2, 3]`, for a batch of `shape` (B, H, W)."""
    batch, height, width = shape
    angle, skew, zoom, shift_y, shift_x = jax.random.uniform(key, (5, batch), minval=-1.0, maxval=1.0)
    angle, skew, zoom = jnp.deg2rad(degrees) * angle, jnp.tan(jnp.deg2rad(shear) * skew), 1.0 + scale * zoom
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    # The image goes through scale, shear (x += skew * y), rotation, shift; sampling needs the inverse.
    rotation = jnp.array([[cos, -sin], [sin, cos]])  # [2, 2, B]
    unshear = jnp.array([[jnp.ones(batch), jnp.zeros(batch)], [-skew, jnp.ones(batch)]])  # [2, 2, B]
    linear = jnp.einsum("ijb,jkb->bik", unshear, rotation) / zoom[:, None, None]
    shift = jnp.stack([translate * height * shift_y, translate * width * shift_x], axis=-1)
    return jnp.concatenate([linear, -jnp.einsum("bij,bj->bi", linear, shift)[..., None]], axis=-1)


def warp_affine(images: jax.Array, matrices: jax.Array, *, fill: PerChannel = 0.0) -> jax.Array:
    """Sample each image bilinearly at `matrix @ (y, x, 1)` of every output pixel, the origin at the image's centre."""
    height, width, channels = images.shape[1:]
    center = jnp.array([(height - 1) / 2, (width - 1) / 2])
    y, x = jnp.meshgrid(jnp.arange(height) - center[0], jnp.arange(width) - center[1], indexing="ij")
    output = jnp.stack([y, x, jnp.ones_like(y)])  # [3, H, W]

    def warp(image, matrix):
        # A border of zeros stands for everything outside, so coordinates are clipped to it and need no mask.
        padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0))).reshape(-1, channels)
        y, x = jnp.einsum("ij,jhw->ihw", matrix, output, precision="highest") + center[:, None, None] + 1
        y, x = jnp.clip(y, 0, height + 1), jnp.clip(x, 0, width + 1)
        row = jnp.minimum(jnp.floor(y), height).astype(jnp.int32)
        column = jnp.minimum(jnp.floor(x), width).astype(jnp.int32)
        below, right = (y - row)[..., None], (x - column)[..., None]
        corner = row * (width + 2) + column

        def pixel(offset):
            return padded.at[corner + offset].get(mode="promise_in_bounds")

        upper = (1 - right) * pixel(0) + right * pixel(1)
        lower = (1 - right) * pixel(width + 2) + right * pixel(width + 3)
        return (1 - below) * upper + below * lower

    return jax.vmap(warp)(_above(images, fill), matrices) + jnp.asarray(fill, jnp.float32)


def _above(images: jax.Array, fill: PerChannel) -> jax.Array:
    """Shift the values so that `fill` is 0, which is what padding brings in."""
    return images.astype(jnp.float32) - jnp.asarray(fill, jnp.float32)


def random_erasing(
    key: jax.Array,
    images: jax.Array,
    *,
    probability: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    min_aspect: float = 0.3,
    min_count: int = 1,
    max_count: int = 1,
) -> jax.Array:
    """Overwrite boxes of an image with N(0, 1) noise, with the given probability an image.

    Random Erasing (Zhong et al. 2017, https://arxiv.org/abs/1708.04896, algorithm 1) as timm's mode "pixel": for each
    box the first of ten that fits is taken, with a share of the image in `area`, height/width log-uniform from
    `min_aspect` to its inverse. The number of boxes is uniform from `min_count` to `max_count`; they share the area.
    """
    check_options(probability=probability)
    if not 1 <= min_count <= max_count:
        raise UserError(f"{min_count=} must be at least 1 and at most {max_count=}")
    batch = len(images)
    keys = jax.random.split(key, 6)
    is_erased = jax.random.bernoulli(keys[2], probability, (batch,))
    count = jax.random.randint(jax.random.fold_in(key, 6), (batch, 1), min_count, max_count + 1)
    is_inside = jnp.zeros((batch, 1, 1, 1), bool)
    for box in range(max_count):
        box_keys = keys if box == 0 else jax.random.split(jax.random.fold_in(key, 6 + box), 6)
        is_in_box = _erasing_box(box_keys, images.shape, count, area, min_aspect)
        is_inside |= is_in_box & (is_erased & (box < count[:, 0]))[:, None, None, None]

    def draw_noise():
        return jax.random.normal(keys[5], images.shape, images.dtype)

    # Behind a condition, or the CPU compiler draws the noise anew for each reader of the images (measured: 0.12 s in
    # place of 0.05 s for 8 images at 224, mixed after).
    noise = jax.lax.platform_dependent(
        cpu=lambda: jax.lax.cond(is_erased.any(), draw_noise, lambda: jnp.zeros_like(images)), default=draw_noise
    )
    return jnp.where(is_inside, noise, images)


def _erasing_box(keys, shape, count, area, min_aspect):
    """Draw a box with 1 / count of the area for each image, none if ten do not fit: bool `[B, H, W, 1]`."""
    batch, height, width = shape[:3]
    share = jax.random.uniform(keys[0], (batch, 10), minval=area[0], maxval=area[1]) / count
    log_aspect = jnp.log(min_aspect) * jax.random.uniform(keys[1], (batch, 10), minval=-1.0, maxval=1.0)
    box_heights = jnp.round(jnp.sqrt(share * height * width * jnp.exp(log_aspect)))
    box_widths = jnp.round(jnp.sqrt(share * height * width * jnp.exp(-log_aspect)))
    fits = (box_heights < height) & (box_widths < width)  # [B, 10]
    first = jnp.argmax(fits, axis=1, keepdims=True)
    box_height, box_width = (jnp.take_along_axis(sides, first, axis=1)[:, 0] for sides in (box_heights, box_widths))
    top = jnp.floor(jax.random.uniform(keys[3], (batch,)) * (height - box_height + 1))
    left = jnp.floor(jax.random.uniform(keys[4], (batch,)) * (width - box_width + 1))
    is_in_box = _in_box(shape, top, top + box_height, left, left + box_width)
    return is_in_box & fits.any(axis=1)[:, None, None, None]


def _in_box(shape, top, bottom, left, right) -> jax.Array:
    """Return bool `[B, H, W, 1]` (or `[1, H, W, 1]`), true from (top, left) up to but without (bottom, right)."""
    top, bottom, left, right = (jnp.reshape(side, (-1, 1, 1, 1)) for side in (top, bottom, left, right))
    rows, columns = jnp.arange(shape[1])[:, None, None], jnp.arange(shape[2])[None, :, None]
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def mix(
    key: jax.Array,
    images: jax.Array,
    onehot: jax.Array,
    *,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    switch_prob: float = 0.5,
    prob: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Mix the batch with itself reversed, images and targets `[B, num_classes]` alike, as timm's Mixup(mode="batch").

    With probability `prob` the batch is mixed: by CutMix (Yun et al. 2019, https://arxiv.org/abs/1905.04899) with
    probability `switch_prob` or where it alone is on, else by mixup (Zhang et al. 2017,
    https://arxiv.org/abs/1710.09412). The share kept is Beta(alpha, alpha); CutMix corrects it to the area of its box,
    which the image's border may cut.
    """
    check_options(switch_prob=switch_prob, prob=prob)
    if not (mixup_alpha >= 0 and cutmix_alpha >= 0):
        raise UserError(f"{mixup_alpha=} and {cutmix_alpha=} must be at least 0")
    if not mixup_alpha and not cutmix_alpha:
        return images, onehot
    mixed_key, switch_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
    is_mixed = jax.random.bernoulli(mixed_key, prob)
    if not cutmix_alpha:
        use_cutmix = jnp.array(False)
    elif not mixup_alpha:
        use_cutmix = jnp.array(True)
    else:
        use_cutmix = jax.random.bernoulli(switch_key, switch_prob)
    kept = jnp.array(1.0)
    if mixup_alpha:
        kept = jnp.where(is_mixed & ~use_cutmix, jax.random.beta(mixup_key, mixup_alpha, mixup_alpha), kept)
    kept_pixels = kept
    if cutmix_alpha:
        is_cut = is_mixed & use_cutmix
        is_inside, box_share = _cutmix_box(
            box_key, images.shape, jax.random.beta(cutmix_key, cutmix_alpha, cutmix_alpha)
        )
        kept_pixels = jnp.where(is_cut & is_inside, 0.0, kept)
        kept = jnp.where(is_cut, 1 - box_share, kept)
    # One expression, as each reader of the images may compute anew what comes before it.
    images = kept_pixels * images + (1 - kept_pixels) * images[::-1]
    return images, kept * onehot + (1 - kept) * onehot[::-1]


def _cutmix_box(key: jax.Array, shape: tuple[int, ...], kept: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draw a box of 1 - kept of the image around a random pixel, cut at the border: bool `[1, H, W, 1]`, its share."""
    height, width = shape[1:3]
    side = jnp.sqrt(1 - kept)
    box_height, box_width = jnp.floor(height * side).astype(jnp.int32), jnp.floor(width * side).astype(jnp.int32)
    row_key, column_key = jax.random.split(key)
    row, column = jax.random.randint(row_key, (), 0, height), jax.random.randint(column_key, (), 0, width)
    is_inside = _in_box(
        shape,
        row - box_height // 2,
        row + (box_height + 1) // 2,
        column - box_width // 2,
        column + (box_width + 1) // 2,
    )
    return is_inside, is_inside.mean(dtype=jnp.float32)

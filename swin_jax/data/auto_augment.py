"""RandAugment, AutoAugment, three-augment and colour jitter on the device: each image of a batch draws its own
operations.

An accelerator does the whole batch at once: at each step all images pass one table look-up, one blend and one warp, as
far as the policy has such operations, and an image that drew something else passes unchanged. Nothing depends on what
was drawn, and a batch cut over devices needs no communication. A CPU takes image by image and does what it drew alone.
"""

import functools
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from swin_jax.data import color_ops, geometric_ops
from swin_jax.data.policies import AFFINE_FUNCTIONS, ENHANCE_FUNCTIONS, FUNCTIONS, POINT_FUNCTIONS, Policy

JITTER_FUNCTIONS = ("brightness", "contrast", "color")


class Operations(NamedTuple):
    """What is done to each image: `[B]`, or `[B, S]` for S steps one after the other."""

    function: jax.Array  # int32, number in policies.FUNCTIONS
    argument: jax.Array  # float32
    center: jax.Array  # [..., 2] in [0, 1), where a cutout is
    is_bicubic: jax.Array  # bool, for the interpolation "random"


def apply_policy(
    key: jax.Array, images: jax.Array, policy: Policy, *, fill: tuple[int, ...], interpolation: str = "bicubic"
) -> jax.Array:
    """Apply to each uint8 image `[B, H, W, C]` what it draws of `policy`.

    `fill` is one value a channel for what comes in from outside, `interpolation` that of affine functions, "random" for
    bilinear or bicubic by chance; a policy that has its own fill or interpolation keeps it.
    """
    return apply_operations(
        images,
        draw_policy(key, policy, images.shape[:3]),
        names=policy.functions,
        fill=fill if policy.fill is None else (policy.fill,) * images.shape[-1],
        interpolation=policy.interpolation or interpolation,
    )


def jitter_colors(key: jax.Array, images: jax.Array, *, strength: float) -> jax.Array:
    """Change brightness, contrast and saturation of each uint8 image, in a random order, as torchvision's ColorJitter.

    Each factor is uniform in `[max(0, 1 - strength), 1 + strength]`; the hue stays.
    """
    operations = draw_jitter(key, len(images), strength=strength)
    return apply_operations(images, operations, names=[JITTER_FUNCTIONS] * 3)


def draw_policy(key: jax.Array, policy: Policy, shape: tuple[int, int, int]) -> Operations:
    """Draw the operations of `policy` for a batch of `shape` (B, H, W).

    An image's draws depend on `key` and on its position in the batch alone.
    """

    def draw(position):
        steps = []
        for draw_key in jax.random.split(jax.random.fold_in(key, position), policy.draws):
            chain_key, *step_keys = jax.random.split(draw_key, 1 + len(policy.chains[0]))
            chain = jax.random.randint(chain_key, (), 0, len(policy.chains))
            for choices, step_key in zip(zip(*policy.chains, strict=True), step_keys, strict=True):
                level_key, chance_key = jax.random.split(step_key)
                level = _draw_level(level_key, jnp.array([step.magnitude for step in choices])[chain], policy)
                chance, acts, row, column, resample = jax.random.uniform(chance_key, (5,))
                arguments = jnp.stack([step.op.argument(level, chance, shape[1:], jnp) for step in choices])
                functions = jnp.array([FUNCTIONS.index(step.op.function) for step in choices])
                probability = jnp.array([step.probability for step in choices])[chain]
                function = jnp.where(acts < probability, functions[chain], FUNCTIONS.index("identity"))
                steps.append(Operations(function, arguments[chain], jnp.stack([row, column]), resample < 0.5))
        return jax.tree.map(lambda *values: jnp.stack(values), *steps)

    return jax.vmap(draw)(jnp.arange(shape[0]))


def _draw_level(key, magnitude, policy):
    if policy.magnitude_std == float("inf"):
        level = magnitude * jax.random.uniform(key)
    else:
        level = magnitude + policy.magnitude_std * jax.random.normal(key)
    return jnp.clip(level, 0.0, policy.max_level)


def draw_jitter(key: jax.Array, batch: int, *, strength: float) -> Operations:
    """Draw the three operations of colour jitter for each of `batch` images."""
    numbers = jnp.array([FUNCTIONS.index(name) for name in JITTER_FUNCTIONS])

    def draw(position):
        order_key, factor_key = jax.random.split(jax.random.fold_in(key, position))
        factors = jax.random.uniform(factor_key, (3,), minval=max(0.0, 1.0 - strength), maxval=1.0 + strength)
        return Operations(jax.random.permutation(order_key, numbers), factors, jnp.zeros((3, 2)), jnp.zeros(3, bool))

    return jax.vmap(draw)(jnp.arange(batch))


def apply_operations(
    images: jax.Array,
    operations: Operations,
    *,
    names: Sequence[Collection[str]],
    fill: tuple[int, ...] = (128, 128, 128),
    interpolation: str = "bicubic",
) -> jax.Array:
    """Apply to each uint8 image its `operations` `[B, S]` in turn; `names` are the functions each step may have."""
    options = {"names": names, "fill": fill, "interpolation": interpolation}
    return jax.lax.platform_dependent(
        images,
        operations,
        cpu=functools.partial(apply_one_by_one, **options),
        default=functools.partial(apply_together, **options),
    )


def apply_together(images, operations, *, names, fill, interpolation):
    """Apply each step to all images at once."""
    # Here as in color_ops and geometric_ops, the barrier keeps XLA from computing anew, for each pixel that reads it,
    # what many read. Its CPU compiler drops barriers, and took 20 times as long as for one image after the other.
    operations = jax.lax.optimization_barrier(operations)
    for step, possible in enumerate(names):
        operation = jax.tree.map(lambda array, step=step: array[:, step], operations)
        images = _apply_step(images, operation, possible, fill, interpolation)
    return images


def apply_one_by_one(images, operations, *, names, fill, interpolation):
    """Apply to one image after the other what it drew, without computing what it did not."""
    possible = ["identity", *sorted(set().union(*names) - {"identity"})]
    branch_of = jnp.array([possible.index(name) if name in possible else 0 for name in FUNCTIONS])
    branches = [
        lambda image, operation, name=name: _apply_step(image, operation, {name}, fill, interpolation)
        for name in possible
    ]

    def apply_step(image, operation):
        operation = jax.tree.map(lambda array: array[None], operation)
        return jax.lax.switch(branch_of[operation.function[0]], branches, image, operation), None

    def apply_steps(image_and_operations):
        image, operations = image_and_operations
        return jax.lax.scan(apply_step, image[None], operations)[0][0]

    return jax.lax.map(apply_steps, (images, operations))


def _apply_step(images, operation, names, fill, interpolation):
    function, argument, center, is_bicubic = operation
    if not set(names).isdisjoint(POINT_FUNCTIONS):
        images = color_ops.remap_points(images, function, argument, names)
    if not set(names).isdisjoint(ENHANCE_FUNCTIONS):
        images = color_ops.enhance(images, function, argument, names)
    if not set(names).isdisjoint(AFFINE_FUNCTIONS):
        matrices = geometric_ops.affine_matrices(function, argument, images.shape[1:3])
        images = geometric_ops.warp_pixels(
            images, matrices, fill=fill, interpolation=interpolation, is_bicubic=is_bicubic
        )
    if "gaussian_blur" in names:
        radius = jnp.where(color_ops.is_function(function, "gaussian_blur"), argument, 0.0)
        images = color_ops.gaussian_blur(images, radius)
    if "cutout" in names:
        half_side = jnp.where(color_ops.is_function(function, "cutout"), argument, 0.0)
        images = geometric_ops.cut_out(images, half_side, center, fill=fill)
    return images

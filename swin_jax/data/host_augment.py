"""The policies of `policies.py` on Pillow images, in the loading threads: for a user whose accelerator is the
bottleneck.

The operations are Pillow's own; `auto_augment.py` does the same on the device. The draws are of the same distribution,
not the same numbers.
"""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from swin_jax.data.policies import Policy

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "color": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}


def apply_policy(
    pil: Image.Image,
    policy: Policy,
    rng: np.random.Generator,
    *,
    fill: tuple[int, ...],
    interpolation: str = "bicubic",
) -> Image.Image:
    """Return the image after what it draws of `policy`; arguments as in `auto_augment.apply_policy`."""
    fill = fill if policy.fill is None else (policy.fill,) * len(fill)
    for function, argument, center in draw_policy(policy, rng, (pil.height, pil.width)):
        used = policy.interpolation or interpolation
        used = ("bilinear", "bicubic")[rng.integers(2)] if used == "random" else used
        pil = apply_function(pil, function, argument, center=center, fill=fill, interpolation=used)
    return pil


def draw_policy(
    policy: Policy, rng: np.random.Generator, size: tuple[int, int]
) -> list[tuple[str, float, tuple[float, float]]]:
    """Draw (function, argument, centre of a cutout) of the steps that act, for an image of `size` (H, W)."""
    drawn = []
    for _ in range(policy.draws):
        for step in policy.chains[rng.integers(len(policy.chains))]:
            if rng.random() >= step.probability:
                continue
            if math.isinf(policy.magnitude_std):
                level = rng.uniform(0, step.magnitude)
            else:
                level = rng.normal(step.magnitude, policy.magnitude_std)
            level = min(max(level, 0.0), policy.max_level)
            argument = float(step.op.argument(level, rng.random(), size, np))
            drawn.append((step.op.function, argument, tuple(rng.random(2))))
    return drawn


def jitter_colors(pil: Image.Image, rng: np.random.Generator, *, strength: float) -> Image.Image:
    """Change brightness, contrast and saturation in a random order, as `auto_augment.jitter_colors`."""
    for function in rng.permutation(["brightness", "contrast", "color"]):
        pil = ENHANCERS[function](pil).enhance(rng.uniform(max(0.0, 1.0 - strength), 1.0 + strength))
    return pil


def apply_function(
    pil: Image.Image,
    function: str,
    argument: float,
    *,
    center: tuple[float, float] = (0.5, 0.5),
    fill: tuple[int, ...] = (128, 128, 128),
    interpolation: str = "bicubic",
) -> Image.Image:
    """Apply one of `policies.FUNCTIONS` to an image of mode RGB, or L with a `fill` of one value."""
    width, height = pil.size
    fill = fill[0] if len(fill) == 1 else fill
    how = {"resample": RESAMPLING[interpolation], "fillcolor": fill}
    matrices = {
        "shear_x": (1, argument, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, argument, 1, 0),
        "translate_x": (1, 0, argument, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, argument),
    }
    if function in ENHANCERS:
        return ENHANCERS[function](pil).enhance(argument)
    if function in matrices:
        return pil.transform(pil.size, Image.Transform.AFFINE, matrices[function], **how)
    if function == "identity":
        return pil
    if function == "rotate":
        return pil.rotate(argument, **how)
    if function == "auto_contrast":
        return ImageOps.autocontrast(pil)
    if function == "equalize":
        return ImageOps.equalize(pil)
    if function == "invert":
        return ImageOps.invert(pil)
    if function == "posterize":
        shift = 8 - int(argument)  # Pillow's own refuses 0 bits, which levels of 10 and 0 ask for
        return pil.point([value >> shift << shift for value in range(256)] * len(pil.getbands()))
    if function == "solarize":
        return ImageOps.solarize(pil, int(argument))
    if function == "solarize_add":
        table = [min(255, value + int(argument)) if value < 128 else value for value in range(256)]
        return pil.point(table * len(pil.getbands()))
    if function == "contrast_by_size":
        grey = min(255, width * height // 256)
        return Image.blend(Image.new("L", pil.size, grey).convert(pil.mode), pil, argument)
    if function == "gaussian_blur":
        return pil.filter(ImageFilter.GaussianBlur(argument))
    if function == "cutout":
        row, column, half = math.floor(center[0] * height), math.floor(center[1] * width), int(argument)
        if half:
            pil = pil.copy()
            box = (column - half, row - half, column + half - 1, row + half - 1)  # Pillow draws the last pixel too
            ImageDraw.Draw(pil).rectangle(box, fill=fill)
        return pil
    raise ValueError(f"unknown function {function!r}")

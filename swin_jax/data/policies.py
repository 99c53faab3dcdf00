"""Auto-augmentation policies as data: which operations, how likely, how strong; for the device path and the host path.

An operation is what is done to the pixels, one of FUNCTIONS, and how its argument follows from a level of 0 to 10.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

from swin_jax.errors import UserError, did_you_mean

POINT_FUNCTIONS = ("auto_contrast", "equalize", "invert", "posterize", "solarize", "solarize_add")
ENHANCE_FUNCTIONS = ("brightness", "contrast", "contrast_by_size", "color", "sharpness")
AFFINE_FUNCTIONS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
FUNCTIONS = ("identity", *POINT_FUNCTIONS, *ENHANCE_FUNCTIONS, *AFFINE_FUNCTIONS, "gaussian_blur", "cutout")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "random")

# Of a level, a uniform number from 0 to 1, the image's (height, width), and numpy or jax.numpy.
Argument = Callable[[Any, Any, tuple[int, int], ModuleType], Any]


def _unused(level, chance, size, xp):
    return 0.0 * level


def _linear(low: float, high: float) -> Argument:
    return lambda level, chance, size, xp: low + (high - low) * (level / 10)


def _whole(top: int, *, limit: int, start: int = 0, sign: int = 1) -> Argument:
    """Return a whole number that grows from 0 to `top`, at most `limit`; `start` plus or minus it."""
    return lambda level, chance, size, xp: start + sign * xp.minimum(limit, xp.floor(level / 10 * top))


def _either_way(top: float, unit: Callable[[tuple[int, int]], float] = lambda size: 1.0) -> Argument:
    """Return up to `top` units of the image's size, with a random sign."""
    return lambda level, chance, size, xp: level / 10 * top * unit(size) * xp.where(chance < 0.5, 1.0, -1.0)


def _away_from_one(level, chance, size, xp):
    return xp.maximum(0.1, 1.0 + level / 10 * 0.9 * xp.where(chance < 0.5, 1.0, -1.0))


@dataclasses.dataclass(frozen=True)
class Op:
    """What is done to the pixels, one of FUNCTIONS, and its argument."""

    function: str
    argument: Argument = _unused


_POINT_OPS = {"AutoContrast": Op("auto_contrast"), "Equalize": Op("equalize"), "Invert": Op("invert")}
_AFFINE_OPS = {
    "Rotate": Op("rotate", _either_way(30.0)),
    "ShearX": Op("shear_x", _either_way(0.3)),
    "ShearY": Op("shear_y", _either_way(0.3)),
}

# The names and levels of timm's auto_augment.py.
OPS = {
    **_POINT_OPS,
    **_AFFINE_OPS,
    "Posterize": Op("posterize", _whole(4, limit=4)),
    "PosterizeIncreasing": Op("posterize", _whole(4, limit=4, start=4, sign=-1)),
    "PosterizeOriginal": Op("posterize", _whole(4, limit=4, start=4)),
    "Solarize": Op("solarize", _whole(256, limit=256)),
    "SolarizeIncreasing": Op("solarize", _whole(256, limit=256, start=256, sign=-1)),
    "SolarizeAdd": Op("solarize_add", _whole(110, limit=128)),
    "Color": Op("color", _linear(0.1, 1.9)),
    "ColorIncreasing": Op("color", _away_from_one),
    "Contrast": Op("contrast", _linear(0.1, 1.9)),
    "ContrastIncreasing": Op("contrast", _away_from_one),
    "Brightness": Op("brightness", _linear(0.1, 1.9)),
    "BrightnessIncreasing": Op("brightness", _away_from_one),
    "Sharpness": Op("sharpness", _linear(0.1, 1.9)),
    "SharpnessIncreasing": Op("sharpness", _away_from_one),
    "TranslateX": Op("translate_x", _either_way(1.0, lambda size: int(0.45 * min(size)))),
    "TranslateY": Op("translate_y", _either_way(1.0, lambda size: int(0.45 * min(size)))),
    "TranslateXRel": Op("translate_x", _either_way(0.45, lambda size: size[1])),
    "TranslateYRel": Op("translate_y", _either_way(0.45, lambda size: size[0])),
    "Desaturate": Op("color", lambda level, chance, size, xp: xp.maximum(0.0, 0.5 - level / 20)),
    "GaussianBlur": Op("gaussian_blur", _linear(0.1, 2.0)),
    "GaussianBlurRand": Op("gaussian_blur", lambda level, chance, size, xp: 0.1 + chance * (level / 5 - 0.1)),
}

# Those of google-research/big_vision, pp/autoaugment.py: its contrast blends with a grey of number of pixels / 256,
# where Pillow takes the mean, and its shifts and boxes are in pixels. Levels above 10 go on with the same formulas.
BIG_VISION_OPS = {
    **_POINT_OPS,
    **_AFFINE_OPS,
    "Posterize": Op("posterize", _whole(4, limit=8)),
    "Solarize": Op("solarize", _whole(256, limit=512)),
    "SolarizeAdd": Op("solarize_add", _whole(110, limit=255)),
    "Color": Op("color", _linear(0.1, 1.9)),
    "Contrast": Op("contrast_by_size", _linear(0.1, 1.9)),
    "Brightness": Op("brightness", _linear(0.1, 1.9)),
    "Sharpness": Op("sharpness", _linear(0.1, 1.9)),
    "TranslateX": Op("translate_x", _either_way(100.0)),
    "TranslateY": Op("translate_y", _either_way(100.0)),
    "Cutout": Op("cutout", _whole(40, limit=80)),
}

_INCREASING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
_RAND_OPS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast"),
    *("Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)

# Operation, probability, level; one line is one sub-policy. AutoAugment's policy for ImageNet (arXiv 1805.09501, table
# 9)
_ORIGINAL = """
PosterizeOriginal .4 8 Rotate .6 9
Solarize .6 5 AutoContrast .6 5
Equalize .8 8 Equalize .6 3
PosterizeOriginal .6 7 PosterizeOriginal .6 6
Equalize .4 7 Solarize .2 4
Equalize .4 4 Rotate .8 8
Solarize .6 3 Equalize .6 7
PosterizeOriginal .8 5 Equalize 1 2
Rotate .2 3 Solarize .6 8
Equalize .6 8 PosterizeOriginal .4 6
Rotate .8 8 Color .4 0
Rotate .4 9 Equalize .6 2
Equalize 0 7 Equalize .8 8
Invert .6 4 Equalize 1 8
Color .6 4 Contrast 1 8
Rotate .8 8 Color 1 2
Color .8 8 Solarize .8 7
Sharpness .4 7 Invert .6 8
ShearX .6 5 Equalize 1 9
Color .4 0 Equalize .6 3
Equalize .4 7 Solarize .2 4
Solarize .6 5 AutoContrast .6 5
Invert .6 4 Equalize 1 8
Color .6 4 Contrast 1 8
Equalize .8 8 Equalize .6 3
"""
# ... and the one that EfficientNet's code calls v0, without a paper of its own.
_V0 = """
Equalize .8 1 ShearY .8 4
Color .4 9 Equalize .6 3
Color .4 1 Rotate .6 8
Solarize .8 3 Equalize .4 7
Solarize .4 2 Solarize .6 2
Color .2 0 Equalize .8 8
Equalize .4 8 SolarizeAdd .8 3
ShearX .2 9 Rotate .6 8
Color .6 1 Equalize 1 2
Invert .4 9 Rotate .6 0
Equalize 1 9 ShearY .6 3
Color .4 7 Equalize .6 0
Posterize .4 6 AutoContrast .4 7
Solarize .6 8 Color .6 9
Solarize .2 4 Rotate .8 9
Rotate 1 7 TranslateYRel .8 9
ShearX 0 0 Solarize .8 4
ShearY .8 0 Color .6 4
Color 1 0 Rotate .6 2
Equalize .8 4 Equalize 0 8
Equalize 1 4 AutoContrast .6 2
ShearY .4 7 SolarizeAdd .6 7
Posterize .8 2 Solarize .6 10
Solarize .6 8 Equalize .6 1
Color .8 6 Rotate .4 5
"""
# DeiT-III's three-augment (arXiv 2204.07118, section 3.2): solarize at 128, greyscale, or blur of radius 0.1 to 2.
_THREE = """
Solarize 1 5
Desaturate 1 10
GaussianBlurRand 1 10
"""
_NAMED = {
    "original": _ORIGINAL,
    "originalr": _ORIGINAL.replace("PosterizeOriginal", "PosterizeIncreasing"),
    "v0": _V0,
    "v0r": _V0.replace("Posterize", "PosterizeIncreasing"),
    "3a": _THREE,
}
_EXAMPLES = ("rand-m9-mstd0.5-inc1", "randaug(2,10)", *_NAMED)


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation, its probability and its level before noise."""

    op: Op
    probability: float
    magnitude: float


@dataclasses.dataclass(frozen=True)
class Policy:
    """What is drawn for one image: `draws` times one of `chains`, with replacement, whose steps act one by one."""

    chains: tuple[tuple[Step, ...], ...]  # all of one length
    draws: int = 1
    magnitude_std: float = 0.0  # of a level's normal noise; infinite: a level uniform from 0 to the magnitude
    max_level: float = 10.0  # a noisy level is cut at 0 and here
    fill: int | None = None  # grey of what comes in from outside, None: the mean colour
    interpolation: str | None = None  # of affine functions, None: the caller's choice
    keeps_color_jitter: bool = False  # timm drops colour jitter where there is a policy, but for three-augment

    @property
    def functions(self) -> list[frozenset[str]]:
        """What each of the steps of an image may do."""
        return [frozenset(step.op.function for step in steps) for steps in zip(*self.chains, strict=True)] * self.draws


@functools.cache
def parse_policy(text: str) -> Policy:
    """Return the policy that `text` names; UserError, with the nearest name, where there is none.

    - `rand-m9-n2-p0.5-mstd0.5-mmax10-inc1`: timm's RandAugment (arXiv 1909.13719), sections in any order: level, number
      of operations, the probability of each, the noise of the level (above 100: uniform), its limit, and operations
      that get stronger with the level. Left out they are m10, n2, p0.5, mstd0, mmax10, inc0.
    - `randaug(n,m)`: big_vision's, whose operations always act, at the level m.
    - `original`, `v0`, or with Posterize the other way round `originalr`, `v0r`: AutoAugment (arXiv 1805.09501), each
      also with `-mstd0.5`; `3a`: three-augment (arXiv 2204.07118).
    """
    if match := re.fullmatch(r"randaug\((\d+), *(\d+)\)", text):
        return _big_vision_policy(text, *map(int, match.groups()))
    name, *sections = text.split("-")
    if name == "rand":
        return _rand_policy(text, _read_sections(text, sections, ("m", "n", "p", "mstd", "mmax", "inc")))
    if name not in _NAMED:
        raise UserError(f"unknown policy {text!r}, known: {', '.join(_EXAMPLES)}{did_you_mean(text, _EXAMPLES)}")
    options = _read_sections(text, sections, ("mstd",))
    chains = []
    for line in _NAMED[name].strip().splitlines():
        words = line.split()
        triples = zip(words[::3], words[1::3], words[2::3], strict=True)
        chains.append(tuple(Step(OPS[op], float(probability), float(level)) for op, probability, level in triples))
    return Policy(tuple(chains), magnitude_std=options.get("mstd", 0.0), keeps_color_jitter=name == "3a")


def mean_color(mean: float | tuple[float, ...], channels: int) -> tuple[int, ...]:
    """Return the grey levels of a mean of pixels in 0..1, one a channel: timm's fill for what comes in from outside."""
    means = tuple(mean) if isinstance(mean, tuple | list) else (mean,)
    return tuple(min(255, round(255 * one)) for one in means * (channels // len(means)))


def _read_sections(text: str, sections: list[str], known: tuple[str, ...]) -> dict[str, float]:
    options = {}
    for section in sections:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?|inf)", section)
        if not match or match[1] not in known:
            near = did_you_mean(re.sub(r"[\d.]+$", "", section), known)
            raise UserError(f"unknown section {section!r} of policy {text!r}, known: {', '.join(known)}{near}")
        options[match[1]] = float(match[2])
    return options


def _rand_policy(text: str, options: dict[str, float]) -> Policy:
    magnitude, draws, probability = options.get("m", 10.0), options.get("n", 2.0), options.get("p", 0.5)
    max_level = options.get("mmax", 10.0)
    if not (draws >= 1 and draws.is_integer() and 0 <= probability <= 1 and max_level <= 20):
        raise UserError(f"policy {text!r} needs a whole n of at least 1, p from 0 to 1, and mmax of at most 20")
    if magnitude > max_level:
        raise UserError(
            f"policy {text!r}: the level m={magnitude:g} is above mmax={max_level:g}, which levels are cut to"
        )
    std = options.get("mstd", 0.0)
    names = [name + "Increasing" if options.get("inc") and name in _INCREASING else name for name in _RAND_OPS]
    return Policy(
        tuple((Step(OPS[name], probability, magnitude),) for name in names),
        draws=int(draws),
        magnitude_std=math.inf if std > 100 else std,
        max_level=max_level,
    )


def _big_vision_policy(text: str, draws: int, magnitude: int) -> Policy:
    if draws < 1 or magnitude > 20:
        raise UserError(f"policy {text!r} needs at least 1 operation and a level of at most 20")
    return Policy(
        tuple((Step(op, 1.0, float(magnitude)),) for op in BIG_VISION_OPS.values()),
        draws=draws,
        max_level=20.0,
        fill=128,
        interpolation="nearest",
    )

"""Every operation against Pillow's, on a photo and on noise, and against timm's by name and level."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from sklearn.datasets import load_sample_image

from swin_jax.data import auto_augment, color_ops, geometric_ops, host_augment
from swin_jax.data.auto_augment import Operations
from swin_jax.data.policies import AFFINE_FUNCTIONS, BIG_VISION_OPS, FUNCTIONS, OPS, parse_policy

# These programs run once on small images, so compiling is what they cost.
COMPILE_FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
FILL = (124, 116, 104)
HEIGHT, WIDTH = 64, 52
PHOTO = load_sample_image("china.jpg")[120 : 120 + HEIGHT, 300 : 300 + WIDTH]
IMAGES = {
    "photo": PHOTO,
    "dull photo": PHOTO // 3 + 40,
    "noise": np.random.default_rng(0).integers(0, 256, PHOTO.shape, np.uint8),
    "one value": np.full(PHOTO.shape, 77, np.uint8),
    "greyscale": PHOTO[..., :1],
}


def affine(pil, *matrix, resample=Image.Resampling.BICUBIC):
    fill = FILL[0] if pil.mode == "L" else FILL
    return pil.transform(pil.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=fill)


def rotate(pil, degrees, resample=Image.Resampling.BICUBIC):
    return pil.rotate(degrees, resample=resample, fillcolor=FILL[0] if pil.mode == "L" else FILL)


def solarize_add(pil, added):
    return pil.point([min(255, i + int(added)) if i < 128 else i for i in range(256)] * len(pil.getbands()))


PILLOW = {
    "identity": (lambda pil, _: pil, [0]),
    "auto_contrast": (lambda pil, _: ImageOps.autocontrast(pil), [0]),
    "equalize": (lambda pil, _: ImageOps.equalize(pil), [0]),
    "invert": (lambda pil, _: ImageOps.invert(pil), [0]),
    "posterize": (lambda pil, bits: ImageOps.posterize(pil, int(bits)), [1, 2, 4, 7, 8]),
    "solarize": (lambda pil, threshold: ImageOps.solarize(pil, int(threshold)), [0, 26, 128, 255, 256]),
    "solarize_add": (solarize_add, [0, 33, 99, 110]),
    "brightness": (lambda pil, factor: ImageEnhance.Brightness(pil).enhance(factor), [0, 0.1, 0.73, 1, 1.81]),
    "contrast": (lambda pil, factor: ImageEnhance.Contrast(pil).enhance(factor), [0, 0.1, 0.73, 1, 1.81]),
    "color": (lambda pil, factor: ImageEnhance.Color(pil).enhance(factor), [0, 0.1, 0.73, 1, 1.81]),
    "sharpness": (lambda pil, factor: ImageEnhance.Sharpness(pil).enhance(factor), [0, 0.1, 0.73, 1, 1.81]),
    "rotate": (rotate, [-30, -3.3, 0, 13.7, 28]),
    "shear_x": (lambda pil, shear: affine(pil, 1, shear, 0, 0, 1, 0), [-0.3, 0, 0.07, 0.27]),
    "shear_y": (lambda pil, shear: affine(pil, 1, 0, 0, shear, 1, 0), [-0.3, 0, 0.07, 0.27]),
    "translate_x": (lambda pil, pixels: affine(pil, 1, 0, pixels, 0, 1, 0), [-100, -21.3, 0, 0.25, 7]),
    "translate_y": (lambda pil, pixels: affine(pil, 1, 0, 0, 0, 1, pixels), [-100, -21.3, 0, 0.25, 7]),
    "gaussian_blur": (lambda pil, radius: pil.filter(ImageFilter.GaussianBlur(radius)), [0.1, 0.5, 1.17, 1.5, 2]),
}
# Operations in whole numbers, or in float32 as Pillow's C code has them.
EXACT = {"identity", "equalize", "invert", "posterize", "solarize", "solarize_add", "brightness", "contrast"}
CASES = [(name, float(np.float32(argument))) for name, (_, arguments) in PILLOW.items() for argument in arguments]


def to_pil(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def as_array(pil):
    return np.asarray(pil).reshape(pil.height, pil.width, -1).astype(int)


def operations(cases, steps=1):
    functions = jnp.array([FUNCTIONS.index(name) for name, _ in cases])[:, None]
    arguments = jnp.array([argument for _, argument in cases], jnp.float32)[:, None]
    shape = (len(cases), steps)
    return Operations(
        jnp.tile(functions, (1, steps)), jnp.tile(arguments, (1, steps)), jnp.zeros((*shape, 2)), jnp.zeros(shape, bool)
    )


@functools.cache
def program(names, fill, how):
    options = {"names": [set(names)], "interpolation": "bicubic", "fill": fill}
    return jax.jit(functools.partial(how, **options), compiler_options=COMPILE_FAST)


def device_outputs(image, cases, how=auto_augment.apply_together):
    run = program(frozenset(name for name, _ in cases), FILL[: image.shape[-1]], how)
    return np.asarray(run(jnp.stack([image] * len(cases)), operations(cases))).astype(int)


@functools.cache
def outputs(kind):
    """The results of all cases, of a batch at once; for all tests together."""
    return device_outputs(IMAGES[kind], CASES)


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("name", PILLOW)
def test_operations_are_pillows(kind, name):
    ours = outputs(kind)
    for (case, argument), output in zip(CASES, ours, strict=True):
        if case == name:
            difference = np.abs(output - as_array(PILLOW[name][0](to_pil(IMAGES[kind]), argument)))
            assert difference.max() <= (name not in EXACT), argument
            assert (difference > 0).mean() < 0.005, argument


def test_one_image_after_the_other_gives_the_same_as_all_together():
    """`apply_operations` does the former on a CPU."""
    together, alone = outputs("photo"), device_outputs(PHOTO, CASES, auto_augment.apply_operations)
    difference = np.abs(together - alone)  # they compile to other orders of float32 operations
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize("function", AFFINE_FUNCTIONS)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_other_interpolations_are_pillows(interpolation, function):
    resample = host_augment.RESAMPLING[interpolation]
    matrix = {
        "shear_x": lambda a: (1, a, 0, 0, 1, 0),
        "shear_y": lambda a: (1, 0, 0, a, 1, 0),
        "translate_x": lambda a: (1, 0, a, 0, 1, 0),
        "translate_y": lambda a: (1, 0, 0, 0, 1, a),
    }
    arguments = jnp.array(PILLOW[function][1], jnp.float32)
    images = jnp.stack([PHOTO] * len(arguments))
    numbers = jnp.full(len(arguments), FUNCTIONS.index(function))
    matrices = geometric_ops.affine_matrices(numbers, arguments, (HEIGHT, WIDTH))
    warped = np.asarray(geometric_ops.warp_pixels(images, matrices, fill=FILL, interpolation=interpolation)).astype(int)
    for argument, output in zip(np.asarray(arguments, float), warped, strict=True):
        pil = to_pil(PHOTO)
        if function == "rotate":
            expected = rotate(pil, argument, resample)
        else:
            expected = affine(pil, *matrix[function](argument), resample=resample)
        difference = np.abs(output - as_array(expected))
        if interpolation == "nearest":  # a source in the middle between two pixels may be rounded to the other one
            assert (difference > 0).any(-1).mean() < 0.002
        else:
            assert difference.max() <= 1
            assert (difference > 0).mean() < 0.02  # near whole numbers, where float32 and float64 round apart


def test_random_interpolation_is_bicubic_where_it_says_so():
    matrices = geometric_ops.affine_matrices(
        jnp.full(2, FUNCTIONS.index("rotate")), jnp.array([17.0, 17.0]), (HEIGHT, WIDTH)
    )
    images = jnp.stack([PHOTO, PHOTO])
    warp = functools.partial(geometric_ops.warp_pixels, images, matrices, fill=FILL)
    mixed = warp(interpolation="random", is_bicubic=jnp.array([True, False]))
    np.testing.assert_array_equal(mixed[0], warp(interpolation="bicubic")[0])
    np.testing.assert_array_equal(mixed[1], warp(interpolation="bilinear")[1])
    assert np.any(mixed[0] != mixed[1])


def test_posterizing_to_no_bits_is_black():
    black = np.zeros_like(PHOTO)
    np.testing.assert_array_equal(device_outputs(PHOTO, [("posterize", 0.0)])[0], black)
    np.testing.assert_array_equal(as_array(host_augment.apply_function(to_pil(PHOTO), "posterize", 0.0)), black)


def test_contrast_by_size_blends_with_a_grey_of_the_number_of_pixels():
    (out,) = device_outputs(PHOTO, [("contrast_by_size", 1.9)])
    grey = HEIGHT * WIDTH // 256
    np.testing.assert_allclose(out, np.clip(grey + 1.9 * (PHOTO - float(grey)), 0, 255), atol=1)
    large = np.full((1, 300, 300, 1), 200, np.uint8)  # more than 255 * 256 pixels
    number, factor = jnp.array([FUNCTIONS.index("contrast_by_size")]), jnp.array([0.5])
    assert np.all(color_ops.enhance(jnp.asarray(large), number, factor, {"contrast_by_size"}) == 227)
    np.testing.assert_allclose(
        as_array(host_augment.apply_function(to_pil(PHOTO), "contrast_by_size", 1.9)), out, atol=1
    )


@pytest.mark.parametrize("center", [(0.5, 0.5), (0.0, 0.999), (0.97, 0.1)])
def test_cutout_fills_a_box_cut_by_the_border(center):
    images = jnp.stack([PHOTO] * 3)
    half_sides = jnp.array([0.0, 1.0, 9.0])
    out = geometric_ops.cut_out(images, half_sides, jnp.array([center] * 3), fill=FILL)
    row, column = int(center[0] * HEIGHT), int(center[1] * WIDTH)
    for half, cut in zip((0, 1, 9), np.asarray(out), strict=True):
        expected = PHOTO.copy()
        expected[max(0, row - half) : row + half, max(0, column - half) : column + half] = FILL
        np.testing.assert_array_equal(cut, expected)
        on_host = host_augment.apply_function(to_pil(PHOTO), "cutout", half, center=center, fill=FILL)
        np.testing.assert_array_equal(as_array(on_host), expected)


@pytest.mark.parametrize("kind", ["photo", "greyscale"])
def test_host_operations_are_those_of_the_device(kind):
    """Over all functions, each with its arguments: what the accelerator would do, Pillow does."""
    for (name, argument), output in zip(CASES, outputs(kind), strict=True):
        image = IMAGES[kind]
        on_host = host_augment.apply_function(to_pil(image), name, argument, fill=FILL[: image.shape[-1]])
        assert np.abs(as_array(on_host) - output).max() <= (name not in EXACT), name
    assert {*PILLOW, "contrast_by_size", "cutout"} == set(FUNCTIONS)
    with pytest.raises(ValueError, match="'solarise'"):
        host_augment.apply_function(to_pil(PHOTO), "solarise", 0.0)


@pytest.fixture(scope="module")
def timm():
    with np.load(Path(__file__).parents[1] / "golden" / "timm_augment.npz") as archive:
        arrays = dict(archive)
    return json.loads(str(arrays.pop("about"))), arrays


def test_names_and_levels_are_timms(timm):
    """timm's AugmentOp of a name and level, its chances fixed, against ours: the argument and the pixels."""
    about, arrays = timm
    image, fill = arrays["image"], tuple(about["fill"])
    cases = []
    for (name, level, chance), expected in zip(about["cases"], arrays["outputs"], strict=True):
        arguments = [float(OPS[name].argument(xp.float32(level), chance, image.shape[:2], xp)) for xp in (np, jnp)]
        assert arguments[0] == pytest.approx(arguments[1], rel=1e-6)
        on_host = host_augment.apply_function(to_pil(image), OPS[name].function, arguments[0], fill=fill)
        assert np.abs(as_array(on_host) - expected).max() <= 1, (name, level)  # float32 levels
        cases.append((OPS[name].function, arguments[1]))
    on_device = device_outputs(image, cases)
    difference = np.abs(on_device - arrays["outputs"])
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01
    assert {name for name, _, _ in about["cases"]} == set(OPS)


def test_policies_are_timms(timm):
    names = {id(op): name for name, op in OPS.items()}
    for text, chains in timm[0]["policies"].items():
        ours = [
            [[names[id(step.op)], step.probability, step.magnitude] for step in chain]
            for chain in parse_policy(text).chains
        ]
        assert ours == chains, text


def test_big_visions_arguments_at_level_10():
    """Worked by hand from pp/autoaugment.py: every operation at level 10 of 10, for chances below and above a half."""
    size = (224, 160)
    arguments = {
        name: [float(op.argument(10.0, u, size, np)) for u in (0.1, 0.9)] for name, op in BIG_VISION_OPS.items()
    }
    plus_minus = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 100.0, "TranslateY": 100.0}
    fixed = {"Posterize": 4, "Solarize": 256, "SolarizeAdd": 110, "Cutout": 40}
    fixed |= dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), 1.9)
    fixed |= dict.fromkeys(("AutoContrast", "Equalize", "Invert"), 0)
    expected = {name: [top, -top] for name, top in plus_minus.items()} | {name: [x, x] for name, x in fixed.items()}
    assert {name: pytest.approx(pair) for name, pair in expected.items()} == arguments

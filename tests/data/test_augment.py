"""Augmentations against scipy, against formulas worked by hand, and in their distributions."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from jax import random

from swin_jax.data import augment
from swin_jax.errors import UserError

KEY = random.key(0)
GOLDEN = Path(__file__).parents[1] / "golden"


def noise(batch, height, width, channels=3, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, height, width, channels)).astype(np.float32)


def test_normalize():
    images = np.array([[[[0, 51, 255]]]], np.uint8)
    out = augment.normalize(images, mean=(0.5, 0.1, 0.0), std=(0.5, 0.1, 2.0))
    np.testing.assert_allclose(out, [[[[-1, 1, 0.5]]]], rtol=1e-6)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(augment.normalize(images, mean=0.2, std=0.5), [[[[-0.4, 0, 1.6]]]], atol=1e-6)


@pytest.mark.parametrize("fill", [0.0, (-1.0, 0.5, 2.0)])
def test_warp_equals_scipys_affine_transform(fill):
    images = noise(3, 9, 14)
    matrices = random.normal(KEY, (3, 2, 3)) * jnp.array([0.7, 0.7, 3.0]) + jnp.eye(2, 3)
    out = augment.warp_affine(images, matrices, fill=fill)
    center, fills = np.array([4, 6.5]), np.broadcast_to(fill, 3)
    for image, matrix, warped in zip(images, np.asarray(matrices, np.float64), out, strict=True):
        linear, shift = matrix[:, :2], matrix[:, 2]
        for channel in range(3):
            expected = scipy.ndimage.affine_transform(
                image[..., channel].astype(np.float64),
                linear,
                center + shift - linear @ center,
                order=1,
                mode="grid-constant",
                cval=fills[channel],
            )
            np.testing.assert_allclose(warped[..., channel], expected, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "draw"),
    [
        ({"degrees": 20.0}, lambda m: np.rad2deg(np.arctan2(m[:, 1, 0], m[:, 0, 0])) / 20),
        ({"scale": 0.3}, lambda m: (1 / np.sqrt(np.linalg.det(m[:, :, :2])) - 1) / 0.3),
        ({"shear": 15.0}, lambda m: np.rad2deg(np.arctan(m[:, 1, 0])) / 15),
        ({"translate": 0.1}, lambda m: m[:, 0, 2] / (0.1 * 20)),
        ({"translate": 0.1}, lambda m: m[:, 1, 2] / (0.1 * 30)),
    ],
)
def test_each_affine_parameter_is_uniform_in_its_range_and_alone(options, draw):
    matrices = np.asarray(augment.sample_affine(KEY, (2000, 20, 30), **options), np.float64)
    quantiles = np.quantile(draw(matrices), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quantiles, [-1, -0.5, 0, 0.5, 1], atol=0.07)
    linear = matrices[:, :, :2]
    if "degrees" in options:
        np.testing.assert_allclose(
            linear @ linear.transpose(0, 2, 1), np.broadcast_to(np.eye(2), linear.shape), atol=1e-6
        )
    if "scale" in options:
        np.testing.assert_allclose(linear, linear[:, :1, :1] * np.eye(2), atol=1e-7)
    if "translate" not in options:
        np.testing.assert_array_equal(matrices[:, :, 2], 0)
    else:
        np.testing.assert_array_equal(linear, np.broadcast_to(np.eye(2), linear.shape))


def test_affine_undoes_scale_shear_rotation_and_shift_in_that_order():
    """The map of all together takes each output point back to where the forward steps, one by one, brought it from."""
    options = {"degrees": 40.0, "translate": 0.2, "scale": 0.4, "shear": 30.0}
    (matrix,) = np.asarray(augment.sample_affine(random.key(3), (1, 10, 10), **options), np.float64)
    linear = np.linalg.inv(matrix[:, :2])
    shift = -linear @ matrix[:, 2]
    assert np.all(np.abs(shift) <= 2 + 1e-5)
    # forward = rotation @ shear @ scale, the shear [[1, 0], [k, 1]] on (y, x): its second column is rotation's, scaled
    zoom = np.sqrt(np.linalg.det(linear))
    assert abs(zoom - 1) <= 0.4
    cos, sin = linear[1, 1] / zoom, linear[0, 1] / zoom
    assert abs(cos**2 + sin**2 - 1) < 1e-5
    assert abs(np.rad2deg(np.arctan2(sin, cos))) <= 40
    shear = np.array([[cos, -sin], [sin, cos]]) @ linear / zoom
    np.testing.assert_allclose([shear[0, 0], shear[0, 1], shear[1, 1]], [1, 0, 1], atol=1e-5)
    assert 0 < abs(np.rad2deg(np.arctan(shear[1, 0]))) <= 30


def test_flip_mirrors_about_half_of_the_images():
    images = noise(200, 2, 5)
    out = np.asarray(augment.random_flip(KEY, images))
    is_flipped = np.all(out == images[:, :, ::-1], axis=(1, 2, 3))
    assert np.all(is_flipped | np.all(out == images, axis=(1, 2, 3)))
    assert 70 < is_flipped.sum() < 130


def test_crop_pad_shifts_by_whole_pixels_and_fills():
    images = noise(300, 6, 7, 2)
    out = np.asarray(augment.random_crop_pad(KEY, images, pad=2, fill=(5.0, -3.0)))
    padded = np.stack(
        [np.pad(images[..., c], [(0, 0), (2, 2), (2, 2)], constant_values=(5, -3)[c]) for c in (0, 1)], -1
    )
    seen = set()
    for i in range(300):
        shifts = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if np.allclose(out[i], padded[i, top : top + 6, left : left + 7], atol=1e-5)
        ]
        assert len(shifts) == 1
        seen.update(shifts)
    assert len(seen) == 25


def test_erasing_overwrites_boxes_of_the_published_size():
    images = np.full((400, 32, 24, 3), 7.0, np.float32)
    out = np.asarray(jax.jit(lambda key: augment.random_erasing(key, images, probability=0.25))(KEY))
    erased = np.all(out != 7.0, axis=-1)
    assert np.array_equal(erased, np.any(out != 7.0, axis=-1))
    chosen = erased[erased.any(axis=(1, 2))]
    assert 70 < len(chosen) < 130
    heights, widths = chosen.any(axis=2).sum(axis=1), chosen.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(chosen.sum(axis=(1, 2)), heights * widths)  # one full rectangle each
    share, aspect = heights * widths / (32 * 24), heights / widths
    assert 0.01 < share.min() < 0.1 < 0.25 < share.max() < 0.37
    assert 0.2 < aspect.min() < 0.7 < 1.5 < aspect.max() < 5
    values = out[erased]
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02


@pytest.mark.parametrize("max_count", [1, 3])
def test_erasing_has_timms_distribution(max_count):
    """Area of all boxes together, and of one its sides and place, against 3,000 draws of timm's RandomErasing."""
    with np.load(GOLDEN / "timm_augment.npz") as archive:
        timm_areas, timm_boxes = archive[f"erased_area/{max_count}"], archive["erased_boxes"]
    images = jnp.zeros((3000, 64, 48, 1))
    erase = functools.partial(augment.random_erasing, probability=1.0, max_count=max_count)
    erased = np.asarray(jax.jit(erase)(KEY, images))[..., 0] != 0
    assert scipy.stats.ks_2samp(erased.sum((1, 2)), timm_areas).pvalue > 1e-3
    if max_count == 1:
        rows, columns = erased.any(2), erased.any(1)
        boxes = np.stack([rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)], 1)
        for ours, theirs in zip(boxes.T, timm_boxes.T, strict=True):
            assert scipy.stats.ks_2samp(ours, theirs).pvalue > 1e-3
    with pytest.raises(UserError, match="min_count=2 must be at least 1 and at most max_count=1"):
        augment.random_erasing(KEY, images, probability=1.0, min_count=2)


def mixed_share(onehot, mixed):
    """The one share that explains all targets: mixed = share * onehot + (1 - share) * reversed onehot."""
    differs = np.any(onehot != onehot[::-1], axis=1)
    difference = (onehot - onehot[::-1])[differs]
    shares = np.sum((mixed - onehot[::-1])[differs] * difference, axis=1) / np.sum(difference**2, axis=1)
    np.testing.assert_allclose(shares, shares[0], atol=1e-5)
    np.testing.assert_allclose(mixed, shares[0] * onehot + (1 - shares[0]) * onehot[::-1], atol=1e-5)
    return shares[0]


@pytest.fixture(scope="module")
def batch():
    return noise(6, 8, 11), np.eye(6, dtype=np.float32)


def test_mixup_mixes_images_and_targets_by_one_beta_share(batch):
    images, onehot = batch
    mix = jax.jit(lambda key: augment.mix(key, images, onehot, mixup_alpha=0.8))
    shares = []
    for key in random.split(KEY, 200):
        mixed, targets = (np.asarray(value) for value in mix(key))
        share = mixed_share(onehot, targets)
        np.testing.assert_allclose(mixed, share * images + (1 - share) * images[::-1], atol=1e-5)
        shares.append(share)
    assert abs(np.mean(shares) - 0.5) < 0.07
    assert abs(np.std(shares) - np.sqrt(0.25 / 2.6)) < 0.04  # Beta(0.8, 0.8)


def test_cutmix_pastes_a_box_of_the_partner_and_counts_its_area(batch):
    images, onehot = batch
    mix = jax.jit(lambda key: augment.mix(key, images, onehot, cutmix_alpha=1.0))
    shares, is_cut = [], 0
    for key in random.split(KEY, 200):
        mixed, targets = (np.asarray(value) for value in mix(key))
        share = mixed_share(onehot, targets)
        pasted = np.all(mixed == images[::-1], axis=(0, 3))
        np.testing.assert_array_equal(np.where(pasted[:, :, None], images[::-1], images), mixed)
        assert abs(share - (1 - pasted.mean())) < 1e-5
        rows, columns = pasted.any(axis=1), pasted.any(axis=0)
        assert pasted.sum() == rows.sum() * columns.sum()
        is_cut += 0 < rows.sum() < 8 and bool(rows[0] or rows[-1])
        shares.append(share)
    assert 0.55 < np.mean(shares) < 0.75  # the border cuts boxes, so the mean is above Beta's half
    assert is_cut > 20


def test_cutmix_boxes_before_clipping_follow_the_published_formula():
    """Side sqrt(1 - share) of each side, rounded down; the box reaches size // 2 back and (size + 1) // 2 on."""
    draw = jax.jit(lambda key, share: augment._cutmix_box(key, (1, 20, 30, 3), share))
    for share in (0.0, 0.2, 0.5, 0.75, 0.97, 1.0):
        height, width = int(20 * np.sqrt(1 - share)), int(30 * np.sqrt(1 - share))
        for key in random.split(KEY, 20):
            inside, area = draw(key, share)
            rows, columns = np.asarray(inside)[0, :, :, 0].any(axis=1), np.asarray(inside)[0, :, :, 0].any(axis=0)
            assert abs(float(area) - rows.sum() * columns.sum() / 600) < 1e-6
            for side, expected in ((rows, height), (columns, width)):
                is_clipped = side[0] or side[-1]
                assert side.sum() == expected or (is_clipped and expected // 2 <= side.sum() < expected)


def test_switching_between_mixup_cutmix_and_nothing(batch):
    images, onehot = batch
    mix = jax.jit(
        lambda key: augment.mix(key, images, onehot, mixup_alpha=1.0, cutmix_alpha=1.0, switch_prob=0.25, prob=0.5)[0]
    )
    kinds = []
    for key in random.split(KEY, 300):
        mixed = np.asarray(mix(key))
        is_whole = np.isclose(mixed, images, atol=1e-6) | np.isclose(mixed, images[::-1], atol=1e-6)
        kinds.append("none" if np.array_equal(mixed, images) else "cutmix" if is_whole.all() else "mixup")
    counts = {kind: kinds.count(kind) / 300 for kind in ("none", "cutmix", "mixup")}
    # A few CutMix boxes are empty and look like nothing.
    assert abs(counts["none"] - 0.5) < 0.1
    assert abs(counts["cutmix"] - 0.125) < 0.06
    assert abs(counts["mixup"] - 0.375) < 0.09


def test_mixing_conserves_the_mass_of_each_class_and_of_each_example():
    """Whatever is drawn. Of seven examples the middle one is mixed with itself."""
    targets = np.random.default_rng(0).dirichlet(np.ones(5), 7).astype(np.float32)
    mix = jax.jit(lambda key: augment.mix(key, noise(7, 6, 6), targets, mixup_alpha=0.8, cutmix_alpha=1.0)[1])
    for key in random.split(KEY, 50):
        mixed = np.asarray(mix(key))
        np.testing.assert_allclose(mixed.sum(1), 1, atol=1e-6)
        np.testing.assert_allclose(mixed.sum(0), targets.sum(0), atol=1e-5)
        np.testing.assert_allclose(mixed[3], targets[3], atol=1e-6)
        assert mixed.min() >= 0


def test_mix_without_alphas_changes_nothing(batch):
    images, onehot = batch
    out = augment.mix(KEY, images, onehot)
    assert out[0] is images
    assert out[1] is onehot


OPTIONS = {
    "crop_padding": 2,
    "flip": True,
    "degrees": 10.0,
    "translate": 0.1,
    "scale": 0.1,
    "shear": 5.0,
    "erasing": 0.5,
}
run_augment = jax.jit(augment.augment, static_argnames=[*OPTIONS, "fill"])


def test_augment_is_a_function_of_the_key_and_differs_by_image():
    images = np.broadcast_to(noise(1, 12, 12), (4, 12, 12, 3))
    one, two, other = (run_augment(key, images, **OPTIONS) for key in (KEY, KEY, random.key(1)))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 0.1
    assert np.abs(one[0] - one[1]).max() > 0.1
    assert one.shape == images.shape


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_of_augment_acts_alone(name):
    images = noise(32, 12, 12)
    out = run_augment(KEY, images, **{name: OPTIONS[name]})
    assert np.abs(out - images).max() > 0.1
    np.testing.assert_array_equal(augment.augment(KEY, images), images)


@pytest.mark.parametrize("name", ["crop_padding", "translate"])
def test_fill_is_what_comes_in_from_outside(name):
    images = np.full((16, 8, 8, 2), 0.5, np.float32)
    for fill in (0.5, (0.5, 0.5)):
        np.testing.assert_allclose(run_augment(KEY, images, **{name: OPTIONS[name]}, fill=fill), images, atol=1e-6)
    assert np.min(run_augment(KEY, images, **{name: OPTIONS[name]}, fill=-2.0)) < -0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"erasing": 1.5}, "erasing=1.5 must be a probability"),
        ({"color_jitter": -0.4}, "color_jitter=-0.4"),
        ({"interpolation": "bicubik"}, "unknown interpolation 'bicubik'.*did you mean 'bicubic'"),
        ({"policy": "rand-m12"}, "m=12 is above mmax=10"),
    ],
)
def test_options_that_no_augmentation_has(options, message):
    with pytest.raises(UserError, match=message):
        augment.augment(KEY, jnp.zeros((2, 4, 4, 3), jnp.uint8), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prob": 1.1}, "prob=1.1 must be a probability"),
        ({"switch_prob": -0.1}, "switch_prob=-0.1"),
        ({"mixup_alpha": -1.0}, "mixup_alpha=-1.0"),
    ],
)
def test_options_that_no_mixing_has(batch, options, message):
    with pytest.raises(UserError, match=message):
        augment.mix(KEY, *batch, **options)

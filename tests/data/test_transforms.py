"""Host transforms against independent arithmetic: the resize as a filter sum, the published sizes and crop boxes."""

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from swin_jax.data import host_augment, transforms
from swin_jax.data.policies import parse_policy
from swin_jax.errors import UserError


def encode(pil, file_format="PNG", **options):
    buffer = io.BytesIO()
    pil.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def resize_matrix(old, new, kernel, support):
    """Weights [new, old] of an antialiased 1-D resize: the kernel is stretched by the reduction and normalised."""
    scale = old / new
    stretch = max(scale, 1.0)
    centers = (np.arange(new) + 0.5) * scale
    offsets = (np.arange(old)[None] + 0.5 - centers[:, None]) / stretch
    weights = np.where(np.abs(offsets) < support, kernel(np.abs(offsets)), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def bicubic(x, a=-0.5):
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, far)


@pytest.mark.parametrize(("name", "kernel", "support"), [("bilinear", lambda x: 1 - x, 1), ("bicubic", bicubic, 2)])
@pytest.mark.parametrize("size", [(9, 14), (40, 50), (20, 70)])
def test_resize_is_the_antialiased_filter(name, kernel, support, size):
    image = noise(37, 53) // 2 + 64  # no overshoot leaves 0..255, which Pillow would cut between its two passes
    rows, columns = (resize_matrix(old, new, kernel, support) for old, new in zip((37, 53), size, strict=True))
    expected = np.einsum("hi,ijc,wj->hwc", rows, image.astype(float), columns)
    resized = transforms.resize(transforms.to_pil(image, channels=3), size, interpolation=name)
    assert np.abs(transforms.to_array(resized) - expected.round()).max() <= 1


@given(st.integers(1, 60), st.integers(1, 60), st.integers(8, 40), st.sampled_from([0.5, 0.875, 0.9, 1.0]))
@settings(max_examples=40, deadline=None)
def test_square_center_crop_has_torchvisions_sizes_and_offsets(height, width, size, fraction):
    image = noise(height, width)
    short = math.floor(size / fraction)
    if width <= height:
        new_height, new_width = int(short * height / width), short
    else:
        new_height, new_width = short, int(short * width / height)
    whole = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC)
    top, left = round((new_height - size) / 2.0), round((new_width - size) / 2.0)
    expected = np.asarray(whole)[top : top + size, left : left + size]
    crop = transforms.center_crop(transforms.to_pil(image, channels=3), size, crop_fraction=fraction)
    np.testing.assert_array_equal(transforms.to_array(crop), expected)


def test_center_crop_at_imagenets_size():
    """500x375 at 224 and 0.9: the shorter side to 248, the longer to int(248 * 500 / 375) = 330, cut at (12, 53)."""
    image = noise(375, 500)
    whole = np.asarray(Image.fromarray(image).resize((330, 248), Image.Resampling.BICUBIC))
    crop = transforms.center_crop(transforms.to_pil(image, channels=3), 224, crop_fraction=0.9)
    np.testing.assert_array_equal(transforms.to_array(crop), whole[12:236, 53:277])


def test_rectangular_center_crop_covers_both_sides():
    """100x80 for 32x64 at 0.8: to cover (40, 80) the width decides, ratio 1, so only the crop is left."""
    image = noise(100, 80)
    crop = transforms.center_crop(transforms.to_pil(image, channels=3), (32, 64), crop_fraction=0.8)
    np.testing.assert_array_equal(transforms.to_array(crop), image[34:66, 8:72])


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_random_crop_boxes_lie_inside_and_within_their_ranges(height, width, seed):
    top, left, crop_height, crop_width = transforms.random_crop_box((height, width), np.random.default_rng(seed))
    assert 0 <= top <= top + crop_height <= height
    assert 0 <= left <= left + crop_width <= width
    assert crop_height > 0
    assert crop_width > 0
    if 1 / 2 < height / width < 2 and min(height, width) > 50:  # large enough for rounding not to matter
        assert 0.07 < crop_height * crop_width / (height * width) <= 1
        assert 0.72 < crop_width / crop_height < 1.4


def test_random_crop_boxes_follow_the_published_distribution():
    rng = np.random.default_rng(0)
    boxes = np.array([transforms.random_crop_box((1000, 1000), rng, scale=(0.1, 0.5)) for _ in range(2000)])
    share, log_ratio = boxes[:, 2] * boxes[:, 3] / 1e6, np.log(boxes[:, 3] / boxes[:, 2])
    np.testing.assert_allclose(np.quantile(share, [0, 0.5, 1]), [0.1, 0.3, 0.5], atol=0.02)
    np.testing.assert_allclose(np.quantile(log_ratio, [0, 0.5, 1]), np.log([3 / 4, 1, 4 / 3]), atol=0.03)
    free = 1000 - boxes[:, 2]
    assert abs(np.mean(boxes[:, 0] / free) - 0.5) < 0.03


@pytest.mark.parametrize(("size", "box"), [((10, 1000), (0, 493, 10, 13)), ((1000, 12), (492, 0, 16, 12))])
def test_random_crop_falls_back_to_the_largest_centred_box(size, box):
    """Of a strip no box with a tenth of the area or more and a ratio in [3/4, 4/3] fits, whatever is drawn."""
    assert transforms.random_crop_box(size, np.random.default_rng(0), scale=(0.5, 1)) == box


def test_random_resized_crop_is_crop_then_resize():
    image = noise(50, 60)
    pil = transforms.to_pil(image, channels=3)
    top, left, height, width = transforms.random_crop_box((50, 60), np.random.default_rng(5), scale=(0.2, 0.6))
    out = transforms.random_resized_crop(pil, (16, 24), np.random.default_rng(5), scale=(0.2, 0.6))
    part = Image.fromarray(np.ascontiguousarray(image[top : top + height, left : left + width]))
    np.testing.assert_array_equal(np.asarray(out), np.asarray(part.resize((24, 16), Image.Resampling.BICUBIC)))


def test_every_kind_of_file_becomes_rgb():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    grey = Image.fromarray(ramp)
    rgb = np.stack([ramp, 255 - ramp, ramp // 2], -1)
    palette = Image.fromarray(rgb).quantize(256)
    alpha = Image.fromarray(np.dstack([rgb, np.zeros_like(ramp)]))
    see_through = palette.copy()
    see_through.info["transparency"] = bytes(range(256))
    for name, data, expected, tolerance in [
        ("grey PNG", encode(grey), np.dstack([ramp] * 3), 0),
        ("grey JPEG", encode(grey, "JPEG", quality=100), np.dstack([ramp] * 3), 2),
        ("16-bit PNG", encode(Image.fromarray(ramp.astype(np.uint16) * 257)), np.dstack([ramp] * 3), 0),
        ("grey and alpha", encode(Image.merge("LA", (grey, grey))), np.dstack([ramp] * 3), 0),
        ("RGBA", encode(alpha), rgb, 0),
        ("palette", encode(palette), np.asarray(palette.convert("RGB")), 0),
        ("palette and alpha", encode(see_through), np.asarray(palette.convert("RGB")), 0),
        ("1 bit", encode(Image.fromarray(ramp > 127)), np.dstack([(ramp > 127) * 255] * 3), 0),
        ("CMYK", encode(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=100, subsampling=0), rgb, 6),
    ]:
        out = transforms.to_array(transforms.to_pil(data, channels=3))
        assert (out.shape, out.dtype) == ((16, 16, 3), np.uint8), name
        assert np.abs(out.astype(int) - expected).max() <= tolerance, name


def test_channels_of_arrays():
    image = noise(4, 5)
    one = transforms.to_array(transforms.to_pil(image, channels=1))
    luma = image @ [0.299, 0.587, 0.114]
    assert one.shape == (4, 5, 1)
    assert np.abs(one[..., 0] - luma).max() <= 1
    three = transforms.to_array(transforms.to_pil(one, channels=3))
    np.testing.assert_array_equal(three, np.repeat(one, 3, axis=-1))


def test_exif_rotation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    data = encode(Image.fromarray(noise(4, 9)), "JPEG", exif=exif)
    assert transforms.to_pil(data, channels=3).size == (9, 4)


@pytest.mark.parametrize("kept", [0.3, 0.9, -2])
def test_truncated_jpegs_raise_and_are_never_filled_up(kept):
    data = encode(Image.fromarray(noise(64, 64)), "JPEG")
    cut = data[: int(len(data) * kept)] if kept > 0 else data[:-40]
    with pytest.raises(OSError, match="truncated"):
        transforms.to_pil(cut, channels=3)


def test_flip_mirrors_half_of_the_images():
    image = noise(4, 5)
    transform = transforms.ImageTransform(image_size=(4, 5), channels=3, crop="none", flip=True)
    outs = [transform(image, np.random.default_rng(seed)) for seed in range(200)]
    is_mirrored = [np.array_equal(out, image[:, ::-1]) for out in outs]
    assert all(mirrored or np.array_equal(out, image) for mirrored, out in zip(is_mirrored, outs, strict=True))
    assert 70 < sum(is_mirrored) < 130


def test_a_policy_on_the_host_comes_after_crop_and_flip():
    image, options = noise(20, 24), {"image_size": (16, 12), "channels": 3, "crop": "random_resized", "flip": True}
    fill, drew = (9, 8, 7), 0
    for text in ("rand-m9-mstd0.5-inc1", "randaug(2,10)", "3a"):
        transform = transforms.ImageTransform(**options, policy=text, policy_fill=fill, color_jitter=0.3)
        for seed in range(8):
            rng = np.random.default_rng(seed)
            plain = transforms.ImageTransform(**options)(image, rng)
            pil = host_augment.apply_policy(Image.fromarray(plain), parse_policy(text), rng, fill=fill)
            if text == "3a":  # the others leave no jitter, as in timm
                pil = host_augment.jitter_colors(pil, rng, strength=0.3)
            np.testing.assert_array_equal(transform(image, np.random.default_rng(seed)), np.asarray(pil))
            drew += np.any(np.asarray(pil) != plain)
    assert drew > 15


def test_color_jitter_on_the_host_alone_and_on_greyscale():
    transform = transforms.ImageTransform(image_size=6, channels=1, crop="none", color_jitter=0.4)
    assert transform.is_random
    image = noise(6, 6)[..., :1] // 2
    outs = [transform(image, np.random.default_rng(seed)) for seed in range(5)]
    assert {out.shape for out in outs} == {(6, 6, 1)}
    assert len({out.tobytes() for out in outs}) == 5


def test_crop_none_wants_the_exact_size():
    transform = transforms.ImageTransform(image_size=8, channels=3, crop="none")
    np.testing.assert_array_equal(transform(noise(8, 8)), noise(8, 8))
    with pytest.raises(UserError, match=r"8x9.*crop='none'.*\(8, 8\)"):
        transform(noise(8, 9))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crop": "centre"}, "unknown crop 'centre'.*did you mean 'center'"),
        ({"interpolation": "bicubik"}, "did you mean 'bicubic'"),
        ({"channels": 4}, "channels=4"),
        ({"policy": "rand-m9-mtsd0.5"}, "unknown section 'mtsd0.5'.*did you mean 'mstd'"),
        ({"color_jitter": -1.0}, "color_jitter=-1.0"),
        ({"crop_fraction": 1.5}, "crop_fraction=1.5"),
        ({"crop_scale": (0.5, 0.1)}, "crop_scale"),
        ({"image_size": (1, 2, 3)}, "image_size"),
        ({"image_size": 0}, "image_size"),
    ],
)
def test_wrong_choices_are_told_when_built(wrong, message):
    with pytest.raises(UserError, match=message):
        transforms.ImageTransform(**({"image_size": 8, "channels": 3, "crop": "center"} | wrong))

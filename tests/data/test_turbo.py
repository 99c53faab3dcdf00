"""The fast decoder against Pillow on real photos, libjpeg's reduction against means, and that evaluation is spared."""

import dataclasses
import inspect
import io
import sys

import numpy as np
import pytest
import sklearn.datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from swin_jax.data import transforms, turbo
from swin_jax.data.pipeline import eval_batches
from swin_jax.data.transforms import ImageTransform
from swin_jax.errors import UserError


def encode(image, file_format="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photos():
    return [Image.fromarray(image) for image in sklearn.datasets.load_sample_images().images]  # 640x427


def psnr(a, b):
    return 10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9))


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2, "progressive": True}, {"quality": 30}])
def test_whole_images_are_pillows(photos, options):
    data = encode(photos[0], **options)
    assert turbo.jpeg_size(data) == (427, 640)
    np.testing.assert_array_equal(turbo.decode_jpeg(data, (427, 640)), np.asarray(Image.open(io.BytesIO(data))))


def test_grey_jpegs_become_three_channels(photos):
    data = encode(photos[0].convert("L"))
    pixels = turbo.decode_jpeg(data, turbo.jpeg_size(data))
    np.testing.assert_array_equal(pixels, np.repeat(np.asarray(Image.open(io.BytesIO(data)))[..., None], 3, -1))


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_reduced_pixel_is_the_mean_of_a_square(photos, reduction):
    data = encode(photos[1].convert("L").crop((0, 0, 320, 240)), quality=95)
    whole = np.asarray(Image.open(io.BytesIO(data))).astype(float)
    expected = whole.reshape(240 // reduction, reduction, 320 // reduction, reduction).mean((1, 3))
    reduced = turbo.decode_jpeg(data, (240, 320), reduction=reduction)
    assert np.abs(reduced - expected[..., None]).mean() < 0.5
    assert np.quantile(np.abs(reduced - expected[..., None]), 0.99) <= 1.5


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 512), st.integers(1, 512))
@settings(deadline=None)
def test_nothing_is_reduced_below_the_target(height, width, image_height, image_width):
    by = turbo.reduction((height, width), (image_height, image_width))
    assert by == 1 or (height >= by * image_height and width >= by * image_width)
    assert by == 8 or height < 2 * by * image_height or width < 2 * by * image_width


@pytest.mark.parametrize(("interpolation", "largest", "mean"), [("bilinear", 1, 0.25), ("bicubic", 12, 0.3)])
@pytest.mark.parametrize("box", [(5, 10, 365, 430), (30, 31, 318, 300), (100, 60, 130, 120), (7, 8, 224, 224)])
def test_resize_is_pillows(photos, interpolation, largest, mean, box):
    """Bicubic differs at hard edges, where Pillow cuts overshoot off between its two passes."""
    top, left, height, width = box
    expected = transforms.resize(
        photos[0].crop((left, top, left + width, top + height)), (224, 160), interpolation=interpolation
    )
    resized = turbo.resize_box(np.asarray(photos[0]), box, (224, 160), interpolation=interpolation)
    difference = np.abs(resized.astype(int) - np.asarray(expected))
    assert (resized.shape, resized.dtype) == ((224, 160, 3), np.uint8)
    assert difference.max() <= largest
    assert difference.mean() <= mean


def test_boxes_may_lie_between_pixels():
    """A ramp stays one: the value at a target pixel's centre, away from the edges."""
    ramp = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None] * 4, (60, 50, 1))
    resized = turbo.resize_box(np.ascontiguousarray(ramp), (10.5, 3.25, 30.0, 40.0), (20, 16), interpolation="bilinear")
    expected = 4 * (10.5 + (np.arange(20) + 0.5) * 1.5 - 0.5)
    assert np.abs(resized[2:-2, :, 0] - expected[2:-2, None]).max() <= 0.51


@pytest.mark.parametrize(("scale", "lowest"), [((0.08, 0.5), 50), ((0.9, 1.0), 37)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_random_crops_are_nearly_pillows(photos, scale, lowest, interpolation):
    """Of whole images within 50 dB; of images decoded at half their size within 37 dB, of one box both."""
    reductions = set()
    for seed, photo in enumerate(photos * 2):
        data, (slow, fast) = encode(photo, quality=90), (np.random.default_rng(seed) for _ in range(2))
        options = {"scale": scale, "interpolation": interpolation}
        expected = transforms.random_resized_crop(Image.open(io.BytesIO(data)), 160, slow, **options)
        found = transforms.turbo_random_resized_crop(data, 160, fast, channels=3, **options)
        assert psnr(found, np.asarray(expected)) > lowest
        assert slow.random() == fast.random()
        _, _, height, width = transforms.random_crop_box((427, 640), np.random.default_rng(seed), scale=scale)
        reductions.add(turbo.reduction((height, width), (160, 160)))
    assert reductions == ({2} if lowest == 37 else {1})


def turbo_and_pillow(data, **options):
    common = {"image_size": 32, "channels": 3, "crop": "random_resized", **options}
    return (
        ImageTransform(**common, decoder=name)(data, np.random.default_rng(0)).astype(int)
        for name in transforms.DECODERS
    )


def test_whatever_is_no_plain_jpeg_is_read_by_pillow(photos):
    small = photos[0].resize((80, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show", which is ignored
    for name, data, options in [
        ("PNG", encode(small, "PNG"), {}),
        ("palette", encode(small.quantize(32), "PNG"), {}),
        ("CMYK", encode(small.convert("CMYK")), {}),
        ("turned", encode(small, exif=exif), {}),
        ("one channel", encode(small), {"channels": 1}),
        ("grey", encode(small.convert("L")), {}),
        ("array", np.asarray(small), {}),
        ("flipped", encode(small), {"flip": True}),
    ]:
        pillow, found = turbo_and_pillow(data, **options)
        assert pillow.shape == found.shape, name
        assert np.abs(pillow - found).mean() < 0.5, name


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.9])
def test_truncated_jpegs_raise_and_are_never_filled_up(photos, kept):
    data = encode(photos[0])
    transform = ImageTransform(image_size=32, channels=3, crop="random_resized", decoder="turbo")
    with pytest.raises(OSError, match=r"truncated|cannot identify"):
        transform(data[: int(len(data) * kept)], np.random.default_rng(0))


def test_evaluation_is_spared(photos):
    data = encode(photos[1])
    for crop in ("center", "squash", "resize"):
        options = {"image_size": 64, "channels": 3, "crop": crop, "crop_fraction": 0.9}
        expected = ImageTransform(**options)(data)
        np.testing.assert_array_equal(ImageTransform(**options, decoder="turbo")(data), expected)
    assert "decoder" not in inspect.signature(eval_batches).parameters


def test_what_follows_the_crop_is_not_left_out():
    """A new field that acts after the crop belongs into `only_crops`, and then here."""
    before = {
        "image_size",
        "channels",
        "crop",
        "interpolation",
        "crop_fraction",
        "crop_scale",
        "decoder",
        "policy_fill",
    }
    after = {"flip": True, "policy": "randaug(2,10)", "color_jitter": 0.4}
    assert {field.name for field in dataclasses.fields(ImageTransform)} == before | set(after)
    options = {"image_size": 8, "channels": 3, "crop": "random_resized", "decoder": "turbo"}
    assert ImageTransform(**options).only_crops
    for name, value in after.items():
        assert not ImageTransform(**options, **{name: value}).only_crops


def test_mistakes_are_told_when_built(monkeypatch):
    options = {"image_size": 8, "channels": 3, "crop": "random_resized"}
    with pytest.raises(UserError, match="did you mean 'turbo'"):
        ImageTransform(**options, decoder="turbi")
    with pytest.raises(UserError, match="interpolation='nearest' is none of decoder='turbo'"):
        ImageTransform(**options, decoder="turbo", interpolation="nearest")
    turbo.libraries.cache_clear()
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(UserError, match=r"simplejpeg and cykooz-resizer.*data.decoder=pillow"):
        ImageTransform(**options, decoder="turbo")
    turbo.libraries.cache_clear()

"""Every preset's evaluation preprocessing: timm's settings, and the pixels that Pillow gives by hand for real JPEGs."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from swin_jax.data.augment import normalize
from swin_jax.data.folders import FolderRecords
from swin_jax.data.pipeline import eval_batches
from swin_jax.data.sources import ImageSource
from swin_jax.errors import UserError
from swin_jax.models import list_models, published
from tests.models.published_preprocessing import SETTINGS


def test_every_preset_and_variant_has_timms_settings():
    seen = set()
    for line in SETTINGS.strip().splitlines():
        row, image_size, crop_pct, crop_mode, mean = line.split()
        name, _, variant = row.partition(".")
        found = published.preprocessing(name, variant=variant)
        got = (found.image_size, found.crop_fraction, found.crop, found.mean[0], found.interpolation)
        assert got == (int(image_size), float(crop_pct), crop_mode, float(mean), "bicubic"), row
        assert found.std == {0.5: (0.5, 0.5, 0.5), 0.485: (0.229, 0.224, 0.225)}[found.mean[0]]
        seen.add(name)
    assert seen == set(list_models("swin", "vit")) - {"swin_tiny_c24_patch4_window8_256"}


def all_preprocessing():
    """One of each way to cut an image that any preset has, by timm's or the authors' protocol."""
    found = {}
    for name in list_models("swin", "vit"):
        for protocol in published.PROTOCOLS:
            if protocol == "official" and not name.startswith(("swin_", "deit_")):
                continue
            for variant in published.variants(name) or (None,):
                one = published.preprocessing(name, variant=variant, protocol=protocol)
                found[one.image_size, one.crop, one.crop_fraction] = one
    return list(found.values())


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """scikit-learn's two photos, landscape as they come, one upright and one small."""
    folder = tmp_path_factory.mktemp("photos")
    china, flower = map(Image.fromarray, sklearn.datasets.load_sample_images().images)
    images = {
        "china": china,
        "flower": flower,
        "upright": flower.transpose(Image.Transpose.ROTATE_90).crop((20, 0, 421, 613)),
        "small": china.resize((211, 160), Image.Resampling.LANCZOS),
    }
    for name, image in images.items():
        image.save(folder / f"{name}.jpg", quality=92)
    return tuple(str(folder / f"{name}.jpg") for name in images)


def by_hand(path, preprocessing):
    """torchvision's Resize and CenterCrop as timm composes them, written out with Pillow alone."""
    image = Image.open(io.BytesIO(Path(path).read_bytes())).convert("RGB")
    size = preprocessing.image_size
    if preprocessing.crop == "resize":
        return np.asarray(image.resize((size, size), Image.BICUBIC))
    scale_size = math.floor(size / preprocessing.crop_fraction)
    width, height = image.size
    if preprocessing.crop == "squash":
        width = height = scale_size
    elif width <= height:
        width, height = scale_size, int(scale_size * height / width)
    else:
        width, height = int(scale_size * width / height), scale_size
    pixels = np.asarray(image.resize((width, height), Image.BICUBIC))
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return pixels[top : top + size, left : left + size]


@pytest.mark.parametrize(
    "preprocessing", all_preprocessing(), ids=lambda p: f"{p.image_size}-{p.crop}-{p.crop_fraction}"
)
def test_pixels_are_pillows(preprocessing, photos):
    records = FolderRecords(paths=photos, labels=np.zeros(len(photos), np.int32))
    source = ImageSource(name="photos", records=records, order=np.arange(len(photos)), num_classes=1)
    (batch,) = eval_batches(
        source,
        batch_size=len(photos),
        image_size=preprocessing.image_size,
        channels=3,
        num_classes=1,
        crop=preprocessing.crop,
        crop_fraction=preprocessing.crop_fraction,
        interpolation=preprocessing.interpolation,
        num_threads=1,
    )
    for path, image in zip(photos, batch["image"], strict=True):
        expected = by_hand(path, preprocessing)
        assert image.shape == expected.shape
        assert np.abs(image.astype(int) - expected).max() <= 1, path


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "swin_tiny_patch4_window7_224"])
def test_values_are_normalised_as_published(name):
    found = published.preprocessing(name)
    image = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3) * 5
    expected = (image / 255 - np.array(found.mean)) / np.array(found.std)
    np.testing.assert_allclose(normalize(image, mean=found.mean, std=found.std), expected, atol=1e-6)


def test_figures_are_those_of_the_papers():
    swin = published.targets("swin_tiny_patch4_window7_224", "ms_in1k", "imagenet")
    assert [(row.source, row.accuracy, row.top5) for row in swin] == [("timm", 81.388, 95.54), ("authors", 81.2, 95.5)]
    (vit,) = published.targets("vit_base_patch16_224", "augreg2_in21k_ft_in1k", "v2")
    assert (vit.accuracy, vit.top5) == (75.32, 93.28)
    everything = [row for name in list_models("swin", "vit") for row in published.targets(name, None, "imagenet")]
    assert len(everything) == 62 + 25
    assert all(70 < row.accuracy < 90 and (row.top5 is None or row.accuracy < row.top5 < 100) for row in everything)


@pytest.mark.parametrize(
    ("name", "path", "variant"),
    [
        ("swin_tiny_patch4_window7_224", "hf:timm/swin_tiny_patch4_window7_224.ms_in1k", "ms_in1k"),
        ("swin_base_patch4_window7_224", "/x/swin_base_patch4_window7_224_22kto1k.pth", "ms_in22k_ft_in1k"),
        ("swin_base_patch4_window7_224", "model.safetensors", None),
        ("swin_large_patch4_window7_224", "model.safetensors", "ms_in22k_ft_in1k"),
        ("vit_base_patch16_224", "vit_base_patch16_224.augreg2_in21k_ft_in1k.safetensors", "augreg2_in21k_ft_in1k"),
        ("vit_base_patch16_224", "vit_base_patch16_224.augreg_in21k_ft_in1k", "augreg_in21k_ft_in1k"),
        ("vit_base_patch16_gap_224", "model.npz", None),
    ],
)
def test_the_files_name_may_tell_the_pre_training(name, path, variant):
    assert published.find_variant(name, path) == variant


def test_unknown_protocols_are_told():
    with pytest.raises(UserError, match="unknown protocol 'google', known: timm, official"):
        published.preprocessing("vit_base_patch16_224", protocol="google")
    with pytest.raises(UserError, match="not offered for vit_base_patch16_224"):
        published.preprocessing("vit_base_patch16_224", protocol="official")
    with pytest.raises(UserError, match="did you mean 'ms_in1k'"):
        published.check_variant("swin_base_patch4_window7_224", "in1k")

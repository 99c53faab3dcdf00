"""Published checkpoints: how each preset's images are prepared for evaluation, and the figures to compare with."""

import re
from dataclasses import dataclass

from swin_jax.errors import UserError, did_you_mean

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
PROTOCOLS = ("timm", "official")
DATASETS = ("imagenet", "real", "v2")  # ImageNet's validation set, its ReaL labels, ImageNet-V2 matched frequency
TOLERANCE = 0.1  # percentage points: what another JPEG decoder and another order of sums may cost


@dataclass(frozen=True)
class Preprocessing:
    """From an image file to the model's input; `crop` and `crop_fraction` as in `data.transforms.ImageTransform`."""

    image_size: int = 224
    crop: str = "center"
    crop_fraction: float = 0.9
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __str__(self) -> str:
        size = f"{self.image_size}x{self.image_size}"
        crop = "resized straight" if self.crop == "resize" else f"{self.crop} crop {self.crop_fraction:g}"
        return f"{size}, {crop}, {self.interpolation}, mean {self.mean}, std {self.std}"


@dataclass(frozen=True)
class Target:
    """A published figure in percent; `protocol` is the preprocessing it was measured with, None for one not offered."""

    variant: str
    source: str
    protocol: str | None
    accuracy: float
    top5: float | None = None


# Preset, pre-training -> top-1 and top-5 on ImageNet's validation set, its ReaL labels and ImageNet-V2 (matched
# frequency): timm's own evaluation, huggingface/pytorch-image-models results/*.csv, October 2025.
_TIMM = """
deit3_base_patch16_224.fb_in1k 83.800 96.584 88.261 97.805 73.420 91.260
deit3_base_patch16_224.fb_in22k_ft_in1k 85.728 97.746 89.472 98.557 76.530 93.590
deit3_base_patch16_384.fb_in1k 85.088 97.252 88.940 98.036 74.760 92.190
deit3_base_patch16_384.fb_in22k_ft_in1k 86.742 98.110 89.888 98.602 77.980 94.200
deit3_huge_patch14_224.fb_in1k 85.204 97.364 89.212 98.172 75.800 92.730
deit3_huge_patch14_224.fb_in22k_ft_in1k 87.180 98.264 90.215 98.636 79.210 94.880
deit3_large_patch16_224.fb_in1k 84.772 97.048 88.763 97.908 75.080 92.220
deit3_large_patch16_224.fb_in22k_ft_in1k 86.990 98.246 90.008 98.661 78.640 94.740
deit3_large_patch16_384.fb_in1k 85.820 97.602 89.692 98.401 76.730 93.340
deit3_large_patch16_384.fb_in22k_ft_in1k 87.736 98.508 90.247 98.629 79.220 95.060
deit3_medium_patch16_224.fb_in1k 83.090 96.284 87.822 97.643 72.500 90.810
deit3_medium_patch16_224.fb_in22k_ft_in1k 84.550 97.180 88.921 98.296 74.680 92.570
deit3_small_patch16_224.fb_in1k 81.382 95.454 87.002 97.165 70.770 89.520
deit3_small_patch16_224.fb_in22k_ft_in1k 83.082 96.774 88.343 98.140 73.850 91.970
deit3_small_patch16_384.fb_in1k 83.432 96.674 88.308 97.884 73.010 91.250
deit3_small_patch16_384.fb_in22k_ft_in1k 84.846 97.486 89.372 98.388 75.130 92.800
deit_base_distilled_patch16_224.fb_in1k 83.384 96.492 88.212 97.912 72.970 90.960
deit_base_distilled_patch16_384.fb_in1k 85.438 97.332 89.434 98.441 75.400 92.520
deit_base_patch16_224.fb_in1k 81.980 95.740 86.833 97.062 70.970 89.180
deit_base_patch16_384.fb_in1k 83.108 96.376 87.862 97.510 72.520 90.200
deit_small_distilled_patch16_224.fb_in1k 81.204 95.378 86.985 97.314 70.510 89.380
deit_small_patch16_224.fb_in1k 79.856 95.056 85.672 96.913 68.530 88.170
deit_tiny_distilled_patch16_224.fb_in1k 74.538 91.898 82.012 95.145 62.760 83.850
deit_tiny_patch16_224.fb_in1k 72.190 91.100 80.026 94.464 59.920 82.750
swin_base_patch4_window12_384.ms_in1k 84.478 96.886 88.428 97.814 73.320 91.350
swin_base_patch4_window12_384.ms_in22k_ft_in1k 86.442 98.068 90.063 98.710 77.380 94.320
swin_base_patch4_window7_224.ms_in1k 83.604 96.450 87.869 97.558 72.400 90.840
swin_base_patch4_window7_224.ms_in22k_ft_in1k 85.276 97.566 89.197 98.422 75.700 93.210
swin_large_patch4_window12_384.ms_in22k_ft_in1k 87.142 98.228 90.066 98.663 78.340 94.360
swin_large_patch4_window7_224.ms_in22k_ft_in1k 86.320 97.890 89.786 98.648 77.190 93.770
swin_small_patch4_window7_224.ms_in1k 83.228 96.326 87.685 97.568 71.750 90.220
swin_small_patch4_window7_224.ms_in22k_ft_in1k 83.330 96.996 88.817 98.335 73.690 92.330
swin_tiny_patch4_window7_224.ms_in1k 81.388 95.540 86.677 97.201 69.450 89.020
swin_tiny_patch4_window7_224.ms_in22k_ft_in1k 80.966 96.020 87.296 97.801 70.680 90.490
vit_base_patch16_224.augreg2_in21k_ft_in1k 85.108 97.530 89.457 98.467 75.320 93.280
vit_base_patch16_224.augreg_in1k 79.154 94.108 84.388 96.042 66.340 86.130
vit_base_patch16_224.augreg_in21k_ft_in1k 84.534 97.300 88.887 98.219 74.100 92.370
vit_base_patch16_224.orig_in21k_ft_in1k 81.782 96.122 86.754 97.447 71.070 90.430
vit_base_patch16_224.sam_in1k 80.246 94.764 85.881 96.701 68.370 87.670
vit_base_patch16_384.augreg_in1k 81.102 95.334 86.214 96.960 68.970 88.350
vit_base_patch16_384.augreg_in21k_ft_in1k 86.010 97.998 89.969 98.678 76.160 93.610
vit_base_patch16_384.orig_in21k_ft_in1k 84.212 97.210 88.398 98.147 73.780 92.090
vit_base_patch32_224.augreg_in1k 74.908 91.770 81.145 94.436 61.010 82.740
vit_base_patch32_224.augreg_in21k_ft_in1k 80.732 95.574 85.979 97.137 69.430 89.270
vit_base_patch32_224.sam_in1k 73.704 91.012 80.216 93.823 59.980 81.270
vit_base_patch32_384.augreg_in1k 78.750 94.238 84.717 96.347 66.410 86.910
vit_base_patch32_384.augreg_in21k_ft_in1k 83.358 96.828 87.903 98.021 72.680 91.160
vit_base_patch8_224.augreg2_in21k_ft_in1k 86.252 97.840 89.752 98.516 76.830 93.640
vit_base_patch8_224.augreg_in21k_ft_in1k 85.838 97.776 89.457 98.471 75.830 93.370
vit_large_patch16_224.augreg_in21k_ft_in1k 85.856 97.822 89.318 98.405 76.180 93.480
vit_large_patch16_384.augreg_in21k_ft_in1k 87.096 98.302 90.219 98.653 77.790 94.310
vit_large_patch32_384.orig_in21k_ft_in1k 81.508 96.086 85.913 97.368 70.890 90.460
vit_medium_patch16_gap_256.sw_in12k_ft_in1k 84.442 97.214 88.637 98.185 74.550 91.910
vit_medium_patch16_gap_384.sw_in12k_ft_in1k 85.556 97.638 89.365 98.495 75.710 92.950
vit_small_patch16_224.augreg_in1k 78.842 94.280 84.510 96.285 66.590 86.840
vit_small_patch16_224.augreg_in21k_ft_in1k 81.402 96.150 86.854 97.596 70.630 90.080
vit_small_patch16_384.augreg_in1k 81.130 95.590 86.502 97.186 69.190 88.840
vit_small_patch16_384.augreg_in21k_ft_in1k 83.814 97.106 88.650 98.236 73.170 91.890
vit_small_patch32_224.augreg_in21k_ft_in1k 76.010 93.266 82.503 95.674 63.920 85.590
vit_small_patch32_384.augreg_in21k_ft_in1k 80.476 95.594 86.310 97.412 68.950 89.650
vit_tiny_patch16_224.augreg_in21k_ft_in1k 75.452 92.858 82.061 95.493 63.110 84.900
vit_tiny_patch16_384.augreg_in21k_ft_in1k 78.438 94.542 84.822 96.710 66.410 87.140
"""

# What the authors published: microsoft/Swin-Transformer, facebookresearch/deit, google-research/vision_transformer.
_OFFICIAL = """
swin_tiny_patch4_window7_224.ms_in1k 81.2 95.5
swin_small_patch4_window7_224.ms_in1k 83.2 96.2
swin_base_patch4_window7_224.ms_in1k 83.5 96.5
swin_base_patch4_window12_384.ms_in1k 84.5 97.0
swin_tiny_patch4_window7_224.ms_in22k_ft_in1k 80.9 96.0
swin_small_patch4_window7_224.ms_in22k_ft_in1k 83.2 97.0
swin_base_patch4_window7_224.ms_in22k_ft_in1k 85.2 97.5
swin_base_patch4_window12_384.ms_in22k_ft_in1k 86.4 98.0
swin_large_patch4_window7_224.ms_in22k_ft_in1k 86.3 97.9
swin_large_patch4_window12_384.ms_in22k_ft_in1k 87.3 98.2
swin_tiny_c24_patch4_window8_256.ms_in1k 81.6
deit_tiny_patch16_224.fb_in1k 72.2
deit_small_patch16_224.fb_in1k 79.9
deit_base_patch16_224.fb_in1k 81.8
deit3_small_patch16_224.fb_in1k 81.4
deit3_medium_patch16_224.fb_in1k 83.0
deit3_base_patch16_224.fb_in1k 83.8
deit3_large_patch16_224.fb_in1k 84.9
deit3_huge_patch14_224.fb_in1k 85.2
vit_tiny_patch16_384.augreg_in21k_ft_in1k 78.22
vit_small_patch32_384.augreg_in21k_ft_in1k 79.58
vit_small_patch16_384.augreg_in21k_ft_in1k 83.73
vit_base_patch32_384.augreg_in21k_ft_in1k 83.59
vit_base_patch16_384.augreg_in21k_ft_in1k 85.49
vit_large_patch16_384.augreg_in21k_ft_in1k 85.59
"""

# Preset and variant -> crop fraction in timm; the first that is found decides.
_CROP_FRACTIONS = (
    (r"_c24_", 0.875),  # not in timm
    (r"_siglip_", 0.9),
    (r"_medium_patch16_gap_", 0.95),
    (r"^deit3_.*\.fb_in22k", 1.0),
    (r"_(384|448)(\.|$)", 1.0),
    (r"", 0.9),
)


def _rows(text: str) -> dict[str, tuple[float, ...]]:
    return {name: tuple(map(float, figures)) for name, *figures in map(str.split, text.strip().splitlines())}


_FIGURES = {"timm": _rows(_TIMM), "official": _rows(_OFFICIAL)}


def variants(name: str) -> tuple[str, ...]:
    """Return the pre-trainings, as timm's tags, for which figures of a preset are known."""
    rows = sorted(_FIGURES["timm"].keys() | _FIGURES["official"].keys())
    return tuple(row.partition(".")[2] for row in rows if row.partition(".")[0] == name)


def find_variant(name: str, path: str) -> str | None:
    """Return the pre-training that a checkpoint's name tells, or the only one there is; None if that is not enough."""
    known = variants(name)
    if len(known) == 1:
        return known[0]
    if re.search(r"22kto1k", path):  # in the official names
        known_22k = [variant for variant in known if "in22k_ft" in variant]
        return known_22k[0] if len(known_22k) == 1 else None
    told = [variant for variant in known if re.search(rf"(?<![a-z0-9]){variant}(?![a-z0-9_])", path)]
    return told[0] if len(told) == 1 else None


def check_variant(name: str, variant: str) -> None:
    """Raise UserError for a pre-training that is not known of a preset."""
    known = variants(name)
    if variant not in known:
        listed = ", ".join(known) or "none"
        raise UserError(f"unknown variant {variant!r} of {name}, known: {listed}{did_you_mean(variant, known)}")


def preprocessing(name: str, *, variant: str | None = None, protocol: str = "timm") -> Preprocessing:
    """Return how images are prepared for a preset.

    `timm` is what timm's figures were measured with, `official` what those of the Swin and DeiT authors were. Without
    a variant it is the one that comes first in `variants`.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}, known: {', '.join(PROTOCOLS)}")
    size = name.rpartition("_")[2]
    if not size.isdecimal():
        raise UserError(f"{name} takes no images of a size of its own, so it is not known how to prepare them")
    image_size = int(size)
    variant = variant or next(iter(variants(name)), "")
    is_half = name.startswith("vit_") and not re.search(r"_(huge|giant)_.*_gap_|_small_patch8_", name)  # I-JEPA, DINO
    mean, std = (HALF, HALF) if is_half else (IMAGENET_MEAN, IMAGENET_STD)
    if protocol == "official":
        if not name.startswith(("swin_", "deit_")):
            raise UserError(f"the authors' preprocessing is not offered for {name}, only timm's")
        is_squeezed = name.startswith("swin_") and image_size == 384
        return Preprocessing(image_size, "resize" if is_squeezed else "center", 1.0 if is_squeezed else 0.875)
    crop_fraction = next(value for mark, value in _CROP_FRACTIONS if re.search(mark, f"{name}.{variant}"))
    crop = "squash" if name == "vit_medium_patch16_gap_384" else "center"
    return Preprocessing(image_size, crop, crop_fraction, mean=mean, std=std)


def targets(name: str, variant: str | None, dataset: str) -> list[Target]:
    """Return the published figures of a preset on one of `DATASETS`; of every pre-training where `variant` is None."""
    found = []
    for known in (variant,) if variant else variants(name):
        figures = _FIGURES["timm"].get(f"{name}.{known}")
        if figures:
            accuracy, top5 = figures[2 * DATASETS.index(dataset) :][:2]
            found.append(Target(known, "timm", "timm", accuracy, top5))
        figures = _FIGURES["official"].get(f"{name}.{known}")
        if figures and dataset == "imagenet":
            protocol = "official" if name.startswith(("swin_", "deit_")) else None
            found.append(Target(known, "authors", protocol, *figures))
    return found

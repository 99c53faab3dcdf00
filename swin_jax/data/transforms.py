"""Host-side image transforms on Pillow images: decode, antialiased resize, crops, flip, and where wanted a policy.

Sizes are `(height, width)` throughout; an int means a square.
"""

import dataclasses
import io
import math
from typing import Literal

import numpy as np
from PIL import Image

from swin_jax.data import host_augment, turbo
from swin_jax.data.policies import INTERPOLATIONS, parse_policy
from swin_jax.errors import UserError, did_you_mean

Size = int | tuple[int, int]
Crop = Literal["resize", "random_resized", "center", "squash", "none"]

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
MODES = {1: "L", 3: "RGB"}
CROPS = ("resize", "random_resized", "center", "squash", "none")
DECODERS = ("pillow", "turbo")


def height_width(image_size: Size) -> tuple[int, int]:
    """Return `(height, width)` of an int or a pair; UserError where a side is not a positive whole number."""
    sides = (image_size, image_size) if isinstance(image_size, int | np.integer) else tuple(image_size)
    if len(sides) != 2 or not all(isinstance(side, int | np.integer) and side > 0 for side in sides):
        raise UserError(f"image_size={image_size!r} must be a positive int or a pair (height, width) of them")
    return int(sides[0]), int(sides[1])


def to_pil(image: bytes | np.ndarray, *, channels: int) -> Image.Image:
    """Decode an encoded file or wrap uint8 `[H, W]` / `[H, W, C]`, as Pillow mode L (1 channel) or RGB (3 channels).

    Follows the loader behind the published numbers: EXIF rotation is ignored and an alpha channel is dropped. 16-bit
    greyscale is scaled to 8 bits. Raises OSError for what Pillow cannot read in full.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise ValueError(f"an image array must be uint8, got {image.dtype}")
        pil = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)
    else:
        pil = Image.open(io.BytesIO(image))
        pil.load()
    mode = MODES[channels]
    if pil.mode == mode:
        return pil
    if pil.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip at 255 instead of scaling
        pil = Image.fromarray((np.asarray(pil).clip(0, 65535) / 257.0).round().astype(np.uint8))
    elif pil.mode == "P" and "transparency" in pil.info:
        pil = pil.convert("RGBA")
    return pil.convert(mode)


def to_array(pil: Image.Image) -> np.ndarray:
    """Return the pixels as uint8 `[H, W, C]`, C being 1 for a greyscale image."""
    pixels = np.asarray(pil)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def resize(pil: Image.Image, image_size: Size, *, interpolation: str = "bicubic") -> Image.Image:
    """Resize to exactly `image_size` with Pillow's antialiasing filters; the aspect ratio is not kept."""
    height, width = height_width(image_size)
    return pil.resize((width, height), RESAMPLING[interpolation])


def random_crop_box(
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Sample `(top, left, height, width)` of a crop of an image of `size` (H, W), as torchvision's RandomResizedCrop.

    The area is uniform in `scale` of the image's, width/height log-uniform in `ratio`. After ten boxes that do not fit
    the largest centred box within `ratio` is taken (Szegedy et al. 2015, https://arxiv.org/abs/1409.4842, section 6).
    """
    image_height, image_width = size
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = image_height * image_width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= image_width and 0 < height <= image_height:
            top = int(rng.integers(0, image_height - height + 1))
            left = int(rng.integers(0, image_width - width + 1))
            return top, left, height, width
    height, width = image_height, image_width
    if width / height < ratio[0]:
        height = round(width / ratio[0])
    elif width / height > ratio[1]:
        width = round(height * ratio[1])
    return (image_height - height) // 2, (image_width - width) // 2, height, width


def random_resized_crop(
    pil: Image.Image,
    image_size: Size,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bicubic",
) -> Image.Image:
    """Crop a random box (see `random_crop_box`) and resize it to `image_size`."""
    top, left, height, width = random_crop_box((pil.height, pil.width), rng, scale=scale, ratio=ratio)
    # Cropped first: Pillow's resize(box=...) lets the filter see pixels outside of the box.
    return resize(pil.crop((left, top, left + width, top + height)), image_size, interpolation=interpolation)


def turbo_random_resized_crop(
    data: bytes,
    image_size: Size,
    rng: np.random.Generator,
    *,
    channels: int,
    scale: tuple[float, float] = (0.08, 1.0),
    interpolation: str = "bicubic",
) -> np.ndarray:
    """Return what `random_resized_crop` makes of an encoded file, from the same box, nearly: uint8 `[H, W, channels]`.

    JPEGs are decoded at a half, a quarter or an eighth where the box keeps at least `image_size` of pixels.
    """
    image_size = height_width(image_size)
    size = turbo.jpeg_size(data) if channels == 3 else None
    pixels = None if size else to_array(to_pil(data, channels=channels))
    box = random_crop_box(size or pixels.shape[:2], rng, scale=scale)
    reduction = turbo.reduction(box[2:], image_size) if size else 1
    if size:
        pixels = turbo.decode_jpeg(data, size, reduction=reduction)
    if pixels is None:  # damaged, unless Pillow knows better
        pixels, reduction = to_array(to_pil(data, channels=channels)), 1
    box = tuple(side / reduction for side in box)
    return turbo.resize_box(pixels, box, image_size, interpolation=interpolation)


def center_crop(
    pil: Image.Image, image_size: Size, *, crop_fraction: float = 1.0, interpolation: str = "bicubic"
) -> Image.Image:
    """Scale the image until it just covers floor(image_size / crop_fraction), then cut `image_size` from its centre.

    The evaluation preprocessing of timm and torchvision, with their roundings: for a square the shorter side becomes
    floor(side / crop_fraction) and the longer is cut to a whole number; for a rectangle both are rounded.
    """
    height, width = height_width(image_size)
    cover_height, cover_width = math.floor(height / crop_fraction), math.floor(width / crop_fraction)
    if cover_height == cover_width:
        short, long = sorted((pil.height, pil.width))
        longer = int(cover_height * long / short)
        new_size = (longer, cover_width) if pil.height > pil.width else (cover_height, longer)
    else:
        ratio = min(pil.height / cover_height, pil.width / cover_width)
        new_size = round(pil.height / ratio), round(pil.width / ratio)
    if new_size != (pil.height, pil.width):
        pil = resize(pil, new_size, interpolation=interpolation)
    return _cut_center(pil, height, width)


def squash_crop(
    pil: Image.Image, image_size: Size, *, crop_fraction: float = 1.0, interpolation: str = "bicubic"
) -> Image.Image:
    """Resize the image to floor(image_size / crop_fraction), whatever its shape, then cut `image_size` from its centre.

    timm's `crop_mode="squash"`.
    """
    height, width = height_width(image_size)
    whole = math.floor(height / crop_fraction), math.floor(width / crop_fraction)
    return _cut_center(resize(pil, whole, interpolation=interpolation), height, width)


def _cut_center(pil: Image.Image, height: int, width: int) -> Image.Image:
    top, left = round((pil.height - height) / 2), round((pil.width - width) / 2)
    return pil.crop((left, top, left + width, top + height))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """From a record's image, encoded or an array, to uint8 `[H, W, channels]`; every choice is checked when built.

    The decoder `turbo` makes random resized crops of encoded files faster and nearly the same (see `turbo.py`); of
    everything else, evaluation above all, it changes nothing.

    `policy` (see `policies.parse_policy`) and `color_jitter` are those of `augment.augment`, done here on the host; the
    policy's affine operations bring in `policy_fill`, one value a channel, and sample by `interpolation` like the crop,
    or bicubically where Pillow's transform does not know it.
    """

    image_size: Size
    channels: int
    crop: Crop
    interpolation: str = "bicubic"
    crop_fraction: float = 1.0
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = False
    decoder: str = "pillow"
    policy: str = ""
    policy_fill: tuple[int, ...] = ()
    color_jitter: float = 0.0

    def __post_init__(self):
        height_width(self.image_size)
        if self.channels not in MODES:
            raise UserError(f"channels={self.channels!r} must be 1 (greyscale) or 3 (RGB)")
        if self.crop not in CROPS:
            raise UserError(f"unknown crop {self.crop!r}, known: {', '.join(CROPS)}{did_you_mean(self.crop, CROPS)}")
        if self.interpolation not in RESAMPLING:
            near = did_you_mean(self.interpolation, RESAMPLING)
            raise UserError(f"unknown interpolation {self.interpolation!r}, known: {', '.join(RESAMPLING)}{near}")
        if not 0 < self.crop_fraction <= 1:
            raise UserError(f"crop_fraction={self.crop_fraction} must be in (0, 1]")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise UserError(f"crop_scale={self.crop_scale} must be (smallest, largest) share of the area, in (0, 1]")
        if self.decoder not in DECODERS:
            near = did_you_mean(self.decoder, DECODERS)
            raise UserError(f"unknown decoder {self.decoder!r}, known: {', '.join(DECODERS)}{near}")
        if self.decoder == "turbo":
            turbo.libraries()
            if self.interpolation not in turbo.KERNELS:
                raise UserError(f"interpolation={self.interpolation!r} is none of decoder='turbo'; use 'pillow'")
        if self.policy:
            parse_policy(self.policy)
        if not self.color_jitter >= 0:
            raise UserError(f"color_jitter={self.color_jitter} must be at least 0")

    @property
    def is_random(self) -> bool:
        """Whether the result depends on the generator given to the call."""
        return bool(self.flip or self.crop == "random_resized" or self.policy or self.color_jitter)

    @property
    def only_crops(self) -> bool:
        """Whether nothing follows the crop, so that it need not become a Pillow image."""
        return not (self.flip or self.policy or self.color_jitter)

    def __call__(self, image: bytes | np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Return the transformed pixels; `rng` is needed where `is_random`."""
        size, crop = height_width(self.image_size), self.crop
        if self.decoder == "turbo" and crop == "random_resized" and isinstance(image, bytes):
            options = {"scale": self.crop_scale, "interpolation": self.interpolation}
            image, crop = turbo_random_resized_crop(image, size, rng, channels=self.channels, **options), "none"
            if self.only_crops:
                return image
        pil = to_pil(image, channels=self.channels)
        if crop == "random_resized":
            pil = random_resized_crop(pil, size, rng, scale=self.crop_scale, interpolation=self.interpolation)
        elif crop == "center":
            pil = center_crop(pil, size, crop_fraction=self.crop_fraction, interpolation=self.interpolation)
        elif crop == "squash":
            pil = squash_crop(pil, size, crop_fraction=self.crop_fraction, interpolation=self.interpolation)
        elif crop == "resize":
            pil = resize(pil, size, interpolation=self.interpolation)
        elif (pil.height, pil.width) != size:
            raise UserError(
                f"the image is {pil.height}x{pil.width}, and crop='none' leaves it so, but image_size={size}"
            )
        if self.flip and rng.random() < 0.5:
            pil = pil.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        policy = parse_policy(self.policy) if self.policy else None
        if policy:
            fill = self.policy_fill or (128,) * self.channels
            interpolation = self.interpolation if self.interpolation in INTERPOLATIONS else "bicubic"
            pil = host_augment.apply_policy(pil, policy, rng, fill=fill, interpolation=interpolation)
        if self.color_jitter and (not policy or policy.keeps_color_jitter):
            pil = host_augment.jitter_colors(pil, rng, strength=self.color_jitter)
        return to_array(pil)

"""Decoding and resizing for training, in about half of Pillow's time: libjpeg-turbo (simplejpeg), and SIMD filters
(cykooz-resizer) that are Pillow's own: antialiased, bicubic with a = -0.5.

Both let go of Python's lock while they work. Sizes are `(height, width)`, boxes `(top, left, height, width)`.
"""

import functools
import math
import types

import numpy as np

from swin_jax.errors import UserError

KERNELS = {"box": "box", "bilinear": "bilinear", "bicubic": "catmull_rom", "lanczos": "lanczos3"}
# libjpeg-turbo has fast code for these alone: 7/8, 3/4 and 5/8 take longer than the whole image.
REDUCTIONS = (8, 4, 2)


@functools.cache
def libraries() -> tuple[types.ModuleType, types.ModuleType]:
    """Return simplejpeg and cykooz_resizer; UserError where they are not installed."""
    try:
        import cykooz_resizer
        import simplejpeg
    except ImportError as error:
        need = "decoder='turbo' needs the packages simplejpeg and cykooz-resizer"
        raise UserError(f"{need} ({error}); install them, or set data.decoder=pillow") from error
    return simplejpeg, cykooz_resizer


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return the size of a JPEG that `decode_jpeg` reads; None for one in CMYK, and for whatever is no whole JPEG."""
    simplejpeg, _ = libraries()
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (height, width) if color_space in ("YCbCr", "RGB", "Gray") else None


def reduction(box_size: tuple[int, int], image_size: tuple[int, int]) -> int:
    """Return by how much an image may shrink while it is decoded: 8, 4, 2, or 1 where a side of the box would become
    smaller than `image_size`."""
    fitting = (by for by in REDUCTIONS if all(box >= by * side for box, side in zip(box_size, image_size, strict=True)))
    return next(fitting, 1)


def decode_jpeg(data: bytes, size: tuple[int, int], *, reduction: int = 1) -> np.ndarray | None:
    """Return the pixels of a JPEG of `size`, uint8 `[ceil(H / reduction), ceil(W / reduction), 3]`.

    A reduced pixel is the mean of a square of `reduction` x `reduction`, which libjpeg's inverse DCT gives at once. Not
    reduced, the pixels are Pillow's. None for damaged data, of which nothing is filled up.
    """
    simplejpeg, _ = libraries()
    height, width = (math.ceil(side / reduction) for side in size)
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def resize_box(
    pixels: np.ndarray, box: tuple[float, float, float, float], image_size: tuple[int, int], *, interpolation: str
) -> np.ndarray:
    """Return a box of `pixels`, uint8 `[H, W, 1 or 3]`, resized with antialiasing to `image_size`.

    Of pixels that the box cuts through the filter sees all; of others outside nothing.
    """
    _, resizer = libraries()
    kernel = getattr(resizer.FilterType, KERNELS[interpolation])
    top, left, height, width = box
    rows = slice(math.floor(top), math.ceil(top + height))
    columns = slice(math.floor(left), math.ceil(left + width))
    part = pixels[rows, columns]
    pixel_type = {1: resizer.PixelType.U8, 3: resizer.PixelType.U8x3}[pixels.shape[2]]
    options = resizer.ResizeOptions(
        resize_alg=resizer.ResizeAlg.convolution(kernel),
        crop_box=resizer.CropBox(
            left - columns.start,
            top - rows.start,
            min(width, part.shape[1] - (left - columns.start)),
            min(height, part.shape[0] - (top - rows.start)),
        ),
        use_alpha=False,
    )
    source = resizer.ImageData(part.shape[1], part.shape[0], pixel_type, part.tobytes())
    resized = resizer.ImageData(image_size[1], image_size[0], pixel_type)
    resizer.Resizer().resize(source, resized, options)
    return np.frombuffer(resized.get_buffer(), np.uint8).reshape(*image_size, pixels.shape[2])

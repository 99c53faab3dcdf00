"""The idx format of MNIST and its relatives, http://yann.lecun.com/exdb/mnist: big-endian sizes, then uint8 values."""

import gzip
import math
import pathlib
import struct
import zlib

import numpy as np

from swin_jax.errors import UserError

_UINT8 = 0x08


def find_idx(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """Return the path of `name` or `name`.gz in the folder, None where it has neither."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_idx(path: pathlib.Path) -> np.ndarray:
    """Read a uint8 array from an idx file, gzipped or not; UserError where the file is damaged."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, rank = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{rank}I", data, offset=4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"cannot read the idx file {path}: {error}") from error
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
    if (zero, kind) != (0, _UINT8) or values.size != math.prod(shape):
        raise UserError(f"{path} is no idx file of bytes, or it is cut short")
    return values.reshape(shape)

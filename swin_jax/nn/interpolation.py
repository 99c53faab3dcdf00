"""Resizing of position tables as PyTorch does it, as one small matrix for each axis."""

import jax.numpy as jnp
import numpy as np
from jax import Array


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Cubic convolution kernel (Keys 1981, eq. 15 for a = -0.5)."""
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def resize_matrix(old: int, new: int, *, antialias: bool) -> np.ndarray:
    """Return the float32 matrix `[new, old]` of bicubic resizing with half-pixel centres.

    As `torch.nn.functional.interpolate(mode="bicubic", align_corners=False, antialias=...)`: without antialias the
    kernel has a = -0.75 and edges repeat; with it a = -0.5, widened when shrinking, and edges are renormalised.
    """
    centres = (np.arange(new) + 0.5) * old / new
    matrix = np.zeros((new, old))
    if antialias:
        widen = max(old / new, 1.0)
        weights = _cubic((np.arange(old) + 0.5 - centres[:, None]) / widen, -0.5)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    first = np.floor(centres - 0.5).astype(int)
    for tap in range(-1, 3):
        place = first + tap
        weight = _cubic(centres - 0.5 - place, -0.75)
        np.add.at(matrix, (np.arange(new), np.clip(place, 0, old - 1)), weight)
    return matrix.astype(np.float32)


def resize_grid(grid: Array | np.ndarray, size: tuple[int, int], *, antialias: bool) -> Array | np.ndarray:
    """Resize `[H, W, C]` to `[*size, C]` bicubically (see `resize_matrix`); the same size returns `grid` itself."""
    if grid.shape[:2] == tuple(size):
        return grid
    rows = resize_matrix(grid.shape[0], size[0], antialias=antialias)
    columns = resize_matrix(grid.shape[1], size[1], antialias=antialias)
    einsum = np.einsum if isinstance(grid, np.ndarray) else jnp.einsum
    return einsum("ah,bw,hwc->abc", rows, columns, grid)

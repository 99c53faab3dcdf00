"""Other resolutions and windows: relative position bias tables and learned positions resized, params → params."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt, prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from swin_jax.errors import UserError
from swin_jax.nn.interpolation import resize_grid

METHODS = ("bicubic", "geometric")
Size = tuple[int, int]


def resize_bias_table(table: np.ndarray, old_window: Size, new_window: Size, *, method: str = "bicubic") -> np.ndarray:
    """Resize a relative position bias table `[(2·Wh-1)·(2·Ww-1), heads]` to another window (height, width).

    - `bicubic`: over the grid of offsets, as the official Swin code does (PyTorch's bicubic, without antialias).
    - `geometric`: BEiT's (arXiv 2106.08254, its fine-tuning code). The old offsets are placed in geometric
      progression, dense in the middle, so that near ones keep their meaning; a cubic spline in between.
    """
    old_sides, new_sides = ([2 * side - 1 for side in window] for window in (old_window, new_window))
    grid = _rows(table, old_window).reshape(*old_sides, -1)
    if method == "bicubic":
        grid = resize_grid(grid, tuple(new_sides), antialias=False)
    elif method == "geometric":
        grid = _resize_geometrically(grid, new_sides)
    else:
        raise ValueError(f"{method=} is none of {METHODS}")
    return _restored(grid.reshape(-1, table.shape[-1]), table)


def resize_positions(positions: np.ndarray, old_grid: Size, new_grid: Size, *, antialias: bool = False) -> np.ndarray:
    """Resize learned positions `[1, prefix + h·w, C]` bicubically to another grid; the prefix tokens stay as they are.

    Without antialias as DeiT, BEiT and HF do; with it as timm does.
    """
    prefix = positions.shape[1] - prod(old_grid)
    if prefix < 0:
        raise ValueError(f"positions of shape {positions.shape} are too few for a grid of {old_grid}")
    values = np.asarray(positions, np.float32)
    grid = resize_grid(values[0, prefix:].reshape(*old_grid, -1), tuple(new_grid), antialias=antialias)
    values = np.concatenate([values[0, :prefix], grid.reshape(-1, positions.shape[-1])])[None]
    return _restored(values, positions)


def resize_parameters(
    tree: Any, old_model: nnx.Module, new_model: nnx.Module, *, method: str = "bicubic", antialias: bool = False
) -> Any:
    """Take a pytree of `old_model` to the windows and the grid of `new_model`, which may be other in nothing else.

    `tree` holds arrays under the names of the parameters, at any depth: the parameters, their moving average, or a
    whole optimizer state with its moments. What is nowhere negative, as Adam's second moments, stays so.
    """
    old_sites, new_sites = sites(old_model), sites(new_model)
    if old_sites.keys() != new_sites.keys():
        differing = ", ".join(sorted(old_sites.keys() ^ new_sites.keys())[:3])
        raise ValueError(f"the models differ in more than resolution and windows: {differing}")

    def resized(path: tuple, leaf: Any) -> Any:
        keys = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
        name = next((name for start in range(len(keys)) if (name := ".".join(keys[start:])) in old_sites), None)
        if name is None or old_sites[name].size == new_sites[name].size:
            return leaf
        change = Change(old_sites[name], new_sites[name].size)
        return change.apply(leaf, method=method, antialias=antialias)

    return jax.tree_util.tree_map_with_path(resized, tree)


@dataclass(frozen=True)
class Site:
    """A parameter that depends on a size in tokens: of the window of a bias table, or of the grid of positions."""

    is_table: bool
    size: Size
    num_prefix: int = 0

    def rows(self) -> int:
        height, width = self.size
        return (2 * height - 1) * (2 * width - 1) if self.is_table else self.num_prefix + height * width


@dataclass(frozen=True)
class Change:
    """A parameter's way from one size to another."""

    old: Site
    new_size: Size

    def apply(self, array: Any, *, method: str, antialias: bool) -> Any:
        if self.old.is_table:
            return resize_bias_table(array, self.old.size, self.new_size, method=method)
        return resize_positions(array, self.old.size, self.new_size, antialias=antialias)

    def __str__(self) -> str:
        what = "window" if self.old.is_table else "grid"
        old, new = ("x".join(map(str, size)) for size in (self.old.size, self.new_size))
        return f"{what} {old} → {new}"


def sites(model: nnx.Module) -> dict[str, Site]:
    """Return the parameters of a model that depend on its resolution or windows, by name."""
    found = {}
    for path, module in nnx.iter_modules(model):
        name = ".".join(map(str, (*path, "")))
        if hasattr(module, "relative_position_bias_table"):
            found[f"{name}relative_position_bias_table"] = Site(is_table=True, size=module.table_size)
        if isinstance(getattr(module, "pos_embed", None), nnx.Param) and hasattr(module, "grid_size"):
            num_prefix = module.num_prefix_tokens * module.pos_embed_prefix
            found[f"{name}pos_embed"] = Site(is_table=False, size=module.grid_size, num_prefix=num_prefix)
    return found


def changes(
    model: nnx.Module, values: Mapping[str, np.ndarray], old_window: Size | None, old_grid: Size | None
) -> dict[str, Change]:
    """Return what must change for the file's `values` to fit `model`. Sizes that are not told are taken as square.

    Raises UserError where a size is neither told nor square.
    """
    found = {}
    for name, site in sites(model).items():
        if name not in values or values[name].ndim != (2 if site.is_table else 3):
            continue
        rows = values[name].shape[0 if site.is_table else 1]
        told = old_window if site.is_table else old_grid
        candidates = [told] if told else [site.size]
        candidates.append(_square(rows, site))  # also where a told window had shrunk to a smaller map
        olds = [Site(site.is_table, tuple(size), site.num_prefix) for size in candidates]
        old = next((old for old in olds if old.rows() == rows), None)
        if old is None:
            argument = "old_window_size" if site.is_table else "old_grid_size"
            raise UserError(f"{name} has {rows} rows in the file, which are not square: tell its {argument}")
        if old.size != site.size:
            found[name] = Change(old, site.size)
    return found


def _square(rows: int, site: Site) -> Size:
    side = (isqrt(rows) + 1) // 2 if site.is_table else isqrt(max(rows - site.num_prefix, 0))
    return side, side


def _rows(table: Any, window: Size) -> np.ndarray:
    expected = Site(is_table=True, size=window).rows()
    if table.shape[0] != expected:
        raise ValueError(f"a table for windows {window} has {expected} rows, not {table.shape[0]}")
    return np.asarray(table, np.float32)


def _restored(values: np.ndarray, like: Any) -> Any:
    """Give `values` the dtype and the kind of array of `like`; bicubic overshoot is cut where that is nowhere < 0."""
    if np.all(np.asarray(like) >= 0):
        values = np.maximum(values, 0)
    return jnp.asarray(values, like.dtype) if isinstance(like, jax.Array) else values.astype(like.dtype)


def _resize_geometrically(grid: np.ndarray, new_sides: list[int]) -> np.ndarray:
    from scipy.interpolate import RectBivariateSpline  # here, for it takes most of a second, and few need it

    places = [_geometric_places(old, new) for old, new in zip(grid.shape, new_sides, strict=False)]
    wanted = [np.arange(side) - side // 2 for side in new_sides]
    degrees = [min(3, len(place) - 1) for place in places]
    heads = [
        RectBivariateSpline(*places, grid[..., head], kx=degrees[0], ky=degrees[1])(*wanted)
        for head in range(grid.shape[-1])
    ]
    return np.stack(heads, axis=-1)


def _geometric_places(old_side: int, new_side: int) -> np.ndarray:
    """Return where `old_side` offsets lie among `new_side`: 0, ±1, ±(1 + q), ±(1 + q + q²), ... out to the edge."""
    low, high = 1.01, 1.5
    powers = np.arange(old_side // 2)
    while high - low > 1e-6:  # BEiT's bounds and precision, for its numbers
        ratio = (low + high) / 2
        if np.sum(ratio**powers) > new_side // 2:
            high = ratio
        else:
            low = ratio
    outward = np.cumsum(ratio**powers)
    return np.concatenate([-outward[::-1], [0.0], outward])

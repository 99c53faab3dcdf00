"""Figures of masks and attention. Matplotlib's Figure alone, without pyplot: no display, no state of the process."""

import math
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from swin_jax.errors import UserError

TRUE_COLOR, FALSE_COLOR = (0.16, 0.42, 0.70), (0.91, 0.92, 0.94)
MASK_COLORS = ListedColormap([FALSE_COLOR, TRUE_COLOR])
HEAT_COLOR, REGION_COLORS = (1.0, 0.25, 0.0), "tab20"
MAX_TOKENS = 1024  # more have less than a pixel each
MAX_LABELS, MAX_GRID = 64, 40  # more labels cannot be read, more grid lines only blur
PIXELS_PER_INCH = 100
PLAIN = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍", "$": r"\$"})  # white space shown, no formulas


def save_figure(figure: Figure, path: pathlib.Path) -> None:
    """Write a PNG file, its folder as well. Raises UserError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # an empty box says the same
            figure.savefig(path, format="png")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def draw_masks(
    panels: Sequence[tuple[str, np.ndarray]],
    *,
    query_labels: Sequence[Sequence[str]] | None = None,
    key_labels: Sequence[Sequence[str]] | None = None,
) -> Figure:
    """Draw boolean masks `[Q, K]` with their titles side by side; labels of queries and keys for each panel."""
    side = min(max(0.28 * max(max(mask.shape) for _, mask in panels), 2.4), 6.0)
    figure, axes = _panels(len(panels), side, side)
    for number, (ax, (title, mask)) in enumerate(zip(axes, panels, strict=True)):
        draw_mask(ax, mask)
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("key", fontsize=8)
        ax.set_ylabel("query", fontsize=8)
        _label(ax.xaxis, mask.shape[1], key_labels[number] if key_labels else None)
        _label(ax.yaxis, mask.shape[0], query_labels[number] if query_labels else None)
    _mask_legend(figure)
    return figure


def draw_mask(ax: Axes, mask: np.ndarray) -> None:
    """Draw one mask `[Q, K]`: a cell for each query (row) and key (column)."""
    ax.imshow(mask, cmap=MASK_COLORS, vmin=0, vmax=1, interpolation="nearest")
    if max(mask.shape) <= MAX_GRID:
        cells = np.arange(mask.size).reshape(mask.shape)
        ax.add_collection(_borders(cells, color="white", width=0.8))


def draw_shifted_windows(
    mask: np.ndarray,
    regions_in_place: np.ndarray,
    regions_rolled: np.ndarray,
    *,
    window_size: tuple[int, int],
    title: str,
) -> Figure:
    """Draw the masks of the windows of a rolled map, and the regions that see only themselves (2103.14030, figure 4).

    Args:
        mask: `[nW, 1, M, M]`.
        regions_in_place, regions_rolled: the number of each token's region, `[H, W]` and, with padding (-1), rolled.
        window_size: (height, width).
    """
    rows, columns = (side // window for side, window in zip(regions_rolled.shape, window_size, strict=True))
    side = min(2.0, 14.0 / max(rows, columns))
    figure = Figure(
        figsize=(3.4 + columns * side, max(6.4, 1.0 + rows * side)), dpi=PIXELS_PER_INCH, layout="constrained"
    )
    left, right = figure.subfigures(1, 2, width_ratios=[3.4, columns * side])
    figure.suptitle(title, fontsize=10)
    in_place, rolled = left.subplots(2, 1)
    _draw_regions(in_place, regions_in_place, "regions in the map")
    _draw_regions(rolled, regions_rolled, "regions after the roll, windows in black")
    places = np.arange(rows * columns).reshape(rows, columns)
    places = places.repeat(window_size[0], axis=0).repeat(window_size[1], axis=1)
    rolled.add_collection(_borders(places, color="black", width=1.6))
    for number, ax in enumerate(np.ravel(right.subplots(rows, columns))):
        draw_mask(ax, mask[number, 0])
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_title(f"window {number}", fontsize=8, pad=2)
        if number >= (rows - 1) * columns:
            ax.set_xlabel("key", fontsize=8)
        if number % columns == 0:
            ax.set_ylabel("query", fontsize=8)
    _mask_legend(figure)
    return figure


def draw_token_attention(
    panels: Sequence[tuple[str, np.ndarray]], *, query_labels: Sequence[str], key_labels: Sequence[str], title: str
) -> Figure:
    """Draw probabilities `[Q, K]` of several heads, tokens at the axes: pale 0, dark 1 (one scale for all)."""
    longest = max(len(label) for labels in (query_labels, key_labels) for label in labels)
    height, width = (min(max(0.16 * len(labels), 1.2), 7.0) for labels in (query_labels, key_labels))
    figure, axes = _panels(len(panels), width, height, margin=0.5 + 0.06 * longest)
    figure.suptitle(title, fontsize=10)
    for ax, (name, probabilities) in zip(axes, panels, strict=True):
        image = ax.imshow(probabilities, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
        ax.set_title(name, fontsize=9)
        _label(ax.xaxis, len(key_labels), key_labels, rotation=90)
        _label(ax.yaxis, len(query_labels), query_labels)
    axes[0].set_ylabel("query", fontsize=8)
    axes[0].set_xlabel("key", fontsize=8)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30)
    bar.set_label("probability", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def draw_image_maps(
    image: np.ndarray,
    panels: Sequence[tuple[str, np.ndarray, np.ndarray | None]],
    *,
    title: str,
    position: tuple[float, float] | None = None,
) -> Figure:
    """Draw maps `[h, w]` over an image `[H, W, C]` uint8, which comes first: the redder, the more, from each map's
    lowest value to its highest, which its title tells.

    A panel is its title, the map, and the number of each token's window, whose borders are drawn, or None. `position`
    (shares of height and width) is marked.
    """
    height, width = image.shape[:2]
    figure, axes = _panels(len(panels) + 1, 2.2, 2.2 * height / width, margin=0.25)
    figure.suptitle(title, fontsize=10)
    grey = image.mean(axis=-1)
    for number, ax in enumerate(axes):
        ax.set_xticks([])
        ax.set_yticks([])
        if number == 0:
            ax.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
            ax.set_title("image", fontsize=8)
        else:
            name, heat, windows = panels[number - 1]
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            ax.imshow(grey, cmap="gray", vmin=-60, vmax=315)  # neither black nor white, for the red to show
            low, high = float(heat.min()), float(heat.max())
            opacity = 0.8 * (heat - low) / (high - low or 1.0)
            ax.imshow(np.full((*heat.shape, 3), HEAT_COLOR), alpha=opacity, extent=extent, interpolation="nearest")
            ax.set_title(f"{name}: {low:.2g} to {high:.2g}", fontsize=8)
            if windows is not None:
                scale = (height / heat.shape[0], width / heat.shape[1])
                ax.add_collection(_borders(windows, color="white", width=0.8, scale=scale))
        if position is not None:
            ax.plot(position[1] * width - 0.5, position[0] * height - 0.5, "x", color="cyan", markersize=7)
        ax.set_xlim(-0.5, width - 0.5)
        ax.set_ylim(height - 0.5, -0.5)
    return figure


def _panels(number: int, width: float, height: float, *, margin: float = 0.45) -> tuple[Figure, list[Axes]]:
    """Return a figure with `number` panels of that many inches, and a margin for each, about as wide as it is high."""
    width, height = width + margin, height + margin
    columns = number if number <= 3 else math.ceil(math.sqrt(number * height / width))
    rows = math.ceil(number / columns)
    figure = Figure(figsize=(columns * width, rows * height + 0.5), dpi=PIXELS_PER_INCH, layout="constrained")
    axes = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for ax in axes[number:]:
        ax.remove()
    return figure, axes[:number]


def _label(axis, number: int, labels: Sequence[str] | None, **style) -> None:
    """Name each place of an axis, or number some of them where there are no names or too many."""
    axis.set_tick_params(labelsize=7, length=2)
    if labels is None or number > MAX_LABELS:
        step = max(1, math.ceil(number / 16))
        axis.set_ticks(range(0, number, step))
    else:
        axis.set_ticks(range(number), [label.translate(PLAIN) for label in labels], **style)


def _mask_legend(figure: Figure) -> None:
    colors = {"True: attend": TRUE_COLOR, "False": FALSE_COLOR}
    handles = [Patch(facecolor=color, edgecolor="grey", label=label) for label, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)


def _draw_regions(ax: Axes, regions: np.ndarray, title: str) -> None:
    ax.set_title(title, fontsize=9)
    colors = np.ma.masked_less(regions, 0) % 20
    ax.imshow(colors, cmap=REGION_COLORS, vmin=0, vmax=19, interpolation="nearest")
    for region in range(regions.max() + 1):
        rows, columns = np.nonzero(regions == region)
        if len(rows):
            ax.text(columns.mean(), rows.mean(), str(region), ha="center", va="center", fontsize=8)
    ax.set_xticks([])
    ax.set_yticks([])


def _borders(numbers: np.ndarray, *, color: str, width: float, scale: tuple[float, float] = (1.0, 1.0)):
    """Return the lines between cells with different numbers, and around all of them."""
    padded = np.pad(numbers, 1, constant_values=-2)
    below, beside = np.diff(padded, axis=0) != 0, np.diff(padded, axis=1) != 0
    lines = [((x - 1, y), (x, y)) for y, x in np.argwhere(below)]
    lines += [((x, y - 1), (x, y)) for y, x in np.argwhere(beside)]
    points = np.array(lines, float).reshape(-1, 2, 2) * (scale[1], scale[0]) - 0.5
    return LineCollection(points, colors=color, linewidths=width)

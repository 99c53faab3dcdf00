"""The masks of nn/masks.py as figures: a function for each kind, its keyword arguments what the kind depends on."""

import inspect
from collections.abc import Callable, Sequence

import numpy as np
from jax import Array
from matplotlib.figure import Figure

from swin_jax.errors import UserError, did_you_mean
from swin_jax.nn import masks
from swin_jax.nn.windows import window_merge
from swin_jax.visualization.drawing import MAX_TOKENS, draw_masks, draw_shifted_windows
from swin_jax.visualization.maps import mask_regions, merge_windows, rolled_window_tokens

MAX_WINDOWS = 256


def draw_mask_kind(kind: str, **options) -> Figure:
    """Draw the masks of one of `KINDS`. Raises UserError for another kind, an option it lacks, or a value that does
    not fit."""
    if kind not in KINDS:
        raise UserError(f"unknown kind {kind!r}, known: {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    accepted = inspect.signature(KINDS[kind]).parameters
    for name in options:
        if name not in accepted:
            raise UserError(f"kind {kind!r} has no {name}, only {', '.join(accepted)}")
    try:
        return KINDS[kind](**options)
    except ValueError as error:
        raise UserError(f"kind {kind!r}: {error}") from error


def _causal(*, length: int = 8, keys: int = 0) -> Figure:
    _check_length(length)
    mask = masks.causal_mask(length, _check_length(keys or length))
    return draw_masks([(f"causal, {length} queries, {keys or length} keys", mask[0, 0])])


def _padding(*, lengths: Sequence[int] = (3, 5, 8), length: int = 0, causal: bool = False) -> Figure:
    length = _check_length(length or max(lengths))
    _check_within("lengths", lengths, length)
    mask = masks.padding_mask(np.array(lengths), length)
    mask = masks.combine_masks(mask, masks.causal_mask(length) if causal else np.ones((1, 1, length, length), bool))
    ending = ", causal" if causal else ""
    return _draw_all([f"padding, {real} of {length} real{ending}" for real in lengths], mask)


def _prefix(*, length: int = 8, prefix: Sequence[int] = (3,), lengths: Sequence[int] = ()) -> Figure:
    _check_length(length)
    _check_within("prefix", prefix, length)
    _check_within("lengths", lengths, length)
    if lengths and len(lengths) != len(prefix):
        raise ValueError(f"{len(prefix)} prefixes and {len(lengths)} lengths do not belong together")
    mask = masks.prefix_mask(np.array(prefix), length)
    if not lengths:
        return _draw_all([f"prefix of {seen}" for seen in prefix], mask)
    mask = masks.combine_masks(mask, masks.padding_mask(np.array(lengths), length))
    return _draw_all([f"prefix of {n}, {real} real" for n, real in zip(prefix, lengths, strict=True)], mask)


def _packed(*, segments: Sequence[int] = (1, 1, 1, 2, 2, 2, 2, 0), causal: bool = False) -> Figure:
    numbers = _segments("segments", segments)
    mask = masks.segment_mask(numbers, numbers)
    if causal:
        mask = masks.combine_masks(mask, masks.causal_mask(len(segments)))
    labels = [list(map(str, segments))]
    title = "packed segments" + (", causal" if causal else "")
    return draw_masks([(title, np.asarray(mask)[0, 0])], query_labels=labels, key_labels=labels)


def _cross(
    *, segments: Sequence[int] = (1, 1, 1, 2, 2, 0), source_segments: Sequence[int] = (1, 1, 1, 1, 2, 2, 2, 0)
) -> Figure:
    mask = masks.segment_mask(_segments("segments", segments), _segments("source_segments", source_segments))
    return draw_masks(
        [("target (queries) sees its source (keys)", np.asarray(mask)[0, 0])],
        query_labels=[list(map(str, segments))],
        key_labels=[list(map(str, source_segments))],
    )


def _shifted_window(
    *,
    map_size: tuple[int, int] = (14, 14),
    window_size: tuple[int, int] = (7, 7),
    shift: tuple[int, int] | None = None,
    attend_padding: bool = True,
) -> Figure:
    shift = tuple(side // 2 for side in window_size) if shift is None else shift
    if any(window > side for window, side in zip(window_size, map_size, strict=True)):
        raise ValueError(f"{window_size=} is larger than {map_size=}")
    if min(window_size) < 1:
        raise ValueError(f"{window_size=} must be at least 1")
    tokens = rolled_window_tokens(map_size, window_size, shift)
    num_windows, num_tokens = tokens.shape
    if num_windows > MAX_WINDOWS or num_tokens > MAX_TOKENS:
        raise ValueError(f"{num_windows} windows of {num_tokens} tokens are too many to draw")
    mask = masks.shifted_window_mask(map_size, window_size, shift, attend_padding=attend_padding)
    if mask is None:  # everybody sees everybody
        mask = np.ones((num_windows, 1, num_tokens, num_tokens), bool)
    in_window = mask_regions(mask)
    regions = in_window + np.cumsum([0, *(in_window.max(axis=1) + 1)[:-1]])[:, None]
    regions = np.searchsorted(np.unique(regions[tokens >= 0]), regions)  # numbers without gaps
    padded_size = tuple(-(-side // window) * window for side, window in zip(map_size, window_size, strict=True))
    rolled = window_merge(np.where(tokens < 0, -1, regions)[..., None], window_size, padded_size)[0, ..., 0]
    title = f"map {_by(map_size)}, windows {_by(window_size)}, shift {_by(shift)}"
    return draw_shifted_windows(
        mask, merge_windows(regions, tokens, map_size), rolled, window_size=window_size, title=title
    )


KINDS: dict[str, Callable[..., Figure]] = {
    "causal": _causal,
    "padding": _padding,
    "prefix": _prefix,
    "packed": _packed,
    "cross": _cross,
    "shifted_window": _shifted_window,
}


def _draw_all(titles: Sequence[str], mask: Array) -> Figure:
    """Draw masks `[B, 1, Q, K]` side by side."""
    return draw_masks(list(zip(titles, np.asarray(mask)[:, 0], strict=True)))


def _by(sides: tuple[int, int]) -> str:
    return f"{sides[0]}x{sides[1]}"


def _check_length(length: int) -> int:
    if not 1 <= length <= MAX_TOKENS:
        raise ValueError(f"{length} tokens cannot be drawn, only 1 to {MAX_TOKENS}")
    return length


def _check_within(name: str, values: Sequence[int], length: int) -> None:
    for value in values:
        if not 0 <= value <= length:
            raise ValueError(f"{name} must be from 0 to the length {length}, not {value}")


def _segments(name: str, numbers: Sequence[int]) -> np.ndarray:
    _check_length(len(numbers))
    if min(numbers) < 0:
        raise ValueError(f"{name} count from 1, and 0 is padding, not {min(numbers)}")
    return np.array(numbers, np.int32)[None]

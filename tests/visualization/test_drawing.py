"""Pictures read back: the colours at the centres of cells are what they say."""

import io

import numpy as np
import pytest
from PIL import Image

from swin_jax.errors import UserError
from swin_jax.nn.masks import shifted_window_mask
from swin_jax.visualization.drawing import (
    FALSE_COLOR,
    TRUE_COLOR,
    draw_image_maps,
    draw_masks,
    draw_token_attention,
    save_figure,
)
from swin_jax.visualization.mask_kinds import draw_mask_kind


def painted(figure):
    """Return the PNG's pixels in [0, 1] `[H, W, 3]`, as a viewer reads them."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB")) / 255


def cells(ax, pixels, shape):
    """Return the colours `[rows, columns, 3]` at the centres of an axes' cells."""
    rows, columns = np.indices(shape)
    points = ax.transData.transform(np.stack([columns.ravel(), rows.ravel()], axis=-1))
    x, y = np.floor(points).astype(int).T
    return pixels[len(pixels) - 1 - y, x].reshape(*shape, 3)


def assert_shows(ax, pixels, mask):
    found = cells(ax, pixels, mask.shape)
    np.testing.assert_allclose(found, np.where(mask[..., None], TRUE_COLOR, FALSE_COLOR), atol=1.5 / 255)


def mask(rule, num_queries, num_keys=None):
    """Return the mask of a rule `(query, key) -> sees`, asked for one pair after the other."""
    return np.array([[bool(rule(q, k)) for k in range(num_keys or num_queries)] for q in range(num_queries)])


PACKED, SOURCE = (1, 1, 2, 2, 2, 0), (1, 1, 1, 2)
EXPECTED = {
    "causal": ("causal", {"length": 5, "keys": 7}, [mask(lambda q, k: k - 2 <= q, 5, 7)]),
    "padding": ("padding", {"lengths": (2, 5)}, [mask(lambda q, k, n=n: k < n, 5) for n in (2, 5)]),
    "padding and causal": (
        "padding",
        {"lengths": (2, 4), "length": 4, "causal": True},
        [mask(lambda q, k, n=n: k < n and k <= q, 4) for n in (2, 4)],
    ),
    "prefix": (
        "prefix",
        {"length": 6, "prefix": (0, 3)},
        [mask(lambda q, k, n=n: k <= q or k < n, 6) for n in (0, 3)],
    ),
    "prefix and padding": (
        "prefix",
        {"length": 6, "prefix": (1, 3), "lengths": (6, 4)},
        [mask(lambda q, k: k <= q, 6), mask(lambda q, k: (k <= q or k < 3) and k < 4, 6)],
    ),
    "packed": ("packed", {"segments": PACKED}, [mask(lambda q, k: PACKED[q] == PACKED[k] != 0, 6)]),
    "packed and causal": (
        "packed",
        {"segments": PACKED, "causal": True},
        [mask(lambda q, k: PACKED[q] == PACKED[k] != 0 and k <= q, 6)],
    ),
    "cross": (
        "cross",
        {"segments": PACKED, "source_segments": SOURCE},
        [mask(lambda q, k: PACKED[q] == SOURCE[k], 6, 4)],
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_masks_are_drawn_pair_by_pair(name):
    kind, options, masks = EXPECTED[name]
    figure = draw_mask_kind(kind, **options)
    pixels = painted(figure)
    assert len(figure.axes) == len(masks)
    for ax, mask in zip(figure.axes, masks, strict=True):
        assert_shows(ax, pixels, mask)
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("key", "query")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["True: attend", "False"]


def test_packed_tokens_are_called_by_their_segments():
    (ax,) = draw_mask_kind("packed", segments=(1, 1, 2, 0)).axes
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["1", "1", "2", "0"]


@pytest.mark.parametrize("attend_padding", [True, False])
def test_shifted_windows_show_their_masks_and_regions(attend_padding):
    map_size, window_size, shift = (6, 7), (4, 4), (2, 2)
    options = {"map_size": map_size, "window_size": window_size, "shift": shift, "attend_padding": attend_padding}
    figure = draw_mask_kind("shifted_window", **options)
    pixels = painted(figure)
    in_place, rolled, *windows = figure.axes
    mask = shifted_window_mask(map_size, window_size, shift, attend_padding=attend_padding)
    for number, ax in enumerate(windows):
        assert_shows(ax, pixels, mask[number, 0])
    # Of the map itself: one colour in a region, read beside the numbers in the middle, and others in its neighbours.
    shown = cells(in_place, pixels, map_size)
    assert (shown[0, 0] == shown[1, 1]).all()
    for row, column in [(0, 2), (2, 0), (2, 2), (2, 6), (0, 6)]:
        assert (shown[row, column] != shown[0, 0]).any()
    # After the roll the first token of the map is in the last window, behind the padding, which is white.
    after = cells(rolled, pixels, (8, 8))
    assert (after[6, 6] == shown[0, 0]).all()
    assert (after[0, 0] == shown[2, 2]).all()
    assert (after[4:6] == 1).all()
    assert (after[:, 5] == 1).all()


def test_windows_that_do_not_shift_see_everything():
    figure = draw_mask_kind("shifted_window", map_size=(4, 4), window_size=(2, 2), shift=(0, 0))
    for ax in figure.axes[2:]:
        assert_shows(ax, painted(figure), np.ones((4, 4), bool))


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        ("shiftedwindow", {}, "unknown kind 'shiftedwindow'.*did you mean 'shifted_window'"),
        ("causal", {"prefix": (3,)}, "kind 'causal' has no prefix, only length, keys"),
        ("causal", {"length": 0}, "0 tokens cannot be drawn"),
        ("causal", {"length": 5, "keys": 4}, "num_keys=4 must be at least num_queries=5"),
        ("causal", {"length": 5000}, "5000 tokens cannot be drawn"),
        ("padding", {"lengths": (3, 9), "length": 8}, "lengths must be from 0 to the length 8, not 9"),
        ("prefix", {"length": 4, "prefix": (5,)}, "prefix must be from 0 to the length 4, not 5"),
        ("prefix", {"prefix": (1, 2), "lengths": (3,)}, "2 prefixes and 1 lengths do not belong together"),
        ("packed", {"segments": (1, -1)}, "segments count from 1"),
        (
            "shifted_window",
            {"map_size": (5, 9), "window_size": (7, 7)},
            r"window_size=\(7, 7\) is larger than map_size",
        ),
        ("shifted_window", {"shift": (7, 7)}, "0 <= shift < window"),
        ("shifted_window", {"map_size": (224, 224)}, "1024 windows of 49 tokens are too many"),
        ("shifted_window", {"window_size": (0, 7)}, "must be at least 1"),
    ],
)
def test_masks_that_cannot_be_drawn(kind, options, named):
    with pytest.raises(UserError, match=named):
        draw_mask_kind(kind, **options)


def test_token_attention_is_the_darker_the_more():
    probabilities = np.array([[1.0, 0.0, 0.0], [0.6, 0.4, 0.0]])
    labels = {"query_labels": ["$a_1$", " b"], "key_labels": ["x\n", "y", "z"]}
    figure = draw_token_attention([("head 0", probabilities), ("head 1", probabilities[::-1])], title="t", **labels)
    pixels = painted(figure)
    darkness = 1 - cells(figure.axes[0], pixels, (2, 3)).mean(-1)
    assert (np.argsort(darkness.ravel(), kind="stable")[-3:] == [4, 3, 0]).all()
    np.testing.assert_array_equal(cells(figure.axes[1], pixels, (2, 3)), cells(figure.axes[0], pixels, (2, 3))[::-1])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [r"\$a_1\$", "␣b"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["x⏎", "y", "z"]


def test_image_maps_redden_where_attention_is():
    image = np.full((8, 12, 1), 100, np.uint8)
    heat = np.zeros((2, 3))
    heat[1, 0], heat[0, 2] = 1.0, 0.5
    windows = np.array([[0, 0, 1], [0, 0, 1]])
    figure = draw_image_maps(image, [("layer", heat, windows)], title="t", position=(0.25, 0.5))
    pixels = painted(figure)
    plain, heated = (cells(ax, pixels, (8, 12)) for ax in figure.axes)
    np.testing.assert_allclose(plain[0], 100 / 255, atol=1.5 / 255)
    redness = heated[..., 0] - heated[..., 2]
    for rows, columns, expected in [((4, 7), (0, 3), 1.0), ((1, 3), (8, 11), 0.5), ((5, 7), (8, 11), 0.0)]:
        part = redness[slice(*rows), slice(*columns)]
        np.testing.assert_allclose(part, 0.8 * expected, atol=0.02)
    ax = figure.axes[1]
    border = ax.transData.transform((7.5, 6.5))  # between the windows, at columns 7 and 8
    x, y = int(border[0]), len(pixels) - 1 - int(border[1])
    assert pixels[y, x - 1 : x + 2].min(-1).max() > 0.75  # white
    assert ax.get_title() == "layer: 0 to 1"


def test_a_flat_map_is_no_error():
    painted(draw_image_maps(np.zeros((4, 4, 3), np.uint8), [("layer", np.ones((2, 2)), None)], title="t"))


def test_files_are_written_with_their_folders(tmp_path):
    path = tmp_path / "a" / "b.png"
    save_figure(draw_masks([("one", np.eye(3, dtype=bool))]), path)
    assert Image.open(path).format == "PNG"
    with pytest.raises(UserError, match="cannot be written"):
        save_figure(draw_masks([("one", np.eye(3, dtype=bool))]), path / "c.png")

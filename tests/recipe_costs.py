"""How many multiply-adds an image costs a model: the matrix products of the forward pass, counted by hand."""

from typing import Any

from swin_jax.models import swin, vit


def multiply_adds(name: str, *, image_size: int, num_classes: int, pre_logits: bool = False, **_: Any) -> int:
    """Return the multiply-adds of the preset `name` for one image: convolution, linear layers, scores and mixtures."""
    if name in swin.PRESETS:
        return _swin(image_size=image_size, num_classes=num_classes, **_without(swin.PRESETS[name], "image_size"))
    options = vit.PRESETS[name]
    width, patch = options["embed_dim"], options["patch_size"]
    patches = (image_size // patch) ** 2
    tokens = patches + (0 if _.get("pool") == "gap" else 1)
    block = 12 * width**2 * tokens + 2 * tokens**2 * width  # qkv 3, projection 1, MLP 8; scores and their mixture
    head = width * num_classes + (width**2 if pre_logits else 0)
    return patches * patch**2 * 3 * width + options["depth"] * block + head


def _swin(*, embed_dim, depths, image_size, num_classes, window_size=7, **_) -> int:
    side, width = image_size // 4, embed_dim
    total = side**2 * 4 * 4 * 3 * width
    for stage, depth in enumerate(depths):
        if stage:
            side, width = side // 2, 2 * width
            total += side**2 * (2 * width) * width  # patch merging: from four times the old width to the new
        window = min(window_size, side) ** 2
        total += depth * side**2 * (12 * width**2 + 2 * window * width)
    return total + width * num_classes


def _without(options: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != key}

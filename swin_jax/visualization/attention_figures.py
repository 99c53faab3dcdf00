"""The attention of a model over one image or text as figures, by the names of their files."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from swin_jax.errors import UserError, did_you_mean
from swin_jax.models import CausalTransformer, Transformer, VisionTransformer
from swin_jax.visualization.drawing import MAX_TOKENS, draw_image_maps, draw_token_attention
from swin_jax.visualization.maps import windows_of_map
from swin_jax.visualization.recording import (
    ImageLayer,
    TextLayer,
    TextModel,
    image_attention,
    image_rollout,
    text_attention,
)


def draw_image_attention(
    model: nnx.Module,
    image_u8: np.ndarray,
    normalized: np.ndarray,
    *,
    layer: str = "",
    head: int | None = None,
    position: tuple[int, int] | None = None,
) -> tuple[dict[str, Figure], list[str], np.ndarray]:
    """Draw where a ViT's or Swin's attention goes over an image; return figures, the names of all layers, the output.

    Args:
        image_u8, normalized: `[H, W, C]`, as it is drawn and as the model takes it.
        layer: name or number of one layer, drawn head by head. Without it `layers` has the mean over the heads of each
            layer, and `rollout`, of a ViT, all layers together.
        head: one head instead of their mean.
        position: the pixel (row, column) from which attention is drawn; by default from the class token or the
            pooling's probe, or, where a model has neither, what each token receives from all.

    Raises UserError for a layer, head or position that is not there.
    """
    height, width = image_u8.shape[:2]
    shares = None
    if position is not None:
        if not (0 <= position[0] < height and 0 <= position[1] < width):
            raise UserError(f"position {position} is outside of the model's image of {height}x{width}")
        shares = ((position[0] + 0.5) / height, (position[1] + 0.5) / width)
    layers, output = image_attention(model, jnp.asarray(normalized))
    chosen = _choose(layers, layer, head)
    panels = []
    for each in chosen:
        heat = each.heat(shares)
        borders = windows_of_map(each.tokens, each.map_size) if len(each.tokens) > 1 else None
        if head is not None:
            panels.append((f"{each.name} head {head}", heat[head], borders))
        elif layer:
            panels += [(f"head {number}", values, borders) for number, values in enumerate(heat)]
        else:
            panels.append((each.name, heat.mean(axis=0), borders))
    whose = _whose(model, position)
    if position is None and not chosen[0].reader:
        whose = "that each token receives"
    if len(chosen) > 1 and chosen[-1].is_probe:
        whose += f" ({chosen[-1].name}: {_whose(model)})"
    name = chosen[0].name if layer else "layers"
    title = f"attention {whose}" + (f", {name}" if layer else "")
    figures = {name: draw_image_maps(image_u8, panels, title=title, position=shares)}
    if isinstance(model, VisionTransformer) and not layer and head is None:
        rollout = [("rollout", image_rollout(layers, shares), None)]
        title = f"rollout {_whose(model, position)}"
        figures["rollout"] = draw_image_maps(image_u8, rollout, title=title, position=shares)
    return figures, [each.name for each in layers], output


def draw_text_attention(
    model: nnx.Module,
    tokens: Sequence[int],
    labels: Sequence[str],
    *,
    source: Sequence[int] = (),
    source_labels: Sequence[str] = (),
    prefix: int | None = None,
    layer: str = "",
    head: int | None = None,
) -> tuple[dict[str, Figure], list[str]]:
    """Draw who attends to whom in a text, a figure for each layer (or the one asked for) and a panel for each head.

    Args:
        tokens, labels: ids of the text, of the target where there is a source, and what to call them.
        source, source_labels: the same of what an encoder–decoder translates.
        prefix: how many tokens at the beginning see each other both ways, in a causal model (prefix LM).

    Returns the figures and the names of all layers. Raises UserError for a layer or head that is not there, for a
    source or prefix that the model does not take, and for more tokens than it takes, or than can be drawn.
    """
    if not isinstance(model, TextModel):
        raise UserError(f"{type(model).__name__} is no model for text whose attention could be drawn")
    takes_source = isinstance(model, Transformer)
    if takes_source != bool(len(source)):
        raise UserError(f"a {type(model).__name__} takes {'a source and a target' if takes_source else 'no source'}")
    sequences = {"source": source, "text": tokens} if takes_source else {"text": tokens}
    for name, ids in sequences.items():
        limit = MAX_TOKENS if model.is_rotary else min(model.max_length, MAX_TOKENS)
        if not 1 <= len(ids) <= limit:
            raise UserError(f"the {name} has {len(ids)} tokens, and 1 to {limit} can be drawn of this model")
    if prefix is not None and not (isinstance(model, CausalTransformer) and 0 <= prefix <= len(tokens)):
        raise UserError(f"prefix={prefix} must be from 0 to the {len(tokens)} tokens of a causal model's text")
    options = {} if prefix is None else {"prefix_lengths": jnp.array([prefix])}
    inputs = [jnp.asarray(ids, jnp.int32)[None] for ids in sequences.values()]
    layers = text_attention(model, *inputs, **options)
    figures = {}
    for each in _choose(layers, layer, head):
        heads = range(len(each.probabilities[0])) if head is None else [head]
        query_labels, key_labels = (source_labels if of_source else labels for of_source in each.of_source)
        figures[each.name] = draw_token_attention(
            [(f"head {number}", each.probabilities[0, number]) for number in heads],
            query_labels=query_labels,
            key_labels=key_labels,
            title=f"attention, {each.name}",
        )
    return figures, [each.name for each in layers]


def _choose(layers: list[ImageLayer] | list[TextLayer], layer: str, head: int | None) -> list:
    """Return the layer of that name or number, or all. Raises UserError for a layer or head that is not there."""
    names = [each.name for each in layers]
    if layer in names:
        layers = [layers[names.index(layer)]]
    elif layer.isdecimal() and int(layer) < len(names):
        layers = [layers[int(layer)]]
    elif layer:
        raise UserError(f"no layer {layer!r}: 0 to {len(names) - 1}, or {_listed(names)}{did_you_mean(layer, names)}")
    num_heads = min(each.probabilities.shape[1] for each in layers)
    if head is not None and not 0 <= head < num_heads:
        raise UserError(f"no head {head}: {layers[0].name if layer else 'each layer'} has 0 to {num_heads - 1}")
    return layers


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 5 else f"{names[0]}, {names[1]}, ..., {names[-1]}"


def _whose(model: nnx.Module, position: tuple[int, int] | None = None) -> str:
    """Say whose attention is drawn: of the token at a position, or of what the prediction is read from."""
    if position is not None:
        return f"of the token at row {position[0]}, column {position[1]}"
    pool = model.pool if isinstance(model, VisionTransformer) else "gap"
    return {"cls": "of the class token", "map": "of the pooling's probe", "gap": "of the mean over the tokens"}[pool]

"""The attention of a whole model, layer by layer, recorded while it runs."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from swin_jax.errors import UserError
from swin_jax.models import CausalTransformer, MaskedTransformer, SwinTransformer, Transformer, VisionTransformer
from swin_jax.nn.attention import recorded_attention
from swin_jax.visualization.maps import (
    attention_from,
    attention_received,
    attention_rollout,
    find_token,
    window_tokens,
)

TextModel = CausalTransformer | MaskedTransformer | Transformer
ImageModel = VisionTransformer | SwinTransformer


@dataclass(frozen=True, eq=False)
class TextLayer:
    """Attention of one layer: `probabilities` `[B, heads, Q, K]`, and whether queries and keys are of the source."""

    name: str
    probabilities: np.ndarray
    of_source: tuple[bool, bool]


@dataclass(frozen=True, eq=False)
class ImageLayer:
    """Attention of one layer over one image.

    Attributes:
        probabilities: `[nW, heads, Q, K]`; one window where all tokens see each other.
        tokens: `[nW, K]`, the token of the map at each place, see `maps`.
        map_size: (height, width) in tokens.
        reader: (window, place) of the query that the prediction is read from: a class token, the probe of a pooling.
    """

    name: str
    probabilities: np.ndarray
    tokens: np.ndarray
    map_size: tuple[int, int]
    reader: tuple[int, int] | None = None

    @property
    def num_heads(self) -> int:
        return self.probabilities.shape[1]

    @property
    def is_probe(self) -> bool:
        """Whether the one query is a pooling's probe."""
        return self.probabilities.shape[2] != self.probabilities.shape[3]

    def heat(self, position: tuple[float, float] | None = None) -> np.ndarray:
        """Return a map `[heads, H, W]` of where attention goes.

        From the token at `position`, as shares (0 to 1) of height and width, or from the reader; without either, what
        each token receives from all.
        """
        maps = (self.probabilities, self.tokens, self.map_size)
        if position is not None and not self.is_probe:
            window, place = find_token(self.tokens, _token_at(position, self.map_size))
        elif self.reader is not None:
            window, place = self.reader
        else:
            return attention_received(*maps)
        return attention_from(*maps, window=window, place=place)


def text_attention(model: TextModel, *inputs: Array, **options: Any) -> list[TextLayer]:
    """Call a model for text as given and return the attention of its layers, in the order of their computation.

    Layers are named as the model's own: "decoder.0", and "decoder.0.cross" beside it where there is an encoder.
    """
    if not isinstance(model, TextModel):
        raise UserError(f"{type(model).__name__} is no model for text whose attention could be drawn")
    has_source = model.has_encoder and model.has_decoder
    names: dict[str, tuple[bool, bool]] = {}
    if model.has_encoder:
        names |= {f"encoder.{index}": (has_source, has_source) for index in range(len(model.encoder))}
    if model.has_decoder:
        for index in range(len(model.decoder)):
            names |= {f"decoder.{index}": (False, False)}
            names |= {f"decoder.{index}.cross": (False, True)} if has_source else {}
    maps, _ = _record(model, len(names), *inputs, **options)
    return [TextLayer(name, found, names[name]) for name, found in zip(names, maps, strict=True)]


def image_attention(model: ImageModel, image: Array) -> tuple[list[ImageLayer], np.ndarray]:
    """Return the attention of every layer over a normalised image `[H, W, C]`, and the model's output for it.

    Layers are named as the model's own: "blocks.0", "stages.1.blocks.0", and "attn_pool" for the pooling's.
    """
    if isinstance(model, VisionTransformer):
        return _vit_attention(model, image)
    if isinstance(model, SwinTransformer):
        return _swin_attention(model, image)
    raise UserError(f"{type(model).__name__} is neither a VisionTransformer nor a SwinTransformer, and cannot be drawn")


def image_rollout(layers: Sequence[ImageLayer], position: tuple[float, float] | None = None) -> np.ndarray:
    """Return `[H, W]`: the part of each token of a ViT's map in what the prediction is read from (see
    `attention_rollout`), or in the last output of the token at `position`."""
    pooling = next((layer for layer in layers if layer.name == "attn_pool"), None)
    blocks = [layer for layer in layers if layer is not pooling]
    if any(len(layer.tokens) != 1 for layer in blocks):
        raise ValueError("rollout is for attention over all tokens, not for windows")
    (tokens,), map_size = blocks[0].tokens, blocks[0].map_size
    weights = np.zeros(len(tokens))  # of the last layer's tokens
    if position is not None:
        weights[find_token(tokens[None], _token_at(position, map_size))[1]] = 1.0
    elif pooling:
        weights[tokens >= 0] = pooling.probabilities[0, :, 0].mean(axis=0)
    elif blocks[0].reader:
        weights[blocks[0].reader[1]] = 1.0
    else:
        weights[tokens >= 0] = 1 / (tokens >= 0).sum()
    shares = weights @ attention_rollout([layer.probabilities[0] for layer in blocks])
    return shares[tokens >= 0].reshape(map_size)


def _vit_attention(model: VisionTransformer, image: Array) -> tuple[list[ImageLayer], np.ndarray]:
    names = [f"blocks.{index}" for index in range(len(model.blocks))]
    names += ["attn_pool"] if model.pool == "map" else []
    map_size = tuple(side // patch for side, patch in zip(image.shape[:2], model.patch_embed.patch_size, strict=True))
    maps, output = _record(model, len(names), image[None])
    tokens = np.arange(map_size[0] * map_size[1])[None]
    with_prefix = np.pad(tokens, ((0, 0), (model.num_prefix_tokens, 0)), constant_values=-1)
    layers = []
    for name, probabilities in zip(names, maps, strict=True):
        is_probe = name == "attn_pool"
        reader = (0, 0) if is_probe or model.pool == "cls" else None
        layers.append(ImageLayer(name, probabilities, tokens if is_probe else with_prefix, map_size, reader))
    return layers, np.asarray(output[0], np.float32)


def _swin_attention(model: SwinTransformer, image: Array) -> tuple[list[ImageLayer], np.ndarray]:
    pyramid = jax.eval_shape(model.features, image[None])
    layers = []
    for number, (stage, features) in enumerate(zip(model.stages, pyramid, strict=True)):
        map_size = features.shape[1:3]
        for index, block in enumerate(stage.blocks):
            options = {key: getattr(block, key, None) for key in ("window_size", "shifted", "window_padding")}
            if None in options.values():
                raise UserError(f"a {type(block).__name__} does not tell its windows, and cannot be drawn")
            layers.append((f"stages.{number}.blocks.{index}", window_tokens(map_size, **options), map_size))
    maps, output = _record(model, len(layers), image[None])
    layers = [
        # [B*nW, heads, M, M] without a mask and [B, nW, heads, M, M] with one
        ImageLayer(name, probabilities.reshape(-1, *probabilities.shape[-3:]), tokens, map_size)
        for (name, tokens, map_size), probabilities in zip(layers, maps, strict=True)
    ]
    return layers, np.asarray(output[0], np.float32)


def _record(model: nnx.Module, expected: int, *inputs: Array, **options: Any) -> tuple[list[np.ndarray], Array]:
    """Call the model and return its `expected` maps of probabilities in float32, and its output."""
    with _without_remat(model), recorded_attention() as maps:
        output = model(*inputs, **options)
    if len(maps) != expected or any(isinstance(found, jax.core.Tracer) for found in maps):
        name = type(model).__name__
        raise UserError(
            f"{len(maps)} attentions were seen in a {name} of {expected}, so it cannot be drawn: one of its own layers "
            "does not call nn.attention.dot_product_attention, or calls it inside of jit"
        )
    return [np.asarray(jnp.asarray(found, jnp.float32)) for found in maps], output


@contextlib.contextmanager
def _without_remat(model: nnx.Module) -> Iterator[None]:
    """Rematerialised blocks are traced even in an eager call, and a tracer has no values."""
    changed = [node for _, node in nnx.iter_graph(model) if getattr(node, "remat", False) is True]
    for node in changed:
        node.remat = False
    try:
        yield
    finally:
        for node in changed:
            node.remat = True


def _token_at(position: tuple[float, float], map_size: tuple[int, int]) -> int:
    row, column = (min(int(share * side), side - 1) for share, side in zip(position, map_size, strict=True))
    return row * map_size[1] + column

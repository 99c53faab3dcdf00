"""Transformers for text: encoder–decoder (arXiv 1706.03762), causal (GPT-2), and encoder-only (masked tokens).

Token ids are int32 `[B, N]`. `segments` `[B, N]` say which sequence of a packed row a token belongs to, from 1 on; 0
is padding. Sequences do not see each other, and the positions of each begin at 0. Without `segments` a row is one.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from swin_jax.nn.activations import gelu
from swin_jax.nn.attention import MultiHeadAttention
from swin_jax.nn.blocks import DecoderBlock, EncoderBlock, Mlp
from swin_jax.nn.cache import DecodingCache
from swin_jax.nn.embed import TokenEmbed
from swin_jax.nn.implementations import MULTI_HEAD, choose_attention
from swin_jax.nn.initializers import dense_factory, init_scheme
from swin_jax.nn.layers import run_layers
from swin_jax.nn.masks import causal_mask, combine_masks, prefix_mask, segment_mask, segment_positions
from swin_jax.nn.normalization import LayerNorm
from swin_jax.nn.rng import child
from swin_jax.nn.types import AttentionFactory, MlpFactory, NormFactory

_ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": gelu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "squared_relu": lambda x: jnp.square(jax.nn.relu(x)),  # Primer, arXiv 2109.08668, section 3
}


class _TextTransformer(nnx.Module):
    """The parameters of all three models, whose defaults are those of the paper's base model (table 3).

    Args:
        vocab_size: number of token ids.
        max_length: longest sequence; rotary positions have no such limit.
        depth: blocks of the decoder, or of the encoder where there is nothing else.
        encoder_depth: blocks of the encoder before a decoder; None for as many.
        positions: "sinusoidal", "sinusoidal_halves", "learned" or "rotary"; see `TokenEmbed`.
        scale_embedding: multiply embeddings by sqrt(embed_dim), which then start at its inverse.
        post_norm: LayerNorm behind each residual sum, as the paper; else before each branch and at the end, and the
            branches' last layers start smaller by sqrt(2 depth), as GPT-2's.
        tie_embeddings: predict with the embedding table; else with a linear layer. `logits_bias` adds a bias to either.
        init: see `init_scheme`; embeddings are normal.
        scan: run the blocks of an encoder or decoder as a `lax.scan`; decoding with a cache stays a loop.
        attention_implementation: as in `VisionTransformer`, of self-attention; cross-attention and decoding with a
            cache stay with "xla".
        dtype, param_dtype, remat, attention, mlp, norm: as in `SwinTransformer`; `block` is an encoder block for
            `MaskedTransformer`, a decoder block for the others.
    """

    SCANNED: ClassVar = {"encoder": 1, "decoder": 1}  # what `scan` runs, and after how many layers they repeat

    has_encoder = False
    has_decoder = False

    def __init__(
        self,
        *,
        vocab_size: int,
        max_length: int = 512,
        embed_dim: int = 512,
        depth: int = 6,
        encoder_depth: int | None = None,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        activation: str = "relu",
        norm_eps: float = 1e-5,
        positions: str = "sinusoidal",
        scale_embedding: bool = True,
        post_norm: bool = True,
        tie_embeddings: bool = True,
        logits_bias: bool = False,
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        init: str = "xavier_uniform",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        scan: bool = False,
        attention_implementation: str = "auto",
        block: Any = None,
        attention: AttentionFactory = MultiHeadAttention,
        mlp: MlpFactory = Mlp,
        norm: NormFactory = LayerNorm,
        rngs: nnx.Rngs,
    ):
        if embed_dim % num_heads:
            raise ValueError(f"{embed_dim=} must be divisible by {num_heads=}")
        if activation not in _ACTIVATIONS:
            raise ValueError(f"{activation=} is none of {', '.join(map(repr, _ACTIVATIONS))}")
        attention = choose_attention(
            attention,
            attention_implementation,
            default=MultiHeadAttention,
            others=MULTI_HEAD,
            dtype=dtype,
            head_dim=embed_dim // num_heads,
            attention_dropout_rate=attention_dropout_rate,
        )
        dense = dense_factory(init_scheme(init, conv_fan_in=1).dense, dtype=dtype, param_dtype=param_dtype)
        norm = partial(norm, epsilon=norm_eps, dtype=dtype, param_dtype=param_dtype)
        is_rotary = positions == "rotary"
        block_options = {
            "mlp_ratio": mlp_ratio,
            "qkv_bias": qkv_bias,
            "post_norm": post_norm,
            "dropout_rate": dropout_rate,
            "attention_dropout_rate": attention_dropout_rate,
            "attention": partial(attention, rotary=True) if is_rotary else attention,
            "mlp": mlp if activation == "gelu" else partial(mlp, activation=_ACTIVATIONS[activation]),
            "norm": norm,
            "dense": dense,
        }

        def stack(name: str, factory: Any, depth: int, **options: Any) -> nnx.List:
            blocks = nnx.List(
                factory(embed_dim, num_heads, rngs=child(rngs, name, index), **block_options, **options)
                for index in range(depth)
            )
            if not post_norm:
                _shrink_residual_branches(blocks, (2 * depth) ** -0.5)
            return blocks

        def last_norm(name: str) -> nnx.Module | None:
            return None if post_norm else norm(embed_dim, rngs=child(rngs, name))

        self.vocab_size, self.max_length, self.num_features = vocab_size, max_length, embed_dim
        self.num_heads, self.is_rotary, self.dtype = num_heads, is_rotary, dtype
        self.remat, self.scan = remat, scan
        self.embed = TokenEmbed(
            vocab_size,
            embed_dim,
            positions=positions,
            max_length=max_length,
            scale=scale_embedding,
            dropout_rate=dropout_rate,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=child(rngs, "embed"),
        )
        if self.has_encoder:
            encoder_depth = depth if encoder_depth is None or not self.has_decoder else encoder_depth
            factory = EncoderBlock if block is None or self.has_decoder else block
            self.encoder = stack("encoder", factory, encoder_depth)
            self.encoder_norm = last_norm("encoder_norm")
        if self.has_decoder:
            factory = DecoderBlock if block is None else block
            self.decoder = stack("decoder", factory, depth, cross_attention=self.has_encoder)
            self.decoder_norm = last_norm("decoder_norm")
        head = None if tie_embeddings else dense(embed_dim, vocab_size, use_bias=False, rngs=child(rngs, "head"))
        self.head = head
        self.logits_bias = nnx.Param(jnp.zeros((vocab_size,), param_dtype)) if logits_bias else None

    def _check_length(self, length: int) -> None:
        if length > self.max_length and not self.is_rotary:
            raise ValueError(f"{length} tokens are more than the model's max_length={self.max_length}")

    def _positions(self, tokens: Array, segments: Array | None) -> Array:
        self._check_length(tokens.shape[1])
        return jnp.arange(tokens.shape[1]) if segments is None else segment_positions(segments)

    def _rotary_positions(self, positions: Array, segments: Array | None) -> Array | None:
        """Return what attention has to be told: nothing where positions are 0, 1, ..., which it knows by itself."""
        return positions if self.is_rotary and segments is not None else None

    def _encode(self, tokens: Array, segments: Array | None, rngs: nnx.Rngs | None) -> Array:
        """Map `[B, N]` to `[B, N, C]`."""
        positions = self._positions(tokens, segments)
        mask = None if segments is None else segment_mask(segments, segments)
        inputs = {"mask": mask, "positions": self._rotary_positions(positions, segments)}
        x = self.embed(tokens, positions, rngs=child(rngs, "encoder_embed"))
        x = run_layers(self.encoder, x, name="encoder", rngs=rngs, remat=self.remat, scan=self.scan, **inputs)
        return self.encoder_norm(x) if self.encoder_norm else x

    def _run_decoder(self, x: Array, rngs: nnx.Rngs | None, **inputs: Any) -> Array:
        x = run_layers(self.decoder, x, name="decoder", rngs=rngs, remat=self.remat, scan=self.scan, **inputs)
        return self._logits(self.decoder_norm(x) if self.decoder_norm else x)

    def _logits(self, x: Array) -> Array:
        """Map `[B, N, C]` to float32 `[B, N, vocab_size]`."""
        logits = self.head(x).astype(jnp.float32) if self.head else self.embed.logits(x)
        return logits if self.logits_bias is None else logits + self.logits_bias[...].astype(jnp.float32)

    def _empty_cache(self, batch_size: int, max_length: int, **context: Any) -> DecodingCache:
        self._check_length(max_length)
        return DecodingCache.empty(
            batch_size,
            max_length,
            depth=len(self.decoder),
            num_heads=self.num_heads,
            head_dim=self.num_features // self.num_heads,
            dtype=self.dtype,
            **context,
        )

    def _decode(self, tokens: Array, cache: DecodingCache, *, both_ways: bool = False) -> tuple[Array, DecodingCache]:
        num_tokens = tokens.shape[1]
        if not isinstance(cache.index, jax.core.Tracer) and int(cache.index) + num_tokens > cache.max_length:
            raise ValueError(f"{num_tokens} tokens after {cache.index} do not fit a cache of {cache.max_length}")
        positions, mask = cache.positions(num_tokens), cache.mask(num_tokens, both_ways=both_ways)
        x = self.embed(tokens, positions)
        layers = []
        for index, block in enumerate(self.decoder):
            x, layer = block(
                x,
                mask=mask,
                positions=positions if self.is_rotary else None,
                context=cache.context[index] if cache.context else None,
                context_mask=cache.context_mask,
                cache=cache.layers[index],
                index=cache.index,
            )
            layers.append(layer)
        logits = self._logits(self.decoder_norm(x) if self.decoder_norm else x)
        return logits, dataclasses.replace(cache, layers=tuple(layers), index=cache.index + num_tokens)


class CausalTransformer(_TextTransformer):
    """A decoder-only language model: each token is predicted from those before it (GPT-2, Radford et al. 2019).

    Arguments as in `_TextTransformer`.
    """

    has_decoder = True

    def __call__(
        self,
        tokens: Array,
        *,
        segments: Array | None = None,
        prefix_lengths: Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Array:
        """Map `[B, N]` to float32 logits `[B, N, vocab_size]` of the token that follows each.

        The first `prefix_lengths[b]` tokens of a row see each other both ways (prefix language model).
        """
        num_tokens = tokens.shape[1]
        positions = self._positions(tokens, segments)
        mask = causal_mask(num_tokens) if prefix_lengths is None else prefix_mask(prefix_lengths, num_tokens)
        mask = combine_masks(mask, None if segments is None else segment_mask(segments, segments))
        x = self.embed(tokens, positions, rngs=child(rngs, "embed"))
        return self._run_decoder(x, rngs, mask=mask, positions=self._rotary_positions(positions, segments))

    def init_cache(self, batch_size: int, max_length: int) -> DecodingCache:
        """Return an empty cache for sequences of up to `max_length` tokens."""
        return self._empty_cache(batch_size, max_length)

    def decode(self, tokens: Array, cache: DecodingCache, *, both_ways: bool = False) -> tuple[Array, DecodingCache]:
        """Take the next tokens `[B, N]`; return logits `[B, N, vocab_size]` of what follows each, and the new cache.

        `both_ways`: these N tokens see each other, as the prefix of a prefix language model.
        """
        return self._decode(tokens, cache, both_ways=both_ways)


class MaskedTransformer(_TextTransformer):
    """An encoder that predicts tokens from both sides (BERT, arXiv 1810.04805). Arguments as in `_TextTransformer`."""

    has_encoder = True

    def __call__(self, tokens: Array, *, segments: Array | None = None, rngs: nnx.Rngs | None = None) -> Array:
        """Map `[B, N]`, some of them masked, to float32 logits `[B, N, vocab_size]` of the token at each place."""
        return self._logits(self._encode(tokens, segments, rngs))


class Transformer(_TextTransformer):
    """The encoder–decoder of "Attention is all you need" (arXiv 1706.03762), one vocabulary for source and target.

    Arguments as in `_TextTransformer`.
    """

    has_encoder = True
    has_decoder = True

    def __call__(
        self,
        source: Array,
        target: Array,
        *,
        source_segments: Array | None = None,
        target_segments: Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Array:
        """Map source `[B, S]` and target `[B, T]` to float32 logits `[B, T, vocab_size]` of the next target tokens.

        Packed rows have segments on both sides: a target sequence sees the source sequence of its number.
        """
        if (source_segments is None) != (target_segments is None):
            if target_segments is not None:
                raise ValueError("target_segments need source_segments, to tell which source a target sees")
            target_segments = jnp.ones(target.shape, jnp.int32)
        context = self._encode(source, source_segments, rngs)
        positions = self._positions(target, target_segments)
        mask, context_mask = causal_mask(target.shape[1]), None
        if target_segments is not None:
            mask = combine_masks(mask, segment_mask(target_segments, target_segments))
            context_mask = segment_mask(target_segments, source_segments)
        x = self.embed(target, positions, rngs=child(rngs, "decoder_embed"))
        return self._run_decoder(
            x,
            rngs,
            mask=mask,
            positions=self._rotary_positions(positions, target_segments),
            context=context,
            context_mask=context_mask,
        )

    def init_cache(self, source: Array, max_length: int, *, source_segments: Array | None = None) -> DecodingCache:
        """Encode `source` `[B, S]`, one sequence a row, and return a cache for targets of up to `max_length` tokens."""
        context = self._encode(source, source_segments, None)
        mask = None if source_segments is None else (source_segments > 0)[:, None, None, :]
        keys_values = tuple(block.cross_attention.keys_values(context) for block in self.decoder)
        return self._empty_cache(source.shape[0], max_length, context=keys_values, context_mask=mask)

    def decode(self, tokens: Array, cache: DecodingCache) -> tuple[Array, DecodingCache]:
        """Take the next target tokens `[B, N]`; return logits `[B, N, vocab_size]` of what follows each, and the new
        cache."""
        return self._decode(tokens, cache)


def _shrink_residual_branches(blocks: nnx.List, factor: float) -> None:
    for path, node in nnx.iter_graph(blocks):
        if path[-2:] in (("proj", "kernel"), ("fc2", "kernel")):
            node[...] = node[...] * factor


_GPT2 = {
    "vocab_size": 50_257,
    "max_length": 1024,
    "activation": "gelu_tanh",
    "positions": "learned",
    "scale_embedding": False,
    "post_norm": False,
    "init": "trunc_normal",
}
_PAPER = {"vocab_size": 37_000, "max_length": 512}  # byte pairs of English and German together, section 5.1
CAUSAL_PRESETS = {  # Radford et al. 2019, table 2
    "gpt2": {**_GPT2, "embed_dim": 768, "depth": 12, "num_heads": 12},
    "gpt2_medium": {**_GPT2, "embed_dim": 1024, "depth": 24, "num_heads": 16},
    "gpt2_large": {**_GPT2, "embed_dim": 1280, "depth": 36, "num_heads": 20},
    "gpt2_xl": {**_GPT2, "embed_dim": 1600, "depth": 48, "num_heads": 25},
}
PRESETS = {
    "transformer_base": {**_PAPER, "dropout_rate": 0.1},  # arXiv 1706.03762, table 3
    "transformer_big": {**_PAPER, "embed_dim": 1024, "num_heads": 16, "dropout_rate": 0.3},
    "opus_mt": {  # Marian's transformer-base as Helsinki-NLP's opus-mt has it; vocab_size is that of English–German
        "vocab_size": 58_101,
        "max_length": 512,
        "activation": "silu",
        "positions": "sinusoidal_halves",
        "logits_bias": True,
        "dropout_rate": 0.1,
    },
}

"""Shifted-window attention in one kernel, forward and backward (Pallas, Triton on GPU; arXiv 2103.14030, section 3.2).

The maps stay where they are: shift, partition, mask and merge are indices of the loads and stores. Scores and
probabilities never leave the chip; the backward pass computes them anew from the logarithm of their sums.

A window's tokens are cut into tiles, one for windows of up to 64 tokens. A program has one head, one tile of queries
or of keys or one of each, and goes through a number of windows. So the gradient of the bias gathers on chip over those
windows, goes to a place of the program's own, and is summed over programs at the end: no atomics, always the same sum.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from swin_jax.kernels.window_kernels import (
    Sizes,
    backward_bias_kernel,
    backward_kernel,
    backward_key_value_kernel,
    backward_query_kernel,
    forward_kernel,
)
from swin_jax.kernels.window_layout import WindowLayout
from swin_jax.nn.attention import dot_product_attention
from swin_jax.nn.masks import shifted_window_mask
from swin_jax.nn.windows import window_merge, window_partition


def window_attention(
    qkv: Array, bias: Array, layout: WindowLayout, *, scale: Array | float | None = None, interpret: bool = False
) -> Array:
    """Return softmax(scale · q kᵀ + bias) v inside each window of a padded map, `[B, H, W, heads, head_dim]`.

    Args:
        qkv: `[B, H, W, 3, heads, head_dim]` of the padded map, padding included, before any roll.
        bias: `[heads, M, M]`, added to the scores of each window of M tokens.
        scale: of the scores, one or one for each head `[heads]`; head_dim ** -0.5 if None.
        interpret: run as plain JAX operations, on any device, to test.

    Differentiable in qkv, bias and scale. Scores, softmax and sums are in float32.
    Raises ValueError for shapes that do not fit the layout.
    """
    scale = check(qkv, bias, layout, scale)
    return _attend(qkv, bias, scale, layout, interpret)


def window_attention_reference(
    qkv: Array, bias: Array, layout: WindowLayout, *, scale: Array | float | None = None
) -> Array:
    """Compute what `window_attention` does, step by step: roll, partition, attend, merge, roll back."""
    scale = check(qkv, bias, layout, scale)
    (height, width), shape = layout.padded_size, qkv.shape
    # Roll before padding leaves the padding at the end, where it was.
    rolled = layout.map_size if layout.roll_first else layout.padded_size

    def roll(x: Array, shift: tuple[int, int]) -> Array:
        inside = jnp.roll(x[:, : rolled[0]], shift[0], axis=1)
        x = jnp.concatenate([inside, x[:, rolled[0] :]], axis=1)
        inside = jnp.roll(x[:, :, : rolled[1]], shift[1], axis=2)
        return jnp.concatenate([inside, x[:, :, rolled[1] :]], axis=2)

    x = roll(qkv.reshape(*shape[:3], -1), (-layout.shift[0], -layout.shift[1]))
    windows = window_partition(x, layout.window_size).reshape(-1, layout.windows, layout.tokens, *shape[3:])
    query, key, value = jnp.moveaxis(windows, -3, 0)
    mask = shifted_window_mask(layout.map_size, layout.window_size, layout.shift, attend_padding=layout.attend_padding)
    query = (query * scale[:, None]).astype(value.dtype)  # in float32, and so the sum that is the gradient of scale
    attended = dot_product_attention(query, key, value, bias=bias, mask=mask, scale=1.0)
    attended = attended.reshape(-1, layout.tokens, shape[4] * shape[5])
    merged = window_merge(attended, layout.window_size, (height, width))
    return roll(merged, layout.shift).reshape(*shape[:3], *shape[4:])


def check(qkv: Array, bias: Array, layout: WindowLayout, scale: Array | float | None) -> Array:
    """Return the scale of each head, float32 `[heads]`, or raise ValueError for shapes that do not fit."""
    if qkv.ndim != 6 or qkv.shape[1:3] != layout.padded_size or qkv.shape[3] != 3:
        raise ValueError(f"need qkv [B, {layout.padded_size}, 3, heads, head_dim], got {qkv.shape} for {layout}")
    heads, head_dim = qkv.shape[4:]
    if bias.shape != (heads, layout.tokens, layout.tokens):
        raise ValueError(f"need a bias of shape {(heads, layout.tokens, layout.tokens)}, got {bias.shape}")
    scale = jnp.asarray(head_dim**-0.5 if scale is None else scale, jnp.float32)
    if scale.shape not in ((), (heads,)):
        raise ValueError(f"need one scale or {heads}, got {scale.shape}")
    return jnp.broadcast_to(scale, (heads,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attend(qkv: Array, bias: Array, scale: Array, layout: WindowLayout, interpret: bool) -> Array:
    return _forward(qkv, bias, scale, layout, interpret)[0]


def _forward(qkv: Array, bias: Array, scale: Array, layout: WindowLayout, interpret: bool) -> tuple[Array, Any]:
    sizes = Sizes.of(qkv, layout)
    flat = qkv.reshape(sizes.rows, 3, sizes.heads, sizes.head_dim)
    bias_tiles = sizes.pad_bias(bias)
    per_program = sizes.windows_per_program(sizes.heads * sizes.tiles)
    out, log_sums = pl.pallas_call(
        functools.partial(forward_kernel, sizes=sizes, per_program=per_program),
        out_shape=(
            jax.ShapeDtypeStruct((sizes.rows, sizes.heads, sizes.head_dim), qkv.dtype),
            jax.ShapeDtypeStruct((sizes.windows, sizes.heads, sizes.padded_tokens), jnp.float32),
        ),
        grid=(sizes.heads, sizes.tiles, sizes.windows // per_program),
        compiler_params=_COMPILER,
        interpret=interpret,
        name="window_attention",
    )(flat, bias_tiles, scale)
    out = out.reshape(*qkv.shape[:3], sizes.heads, sizes.head_dim)
    return out, (qkv, bias, scale, out, log_sums)


def _backward(layout: WindowLayout, interpret: bool, residuals: Any, d_out: Array) -> tuple[Array, Array, Array]:
    qkv, bias, scale, out, log_sums = residuals
    sizes = Sizes.of(qkv, layout)
    flat_out = (sizes.rows, sizes.heads, sizes.head_dim)
    inputs = (
        qkv.reshape(sizes.rows, 3, sizes.heads, sizes.head_dim),
        sizes.pad_bias(bias),
        scale,
        out.reshape(flat_out),
        log_sums,
        d_out.astype(qkv.dtype).reshape(flat_out),
    )
    tiles = sizes.tiles

    def run(kernel: Callable, tile_grid: tuple[int, ...], outputs: Sequence[str], aliased: Array | None = None):
        per_program = sizes.windows_per_program(sizes.heads * math.prod(tile_grid))
        groups = sizes.windows // per_program
        shapes = {
            "qkv": jax.ShapeDtypeStruct(inputs[0].shape, qkv.dtype),
            # A place for each group of windows, to be summed.
            "bias": jax.ShapeDtypeStruct((groups, sizes.heads, *(sizes.padded_tokens,) * 2), jnp.float32),
        }
        return pl.pallas_call(
            functools.partial(kernel, sizes=sizes, per_program=per_program),
            out_shape=[shapes[name] for name in outputs],
            grid=(sizes.heads, *tile_grid, groups),
            input_output_aliases={} if aliased is None else {len(inputs): 0},
            compiler_params=_COMPILER,
            interpret=interpret,
            name=f"window_attention_{kernel.__name__.removesuffix('_kernel')}",
        )(*inputs, *(() if aliased is None else (aliased,)))

    if tiles == 1:
        d_qkv, d_bias = run(backward_kernel, (), ("qkv", "bias"))
    else:  # each sum over tiles is a program's own; the price is that scores are computed three times
        (d_queries,) = run(backward_query_kernel, (tiles,), ("qkv",))
        (d_bias,) = run(backward_bias_kernel, (tiles, tiles), ("bias",))
        (d_qkv,) = run(backward_key_value_kernel, (tiles,), ("qkv",), aliased=d_queries)
    d_bias = d_bias.sum(axis=0)[:, : layout.tokens, : layout.tokens].astype(bias.dtype)
    # A score is scale · q kᵀ + bias, so the gradient of scale is that of q, times q, without another kernel.
    d_scale = jnp.einsum("rhd,rhd->h", d_qkv[:, 0].astype(jnp.float32), inputs[0][:, 0].astype(jnp.float32)) / scale
    return d_qkv.reshape(qkv.shape), d_bias, d_scale


_attend.defvjp(_forward, _backward)
_COMPILER = triton.CompilerParams(num_warps=4, num_stages=2)

"""Shifted-window attention in one kernel, forward and backward (Pallas, Triton on GPU; arXiv 2103.14030, section 3.2).

The maps stay where they are: shift, partition, mask and merge are indices of the loads and stores. Scores and
probabilities never leave the chip; the backward pass computes them anew from the logarithm of their sums.

A window's tokens are cut into tiles, one for windows of up to 64 tokens. A program has one head, one tile of queries
or of keys or one of each, and goes through a number of windows. So the gradient of the bias gathers on chip over those
windows, goes to a place of the program's own, and is summed over programs at the end: no atomics, the same sum each time.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from swin_jax.kernels.window_layout import Places, WindowLayout, sees
from swin_jax.nn.attention import dot_product_attention
from swin_jax.nn.masks import shifted_window_mask
from swin_jax.nn.windows import window_merge, window_partition

MAX_TILE = 64  # tokens: a 64 x 64 tile of float32 scores is 32 registers in each of 128 threads
MIN_TILE = 16  # the least that a tensor core multiplies
PROGRAMS = 2048  # enough to fill a large GPU several times; programs beyond that go through more windows instead


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
    mask = shifted_window_mask(
        layout.map_size, layout.window_size, layout.shift, attend_padding=layout.attend_padding
    )
    query = query * scale[:, None].astype(query.dtype)
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
    sizes = _Sizes.of(qkv, layout)
    flat = qkv.reshape(sizes.rows, 3, sizes.heads, sizes.head_dim)
    bias_tiles = sizes.pad_bias(bias)
    per_program = sizes.windows_per_program(sizes.heads * sizes.tiles)
    out, log_sums = pl.pallas_call(
        functools.partial(_forward_kernel, sizes=sizes, per_program=per_program),
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
    sizes = _Sizes.of(qkv, layout)
    flat_out = (sizes.rows, sizes.heads, sizes.head_dim)
    inputs = (
        qkv.reshape(sizes.rows, 3, *flat_out[1:]),
        sizes.pad_bias(bias),
        scale,
        out.reshape(flat_out),
        log_sums,
        d_out.astype(qkv.dtype).reshape(flat_out),
    )

    def run(name: str, grid: tuple[int, int], d_qkv: Array | None = None) -> list[Array]:
        """Run the backward kernel for some of the gradients: those of "qkv" and "bias" in `name`, or of parts."""
        per_program = sizes.windows_per_program(sizes.heads * grid[0] * grid[1])
        groups = sizes.windows // per_program
        shapes = []
        if name != "bias":
            shapes.append(jax.ShapeDtypeStruct(inputs[0].shape, qkv.dtype))
        if "bias" in name:
            shape = (groups, sizes.heads, sizes.padded_tokens, sizes.padded_tokens)
            shapes.append(jax.ShapeDtypeStruct(shape, jnp.float32))
        given = inputs if d_qkv is None else (*inputs, d_qkv)
        return pl.pallas_call(
            functools.partial(_backward_kernel, wanted=name, sizes=sizes, per_program=per_program, tile_grid=grid),
            out_shape=shapes,
            grid=(sizes.heads, *grid, groups),
            input_output_aliases={} if d_qkv is None else {len(inputs): 0},
            compiler_params=_COMPILER,
            interpret=interpret,
            name=f"window_attention_backward_{name}",
        )(*given)

    tiles = sizes.tiles
    if tiles == 1:
        d_qkv, d_bias = run("qkv_bias", (1, 1))
    else:  # each sum over tiles is a program's own; the price is that scores are computed three times
        (d_qkv,) = run("q", (tiles, 1))
        (d_qkv,) = run("kv", (1, tiles), d_qkv)
        (d_bias,) = run("bias", (tiles, tiles))
    d_bias = d_bias.sum(axis=0)[:, : layout.tokens, : layout.tokens].astype(bias.dtype)
    # A score is scale · q kᵀ + bias, so the gradient of scale is that of q, times q, without another kernel.
    d_scale = jnp.einsum("rhd,rhd->h", d_qkv[:, 0].astype(jnp.float32), inputs[0][:, 0].astype(jnp.float32)) / scale
    return d_qkv.reshape(qkv.shape), d_bias, d_scale


_attend.defvjp(_forward, _backward)
_COMPILER = triton.CompilerParams(num_warps=4, num_stages=2)


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """What the kernels know at compile time."""

    layout: WindowLayout
    batch: int
    heads: int
    head_dim: int

    @classmethod
    def of(cls, qkv: Array, layout: WindowLayout) -> "_Sizes":
        return cls(layout, qkv.shape[0], *qkv.shape[4:])

    @property
    def rows(self) -> int:
        return self.windows * self.layout.tokens

    @property
    def windows(self) -> int:
        return self.batch * self.layout.windows

    @property
    def tile(self) -> int:
        return min(MAX_TILE, max(MIN_TILE, pl.next_power_of_2(self.layout.tokens)))

    @property
    def tiles(self) -> int:
        return -(-self.layout.tokens // self.tile)

    @property
    def padded_tokens(self) -> int:
        return self.tiles * self.tile

    @property
    def padded_head_dim(self) -> int:
        return max(MIN_TILE, pl.next_power_of_2(self.head_dim))

    def pad_bias(self, bias: Array) -> Array:
        """Return the bias in float32, padded to whole tiles."""
        padding = self.padded_tokens - self.layout.tokens
        return jnp.pad(bias.astype(jnp.float32), ((0, 0), (0, padding), (0, padding)))

    def windows_per_program(self, programs_per_window: int) -> int:
        """Return how many windows a program goes through: a divisor of their number that leaves enough programs."""
        most = max(1, self.windows * programs_per_window // PROGRAMS)
        return next(number for number in range(min(most, self.windows), 0, -1) if self.windows % number == 0)


def _forward_kernel(qkv_ref, bias_ref, scale_ref, out_ref, log_sums_ref, *, sizes: _Sizes, per_program: int):
    head, query_tile, group = (pl.program_id(axis) for axis in range(3))
    scale, bias_tile = scale_ref[head], _bias_tiles(bias_ref, head, query_tile, 0, sizes)

    def attend(number, nothing):
        window = group * per_program + number
        queries = sizes.layout.places(window, _tile_tokens(query_tile, sizes))
        query = _load(qkv_ref, queries, sizes, 0, head)

        def add_keys(key_tile, carry):
            highest, total, weighted = carry
            keys = sizes.layout.places(window, _tile_tokens(key_tile, sizes))
            key, value = (_load(qkv_ref, keys, sizes, part, head) for part in (1, 2))
            scores = _dot(query, key.T) * scale + bias_tile(query_tile, key_tile)
            if sizes.layout.masks(sizes.tile):
                scores = jnp.where(sees(queries, keys), scores, -jnp.inf)
            new_highest = jnp.maximum(highest, scores.max(axis=1))
            reference = _finite(new_highest)
            weights = jnp.exp(scores - reference[:, None])
            shrink = jnp.exp(highest - reference)
            total = total * shrink + weights.sum(axis=1)
            weighted = weighted * shrink[:, None] + _dot(weights.astype(value.dtype), value)
            return new_highest, total, weighted

        start = (
            jnp.full((sizes.tile,), -jnp.inf, jnp.float32),
            jnp.zeros((sizes.tile,), jnp.float32),
            jnp.zeros((sizes.tile, sizes.padded_head_dim), jnp.float32),
        )
        highest, total, weighted = _repeat(sizes.tiles, add_keys, start)
        total = jnp.where(total == 0.0, 1.0, total)  # of a query that sees nothing: its outcome is 0
        _store(out_ref, weighted / total[:, None], queries, sizes, head)
        log_sums_ref[window, head, pl.ds(query_tile * sizes.tile, sizes.tile)] = _finite(highest) + jnp.log(total)
        return nothing

    _repeat(per_program, attend, 0)


def _backward_kernel(
    qkv_ref,
    bias_ref,
    scale_ref,
    out_ref,
    log_sums_ref,
    d_out_ref,
    *refs,
    wanted: str,
    sizes: _Sizes,
    per_program: int,
    tile_grid: tuple[int, int],
):
    """Compute the gradients of "qkv_bias" (windows of one tile), or of "q", "kv" or "bias" alone.

    A program has one tile of queries if the grid counts them, else all of them in turn; so also for keys.
    """
    refs = refs[-1 - (wanted == "qkv_bias") :]  # without the aliased input
    d_qkv_ref, d_bias_ref = refs[0], refs[-1]
    head, own_query_tile, own_key_tile, group = (pl.program_id(axis) for axis in range(4))
    scale = scale_ref[head]
    bias_tile = _bias_tiles(bias_ref, head, own_query_tile, own_key_tile, sizes)
    zeros = jnp.zeros((sizes.tile, sizes.padded_head_dim), jnp.float32)

    def pair(window, query_tile, key_tile):
        """Return what a tile of queries and one of keys share: probabilities, the scores' gradient, the operands."""
        queries = sizes.layout.places(window, _tile_tokens(query_tile, sizes))
        keys = sizes.layout.places(window, _tile_tokens(key_tile, sizes))
        query, key, value = (_load(qkv_ref, at, sizes, part, head) for part, at in enumerate((queries, keys, keys)))
        d_out = _load(d_out_ref, queries, sizes, head)
        log_sums = log_sums_ref[window, head, pl.ds(query_tile * sizes.tile, sizes.tile)]
        scores = _dot(query, key.T) * scale + bias_tile(query_tile, key_tile)
        if sizes.layout.masks(sizes.tile):
            scores = jnp.where(sees(queries, keys), scores, -jnp.inf)
        probabilities = jnp.exp(scores - log_sums[:, None])
        d_probabilities = _dot(d_out, value.T)
        if sizes.tiles == 1:  # whole rows are here
            mean = (probabilities * d_probabilities).sum(axis=1)
        else:  # the same number: the outcome is the probabilities' mean of the values
            out = _load(out_ref, queries, sizes, head)
            mean = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(axis=1)
        d_scores = probabilities * (d_probabilities - mean[:, None])
        return queries, keys, query, key, d_out, probabilities, d_scores

    def d_query(d_scores, key):
        return _dot(d_scores.astype(key.dtype), key) * scale

    def d_key_value(d_scores, query, probabilities, d_out):
        d_key = _dot(d_scores.T.astype(query.dtype), query) * scale
        return d_key, _dot(probabilities.T.astype(d_out.dtype), d_out)

    def one_window(number, d_bias):
        window = group * per_program + number
        if wanted == "q":

            def add_keys(key_tile, total):
                _, _, _, key, _, _, d_scores = pair(window, own_query_tile, key_tile)
                return total + d_query(d_scores, key)

            queries = sizes.layout.places(window, _tile_tokens(own_query_tile, sizes))
            _store(d_qkv_ref, _repeat(sizes.tiles, add_keys, zeros), queries, sizes, 0, head)
            return d_bias
        if wanted == "kv":

            def add_queries(query_tile, totals):
                _, _, query, _, d_out, probabilities, d_scores = pair(window, query_tile, own_key_tile)
                parts = d_key_value(d_scores, query, probabilities, d_out)
                return tuple(total + part for total, part in zip(totals, parts, strict=True))

            keys = sizes.layout.places(window, _tile_tokens(own_key_tile, sizes))
            for part, gradient in enumerate(_repeat(sizes.tiles, add_queries, (zeros, zeros)), 1):
                _store(d_qkv_ref, gradient, keys, sizes, part, head)
            return d_bias
        queries, keys, query, key, d_out, probabilities, d_scores = pair(window, own_query_tile, own_key_tile)
        if wanted == "qkv_bias":
            _store(d_qkv_ref, d_query(d_scores, key), queries, sizes, 0, head)
            for part, gradient in enumerate(d_key_value(d_scores, query, probabilities, d_out), 1):
                _store(d_qkv_ref, gradient, keys, sizes, part, head)
        return d_bias + d_scores

    if "bias" not in wanted:
        _repeat(per_program, one_window, 0)
        return
    d_bias = _repeat(per_program, one_window, jnp.zeros((sizes.tile, sizes.tile), jnp.float32))
    d_bias_ref[group, head, *_tile_slices(own_query_tile, own_key_tile, sizes)] = d_bias


def _repeat(times: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    return body(0, start) if times == 1 else lax.fori_loop(0, times, body, start)


def _finite(highest: Array) -> Array:
    return jnp.where(highest == -jnp.inf, 0.0, highest)


def _dot(a: Array, b: Array) -> Array:
    """Multiply with sums in float32, and without the rounding of float32 to tf32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _tile_tokens(tile: Any, sizes: _Sizes) -> Array:
    return tile * sizes.tile + lax.iota(jnp.int32, sizes.tile)


def _tile_slices(query_tile: Any, key_tile: Any, sizes: _Sizes) -> tuple[Any, Any]:
    return pl.ds(query_tile * sizes.tile, sizes.tile), pl.ds(key_tile * sizes.tile, sizes.tile)


def _bias_tiles(bias_ref: Any, head: Any, query_tile: Any, key_tile: Any, sizes: _Sizes) -> Callable[..., Array]:
    """Return a function from two tiles to their bias; where there is one tile it is read once and stays on chip."""
    if sizes.tiles == 1:
        only = bias_ref[head, *_tile_slices(query_tile, key_tile, sizes)]
        return lambda query_tile, key_tile: only
    return lambda query_tile, key_tile: bias_ref[head, *_tile_slices(query_tile, key_tile, sizes)]


def _columns(sizes: _Sizes) -> tuple[Array, Any]:
    columns = lax.iota(jnp.int32, sizes.padded_head_dim)
    return columns, columns < sizes.head_dim


def _load(ref: Any, places: Places, sizes: _Sizes, *index: Any) -> Array:
    """Return `[T, padded_head_dim]` of an array `[rows, *index, head_dim]`, zeros where there is no token."""
    columns, is_column = _columns(sizes)
    mask = places.is_token[:, None] & is_column[None, :]
    return triton.load(ref.at[places.row[:, None], *index, columns[None, :]], mask=mask, other=0.0)


def _store(ref: Any, value: Array, places: Places, sizes: _Sizes, *index: Any) -> None:
    columns, is_column = _columns(sizes)
    mask = places.is_token[:, None] & is_column[None, :]
    triton.store(ref.at[places.row[:, None], *index, columns[None, :]], value.astype(ref.dtype), mask=mask)

"""The bodies of the window-attention kernels; `window_attention.py` says what they compute and launches them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from swin_jax.kernels.window_layout import Places, WindowLayout, sees

MAX_TILE = 64  # tokens: a 64 x 64 tile of float32 scores is 32 registers in each of 128 threads
MIN_TILE = 16  # the least that a tensor core multiplies
PROGRAMS = 2048  # enough to fill a large GPU several times; programs beyond that go through more windows instead


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the kernels know at compile time."""

    layout: WindowLayout
    batch: int
    heads: int
    head_dim: int

    @classmethod
    def of(cls, qkv: Array, layout: WindowLayout) -> "Sizes":
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


def forward_kernel(qkv_ref, bias_ref, scale_ref, out_ref, log_sums_ref, *, sizes: Sizes, per_program: int):
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


def backward_kernel(
    qkv_ref,
    bias_ref,
    scale_ref,
    out_ref,
    log_sums_ref,
    d_out_ref,
    *refs,
    wanted: str,
    sizes: Sizes,
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


def _tile_tokens(tile: Any, sizes: Sizes) -> Array:
    return tile * sizes.tile + lax.iota(jnp.int32, sizes.tile)


def _tile_slices(query_tile: Any, key_tile: Any, sizes: Sizes) -> tuple[Any, Any]:
    return pl.ds(query_tile * sizes.tile, sizes.tile), pl.ds(key_tile * sizes.tile, sizes.tile)


def _bias_tiles(bias_ref: Any, head: Any, query_tile: Any, key_tile: Any, sizes: Sizes) -> Callable[..., Array]:
    """Return a function from two tiles to their bias; where there is one tile it is read once and stays on chip."""
    if sizes.tiles == 1:
        only = bias_ref[head, *_tile_slices(query_tile, key_tile, sizes)]
        return lambda query_tile, key_tile: only
    return lambda query_tile, key_tile: bias_ref[head, *_tile_slices(query_tile, key_tile, sizes)]


def _columns(sizes: Sizes) -> tuple[Array, Any]:
    columns = lax.iota(jnp.int32, sizes.padded_head_dim)
    return columns, columns < sizes.head_dim


def _load(ref: Any, places: Places, sizes: Sizes, *index: Any) -> Array:
    """Return `[T, padded_head_dim]` of an array `[rows, *index, head_dim]`, zeros where there is no token."""
    columns, is_column = _columns(sizes)
    mask = places.is_token[:, None] & is_column[None, :]
    return triton.load(ref.at[places.row[:, None], *index, columns[None, :]], mask=mask, other=0.0)


def _store(ref: Any, value: Array, places: Places, sizes: Sizes, *index: Any) -> None:
    columns, is_column = _columns(sizes)
    mask = places.is_token[:, None] & is_column[None, :]
    triton.store(ref.at[places.row[:, None], *index, columns[None, :]], value.astype(ref.dtype), mask=mask)

"""The bodies of the window-attention kernels; `window_attention.py` says what they compute and launches them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
    """Attend from one tile of queries, in one head, in each of the program's windows; a flash attention."""
    head, query_tile, group = (pl.program_id(axis) for axis in range(3))
    scale, bias_tile = scale_ref[head], _bias_tiles(bias_ref, head, sizes)

    def attend(window):
        queries = sizes.layout.places(window, _tokens(query_tile, sizes))
        query = _load(qkv_ref, queries, sizes, 0, head)

        def add_keys(key_tile, carry):
            highest, total, weighted = carry
            keys = sizes.layout.places(window, _tokens(key_tile, sizes))
            key, value = (_load(qkv_ref, keys, sizes, part, head) for part in (1, 2))
            scores = _scores(query, key, scale, bias_tile(query_tile, key_tile), queries, keys, sizes)
            new_highest = jnp.maximum(highest, scores.max(axis=1))
            reference = _finite(new_highest)
            weights = jnp.exp(scores - reference[:, None])
            shrink = jnp.exp(highest - reference)
            total = total * shrink + weights.sum(axis=1)
            weighted = weighted * shrink[:, None] + _dot(weights.astype(value.dtype), value)
            return new_highest, total, weighted

        nothing_yet = jnp.full((sizes.tile,), -jnp.inf, jnp.float32), jnp.zeros((sizes.tile,)), _zeros(sizes)
        highest, total, weighted = _repeat(sizes.tiles, add_keys, nothing_yet)
        total = jnp.where(total == 0.0, 1.0, total)  # of a query that sees nothing: its outcome is 0
        _store(out_ref, weighted / total[:, None], queries, sizes, head)
        log_sums_ref[window, head, _slice(query_tile, sizes)] = _finite(highest) + jnp.log(total)

    _for_each_window(group, per_program, attend)


def backward_kernel(*refs, sizes: Sizes, per_program: int):
    """Compute the gradients of qkv, and of the bias, for windows of one tile."""
    *inputs, d_qkv_ref, d_bias_ref = refs
    head, group = pl.program_id(0), pl.program_id(1)
    pair_of = _pairs(inputs, head, sizes)

    def one_window(window, d_bias):
        pair = pair_of(window, 0, 0)
        _store(d_qkv_ref, pair.d_query(), pair.queries, sizes, 0, head)
        _store(d_qkv_ref, pair.d_key(), pair.keys, sizes, 1, head)
        _store(d_qkv_ref, pair.d_value(), pair.keys, sizes, 2, head)
        return d_bias + pair.d_scores

    d_bias = jnp.zeros((sizes.tile, sizes.tile), jnp.float32)
    d_bias_ref[group, head] = _for_each_window(group, per_program, one_window, d_bias)


def backward_query_kernel(*refs, sizes: Sizes, per_program: int):
    """Compute the gradient of one tile of queries: a sum over the tiles of keys."""
    *inputs, d_qkv_ref = refs
    head, query_tile, group = (pl.program_id(axis) for axis in range(3))
    pair_of = _pairs(inputs, head, sizes)

    def one_window(window):
        def add(key_tile, total):
            return total + pair_of(window, query_tile, key_tile).d_query()

        queries = sizes.layout.places(window, _tokens(query_tile, sizes))
        _store(d_qkv_ref, _repeat(sizes.tiles, add, _zeros(sizes)), queries, sizes, 0, head)

    _for_each_window(group, per_program, one_window)


def backward_key_value_kernel(*refs, sizes: Sizes, per_program: int):
    """Compute the gradients of one tile of keys and values: sums over the tiles of queries."""
    *inputs, _, d_qkv_ref = refs  # the last input is the output, with the queries' gradient in it
    head, key_tile, group = (pl.program_id(axis) for axis in range(3))
    pair_of = _pairs(inputs, head, sizes)

    def one_window(window):
        def add(query_tile, totals):
            pair = pair_of(window, query_tile, key_tile)
            return totals[0] + pair.d_key(), totals[1] + pair.d_value()

        keys = sizes.layout.places(window, _tokens(key_tile, sizes))
        d_key, d_value = _repeat(sizes.tiles, add, (_zeros(sizes), _zeros(sizes)))
        _store(d_qkv_ref, d_key, keys, sizes, 1, head)
        _store(d_qkv_ref, d_value, keys, sizes, 2, head)

    _for_each_window(group, per_program, one_window)


def backward_bias_kernel(*refs, sizes: Sizes, per_program: int):
    """Compute the gradient of one tile of the bias: a sum over windows."""
    *inputs, d_bias_ref = refs
    head, query_tile, key_tile, group = (pl.program_id(axis) for axis in range(4))
    pair_of = _pairs(inputs, head, sizes)

    def one_window(window, d_bias):
        return d_bias + pair_of(window, query_tile, key_tile).d_scores

    d_bias = _for_each_window(group, per_program, one_window, jnp.zeros((sizes.tile, sizes.tile), jnp.float32))
    d_bias_ref[group, head, _slice(query_tile, sizes), _slice(key_tile, sizes)] = d_bias


class _Pair(NamedTuple):
    """What the backward pass computes anew of a tile of queries and a tile of keys."""

    queries: Places
    keys: Places
    query: Array  # [T, head_dim], as key and d_out
    key: Array
    d_out: Array
    scale: Array
    probabilities: Array  # [T, T], as d_scores
    d_scores: Array

    def d_query(self) -> Array:
        return _dot(self.d_scores.astype(self.key.dtype), self.key) * self.scale

    def d_key(self) -> Array:
        return _dot(self.d_scores.T.astype(self.query.dtype), self.query) * self.scale

    def d_value(self) -> Array:
        return _dot(self.probabilities.T.astype(self.d_out.dtype), self.d_out)


def _pairs(inputs: Sequence[Any], head: Any, sizes: Sizes) -> Callable[[Any, Any, Any], _Pair]:
    """Return a function from (window, tile of queries, tile of keys) to their `_Pair`."""
    qkv_ref, bias_ref, scale_ref, out_ref, log_sums_ref, d_out_ref = inputs
    scale, bias_tile = scale_ref[head], _bias_tiles(bias_ref, head, sizes)

    def pair_of(window: Any, query_tile: Any, key_tile: Any) -> _Pair:
        queries = sizes.layout.places(window, _tokens(query_tile, sizes))
        keys = sizes.layout.places(window, _tokens(key_tile, sizes))
        query, key, value = (_load(qkv_ref, at, sizes, part, head) for part, at in enumerate((queries, keys, keys)))
        d_out = _load(d_out_ref, queries, sizes, head)
        scores = _scores(query, key, scale, bias_tile(query_tile, key_tile), queries, keys, sizes)
        probabilities = jnp.exp(scores - log_sums_ref[window, head, _slice(query_tile, sizes)][:, None])
        d_probabilities = _dot(d_out, value.T)
        if sizes.tiles == 1:  # whole rows are here
            mean = (probabilities * d_probabilities).sum(axis=1)
        else:  # the same number: the outcome is the probabilities' mean of the values
            out = _load(out_ref, queries, sizes, head)
            mean = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(axis=1)
        d_scores = probabilities * (d_probabilities - mean[:, None])
        return _Pair(queries, keys, query, key, d_out, scale, probabilities, d_scores)

    return pair_of


def _scores(query: Array, key: Array, scale: Any, bias: Array, queries: Places, keys: Places, sizes: Sizes) -> Array:
    scores = _dot(query, key.T) * scale + bias
    return jnp.where(sees(queries, keys), scores, -jnp.inf) if sizes.layout.masks(sizes.tile) else scores


def _for_each_window(group: Any, per_program: int, body: Callable[..., Any], *start: Any) -> Any:
    """Call `body(window)` for the program's windows, or `body(window, sum) -> sum` if it begins with `start`."""

    def step(number, carry):
        result = body(group * per_program + number, *carry)
        return (result,) if start else ()

    carry = _repeat(per_program, step, start)
    return carry[0] if start else None


def _repeat(times: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    return body(0, start) if times == 1 else lax.fori_loop(0, times, body, start)


def _finite(highest: Array) -> Array:
    return jnp.where(highest == -jnp.inf, 0.0, highest)


def _dot(a: Array, b: Array) -> Array:
    """Multiply with sums in float32, and without the rounding of float32 to tf32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _zeros(sizes: Sizes) -> Array:
    return jnp.zeros((sizes.tile, sizes.padded_head_dim), jnp.float32)


def _tokens(tile: Any, sizes: Sizes) -> Array:
    return tile * sizes.tile + lax.iota(jnp.int32, sizes.tile)


def _slice(tile: Any, sizes: Sizes) -> Any:
    return pl.ds(tile * sizes.tile, sizes.tile)


def _bias_tiles(bias_ref: Any, head: Any, sizes: Sizes) -> Callable[[Any, Any], Array]:
    """Return a function from two tiles to their bias; where there is one tile it is read once and stays on chip."""
    if sizes.tiles == 1:
        only = bias_ref[head]
        return lambda query_tile, key_tile: only
    return lambda query_tile, key_tile: bias_ref[head, _slice(query_tile, sizes), _slice(key_tile, sizes)]


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

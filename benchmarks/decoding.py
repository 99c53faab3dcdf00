"""What the next token costs: python benchmarks/decoding.py [--lengths=64,128,256,512,1024] [--batch_size=1] ...

With the cache, one token goes through the model; from scratch, all tokens so far do. Both are timed at the end of a
text of each length, and must predict the same. Prints a table, and JSON last.
"""

import dataclasses
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from swin_jax.commands import run_command
from swin_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_list("lengths", ["64", "128", "256", "512", "1024"], "Tokens of the texts.", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 1, "Texts at a time.", 1, flag_values=FLAGS)
flags.DEFINE_integer("embed_dim", 256, "Of the model.", 1, flag_values=FLAGS)
flags.DEFINE_integer("depth", 4, "Of the model.", 1, flag_values=FLAGS)
flags.DEFINE_integer("vocab_size", 4096, "Of the model.", 2, flag_values=FLAGS)
flags.DEFINE_string("dtype", "float32", "Of the computation.", flag_values=FLAGS)
flags.DEFINE_integer("repeats", 7, "Timings of each, whose median counts.", 1, flag_values=FLAGS)
STEPS = 16  # tokens decoded in a timing with the cache: the last ones of the text


def main(flag_values: flags.FlagValues, overrides: list[str]) -> dict[str, Any]:
    if not all(length.isdecimal() and int(length) > STEPS for length in flag_values.lengths):
        raise UserError(f"--lengths={','.join(flag_values.lengths)} must be whole numbers above {STEPS}")
    import jax
    import numpy as np
    from flax import nnx

    from swin_jax.models import create_model

    lengths = sorted(map(int, flag_values.lengths))
    options = {name: flag_values[name].value for name in ("embed_dim", "depth", "vocab_size", "dtype")}
    model = create_model(
        "causal_transformer",
        num_heads=max(1, flag_values.embed_dim // 64),
        max_length=lengths[-1],
        positions="rotary",
        post_norm=False,
        init="trunc_normal",
        rngs=nnx.Rngs(0),
        **options,
    )
    graphdef, arrays = nnx.split(model)

    @jax.jit
    def from_scratch(arrays, tokens):
        return nnx.merge(graphdef, arrays)(tokens)[:, -1]

    @jax.jit
    def filled(arrays, tokens):
        cache = nnx.merge(graphdef, arrays).init_cache(*tokens.shape)
        return nnx.merge(graphdef, arrays).decode(tokens[:, :-STEPS], cache)[1]

    @jax.jit
    def with_cache(arrays, tokens, cache):
        def advance(step, carried):
            token = jax.lax.dynamic_slice_in_dim(tokens, tokens.shape[1] - STEPS + step, 1, axis=1)
            logits, cache = nnx.merge(graphdef, arrays).decode(token, carried[1])
            return logits[:, 0], cache

        nothing = jax.numpy.zeros((len(tokens), flag_values.vocab_size))
        return jax.lax.fori_loop(0, STEPS, advance, (nothing, cache))[0]

    rng, rows = np.random.default_rng(0), []
    print(f"{'length':>6} {'from scratch':>13} {'with cache':>11} {'times':>6} {'difference':>11}   (ms a token)")
    for length in lengths:
        tokens = rng.integers(0, flag_values.vocab_size, (flag_values.batch_size, length)).astype(np.int32)
        cache = filled(arrays, tokens)
        recomputed, scratch_ms = _timed(from_scratch, arrays, tokens, repeats=flag_values.repeats)
        cached, cached_ms = _timed(with_cache, arrays, tokens, cache, repeats=flag_values.repeats)
        row = _Row(length, scratch_ms, cached_ms / STEPS, float(abs(recomputed - cached).max()))
        print(
            f"{row.length:>6} {row.from_scratch_ms:>13.2f} {row.with_cache_ms:>11.2f} "
            f"{row.from_scratch_ms / row.with_cache_ms:>6.1f} {row.difference:>11.1e}",
            flush=True,
        )
        rows.append(dataclasses.asdict(row))
    device = jax.devices()[0].device_kind
    return {"device": device, "batch_size": flag_values.batch_size, **options, "rows": rows}


@dataclasses.dataclass(frozen=True)
class _Row:
    """Milliseconds for the next token after `length - 1`, and how far the logits of the two ways are apart."""

    length: int
    from_scratch_ms: float
    with_cache_ms: float
    difference: float


def _timed(call: Callable, *arguments: Any, repeats: int) -> tuple[Any, float]:
    """Return a call's result, and the median of its milliseconds, compiled before."""
    import jax

    result = jax.block_until_ready(call(*arguments))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        seconds.append(time.perf_counter() - start)
    return result, 1000 * statistics.median(seconds)


if __name__ == "__main__":
    run_command(main, FLAGS)

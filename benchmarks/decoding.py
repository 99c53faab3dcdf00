"""What the next token costs: python benchmarks/decoding.py [--lengths=64,128,256,512,1024] [--batch_size=1] ...

With the cache, one token goes through the model; from scratch, all tokens so far do. Both are timed at the end of a
text of each length, and must predict the same. Prints a table, and JSON last. Besides the time there is the time of
this process on all cores of the host, which others on the machine disturb less; an accelerator's is not in it.
"""

import pathlib
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
flags.DEFINE_integer("repeats", 9, "Timings of each; the shortest counts.", 1, flag_values=FLAGS)
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
    print(" " * 6 + "   ms a token: scratch   cached  ratio   on cores: scratch   cached  ratio   difference")
    for length in lengths:
        tokens = rng.integers(0, flag_values.vocab_size, (flag_values.batch_size, length)).astype(np.int32)
        cache = filled(arrays, tokens)
        recomputed, scratch = _timed(from_scratch, arrays, tokens, repeats=flag_values.repeats)
        decoded, cached = _timed(with_cache, arrays, tokens, cache, repeats=flag_values.repeats)
        row = {
            "length": length,
            "from_scratch": {name: round(value, 3) for name, value in scratch.items()},
            "with_cache": {name: round(value / STEPS, 3) for name, value in cached.items()},
            "difference": float(abs(recomputed - decoded).max()),  # of logits
        }
        cells = []
        for name, width in (("ms", 21), ("cpu_ms", 19)):
            slow, fast = row["from_scratch"][name], row["with_cache"][name]
            cells.append(f"{slow:>{width}.2f} {fast:>8.2f} {slow / fast:>6.1f}")
        print(f"{length:>6} {' '.join(cells)} {row['difference']:>12.1e}", flush=True)
        rows.append(row)
    device = jax.devices()[0].device_kind
    return {"device": device, "batch_size": flag_values.batch_size, **options, "rows": rows}


def _timed(call: Callable, *arguments: Any, repeats: int) -> tuple[Any, dict[str, float]]:
    """Return a call's result, and the fewest milliseconds it took by the clock and on the cores, compiled before."""
    import jax

    result = jax.block_until_ready(call(*arguments))
    clocks = {"ms": time.perf_counter, "cpu_ms": time.process_time}
    taken: dict[str, list[float]] = {name: [] for name in clocks}
    for _ in range(repeats):
        start = {name: clock() for name, clock in clocks.items()}
        jax.block_until_ready(call(*arguments))
        for name, clock in clocks.items():
            taken[name].append(1000 * (clock() - start[name]))
    return result, {name: min(times) for name, times in taken.items()}


if __name__ == "__main__":
    run_command(main, FLAGS)

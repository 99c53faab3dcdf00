"""The matrix products of a model's dense layers alone: python benchmarks/products.py --torch_python=PYTHON_WITH_TORCH

Forward and both gradients of each, by XLA as the models call it and by PyTorch with its best settings, by turns: how
much of a difference in training lies in the libraries underneath. What a call costs is in both. Prints a table, and
JSON last.
"""

import json
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from swin_jax.benchmarking import against_timm
from swin_jax.benchmarking.contest import contest, serve
from swin_jax.commands import run_command
from swin_jax.errors import UserError


def _layers(tokens: int, channels: int) -> list[tuple[int, int, int]]:
    """Return (tokens, inputs, outputs) of the four dense layers of a block."""
    return [(tokens, channels, multiple * channels) for multiple in (3, 1, 4)] + [(tokens, 4 * channels, channels)]


SWIN_T = [(56, 96, 2), (28, 192, 2), (14, 384, 6), (7, 768, 2)]  # side of the map, channels, blocks of each stage
MODELS = {
    "swin_tiny": [layer for side, channels, depth in SWIN_T for layer in depth * _layers(side**2, channels)],
    "vit_small": 12 * _layers(197, 384),
}

FLAGS = flags.FlagValues()
flags.DEFINE_enum("model", "swin_tiny", list(MODELS), "Whose.", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 8, "Images.", 1, flag_values=FLAGS)
flags.DEFINE_string("torch_python", sys.executable, "An interpreter with torch and timm.", flag_values=FLAGS)
flags.DEFINE_integer("rounds", 5, "Of turns.", 1, flag_values=FLAGS)


def main(flag_values: flags.FlagValues, overrides: list[str]) -> dict[str, Any]:
    if overrides:
        raise UserError(f"{overrides[0]}: there is no configuration to change")
    against_timm.check_interpreter(flag_values.torch_python)
    layers = [(flag_values.batch_size * tokens, *sides) for tokens, *sides in MODELS[flag_values.model]]
    work = json.dumps({"products": layers})
    with tempfile.TemporaryDirectory() as folder:
        settings = against_timm.TUNED_TORCH | against_timm.preloaded_mkl_switch(pathlib.Path(folder))
        contestants = {
            "XLA": ([sys.executable, __file__, work], against_timm.ALLOCATOR),
            "PyTorch": ([flag_values.torch_python, str(against_timm.TIMM_WORKER), work], settings),
        }
        found = contest(contestants, rounds=flag_values.rounds, sample_seconds=2)
    flops = sum(3 * 2 * rows * inputs * outputs for rows, inputs, outputs in layers)
    print(f"{'':10}{'ms':>8}{'GFLOP/s':>10}   {flag_values.model}, batch {flag_values.batch_size}")
    for name, each in found.items():
        seconds = statistics.median(each["seconds"])
        print(f"{name:10}{1e3 * seconds:8.1f}{flops / seconds / 1e9:10.1f}   {each['version']}")
    return {"model": flag_values.model, "batch_size": flag_values.batch_size, "flops": flops, "rows": found}


def start(layers: list[tuple[int, int, int]]) -> Callable[[int], None]:
    import jax
    import jax.numpy as jnp

    from swin_jax.nn.products import flat_dot_general

    @jax.jit
    def products(x, kernel, gradient):
        outcome, backward = jax.vjp(flat_dot_general, x, kernel)
        return outcome, *backward(gradient)

    arrays = {(m, k, n): (jnp.ones((m, k)), jnp.ones((k, n)), jnp.ones((m, n))) for m, k, n in map(tuple, layers)}

    def run(calls: int) -> None:
        for layer in calls * layers:
            jax.block_until_ready(products(*arrays[tuple(layer)]))

    run(1)
    return run


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):  # the worker that `main` starts
        import jax

        serve(lambda: start(json.loads(sys.argv[1])["products"]), {"version": f"jax {jax.__version__}"})
    else:
        run_command(main, FLAGS)

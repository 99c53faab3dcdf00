"""Measure what things cost:

python -m swin_jax.benchmark length [--out=FILE.png]    step time and memory over sequence length and image size

Figures depend on the machine and on what else it does: measure on a quiet one, and compare within one run.
"""

import dataclasses
import pathlib
from typing import Any

from absl import flags

from swin_jax.commands import run_subcommand, whole_numbers
from swin_jax.errors import UserError

LENGTH_FLAGS = flags.FlagValues()
flags.DEFINE_list("lengths", "128,256,512,768,1024,1536,2048", "Tokens of attention.", flag_values=LENGTH_FLAGS)
flags.DEFINE_list("image_sizes", "64,96,128,160,192,224", "Sides of a square image.", flag_values=LENGTH_FLAGS)
flags.DEFINE_integer("window", 64, "Tokens of a window of attention.", flag_values=LENGTH_FLAGS)
flags.DEFINE_integer("num_heads", 2, "Heads of attention.", flag_values=LENGTH_FLAGS)
flags.DEFINE_integer("head_dim", 32, "Width of each.", flag_values=LENGTH_FLAGS)
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Precision.", flag_values=LENGTH_FLAGS)
flags.DEFINE_integer("samples", 7, "Samples of each step.", flag_values=LENGTH_FLAGS)
flags.DEFINE_float("sample_seconds", 0.05, "Least length of a sample.", flag_values=LENGTH_FLAGS)
flags.DEFINE_string("out", None, "A PNG file for the plot.", flag_values=LENGTH_FLAGS)


def length(flag_values: flags.FlagValues, overrides: list[str]) -> dict[str, Any]:
    lengths, image_sizes = (whole_numbers(name, flag_values[name].value) for name in ("lengths", "image_sizes"))
    for name in ("window", "num_heads", "head_dim", "samples"):
        if flag_values[name].value < 1:
            raise UserError(f"--{name}={flag_values[name].value} must be at least 1")
    if min(lengths + image_sizes) < 1:
        raise UserError("--lengths and --image_sizes must be at least 1")
    import jax

    from swin_jax.benchmarking.length import measure_length, table

    device = jax.devices()[0].device_kind
    series = measure_length(
        lengths=lengths,
        image_sizes=image_sizes,
        **{name: flag_values[name].value for name in ("window", "num_heads", "head_dim", "dtype", "samples")},
        sample_seconds=flag_values.sample_seconds,
    )
    title = f"forward and backward, batch 1, {flag_values.dtype}, windows of {flag_values.window} tokens, on {device}"
    print(f"{title}\n\n{table(series)}")
    if flag_values.out:
        from swin_jax.benchmarking.plots import plot_length
        from swin_jax.visualization.drawing import save_figure

        save_figure(plot_length(series, title=title), pathlib.Path(flag_values.out))
    return {
        "device": device,
        "dtype": flag_values.dtype,
        "out": flag_values.out,
        "series": [
            {
                "name": each.name,
                "tokens": each.tokens,
                "seconds": [dataclasses.asdict(timing) for timing in each.timings],
                "temporary_bytes": each.temporary_bytes,
                "time_exponent": each.time_exponent,
                "memory_exponent": each.memory_exponent,
            }
            for each in series
        ],
    }


COMMANDS = {"length": (length, LENGTH_FLAGS)}

if __name__ == "__main__":
    run_subcommand(COMMANDS)

"""Measure what things cost:

python -m swin_jax.benchmark train [--model=NAME] [--against=timm]    a training step: images/s, memory, share of peak
python -m swin_jax.benchmark infer [--model=NAME] [--against=timm]    the same of inference
python -m swin_jax.benchmark attention [--window=0]    a layer of attention by each implementation that there is here
python -m swin_jax.benchmark length [--out=FILE.png]    step time and memory over sequence length and image size
python -m swin_jax.benchmark data [--data=folder:PATH]      images/s of the input beside Pillow's, and where time goes

Figures depend on the machine and on what else it does: measure on a quiet one, and compare within one run.
"""

import dataclasses
import os
import pathlib
import sys
import tempfile
from typing import Any

from absl import flags

from swin_jax.commands import run_subcommand, whole_numbers
from swin_jax.errors import UserError, did_you_mean
from swin_jax.host_memory import keep_freed_memory

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


DATA_FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "data", "photos", "photos: JPEGs of scikit-learn's; folder:PATH or tfds:NAME.", flag_values=DATA_FLAGS
)
flags.DEFINE_string("split", "train", "The split of it.", flag_values=DATA_FLAGS)
flags.DEFINE_string("data_dir", None, "The folder of TFDS.", flag_values=DATA_FLAGS)
flags.DEFINE_integer("image_size", 224, "The side that crops are resized to.", flag_values=DATA_FLAGS)
flags.DEFINE_enum("interpolation", "bicubic", ["bilinear", "bicubic"], "Antialiased.", flag_values=DATA_FLAGS)
flags.DEFINE_enum("decoder", "turbo", ["pillow", "turbo"], "As data.decoder of a config.", flag_values=DATA_FLAGS)
flags.DEFINE_integer("images", 2048, "Images of a round.", flag_values=DATA_FLAGS)
flags.DEFINE_integer("batch_size", 64, "Images of a batch.", flag_values=DATA_FLAGS)
flags.DEFINE_integer("rounds", 5, "Rounds, ours and Pillow's by turns.", flag_values=DATA_FLAGS)
flags.DEFINE_list("threads", [], "Numbers of threads to try; 1 and the cores if left out.", flag_values=DATA_FLAGS)


def data(flag_values: flags.FlagValues, overrides: list[str]) -> dict[str, Any]:
    for name in ("image_size", "images", "batch_size", "rounds"):
        if flag_values[name].value < 1:
            raise UserError(f"--{name}={flag_values[name].value} must be at least 1")
    if flag_values.images < flag_values.batch_size:
        raise UserError(f"--images={flag_values.images} do not fill a batch of {flag_values.batch_size}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = whole_numbers("threads", flag_values.threads) if flag_values.threads else tuple(sorted({1, cores}))
    if min(threads) < 1:
        raise UserError("--threads must be at least 1")
    from swin_jax.benchmarking import data as measuring
    from swin_jax.data.sources import make_source

    names = ("image_size", "interpolation", "decoder", "batch_size")
    options = measuring.Options(**{name: flag_values[name].value for name in names})
    with tempfile.TemporaryDirectory() as folder:
        name = flag_values.data
        if name == "photos":
            measuring.write_photos(pathlib.Path(folder))
            name = f"folder:{folder}"
        source = measuring.repeated(
            make_source(name, flag_values.split, data_dir=flag_values.data_dir), flag_values.images
        )
        image_bytes = sum(len(source[index]["image"]) for index in range(len(source))) / len(source)
        spent = measuring.stages(source, options)
        rates = measuring.compare(source, options, rounds=flag_values.rounds)
        by_threads = measuring.thread_rates(source, options, threads)
    work = f"random resized crops to {options.image_size}, {options.interpolation}, decoder {options.decoder}"
    print(f"{flag_values.data}, {image_bytes / 1e3:.0f} kB an image: {work}, {cores} cores\n")
    print(measuring.table(rates, spent, by_threads))
    median, low, high = rates.ratios
    return {
        "data": flag_values.data,
        **dataclasses.asdict(options),
        "bytes_per_image": image_bytes,
        "images_per_cpu_second": {"ours": rates.ours, "pillow": rates.pillow},
        "ratio": {"median": median, "low": low, "high": high},
        "cpu_seconds_per_image": spent,
        "images_per_second_by_threads": by_threads,
        "cores": cores,
    }


STEP_FLAGS = flags.FlagValues()
flags.DEFINE_string("model", "swin_tiny_patch4_window7_224", "A name of list_models().", flag_values=STEP_FLAGS)
flags.DEFINE_integer("batch_size", 8, "Images of a step.", 1, flag_values=STEP_FLAGS)
flags.DEFINE_integer("microbatch", 0, "Images computed at a time; 0: all.", 0, flag_values=STEP_FLAGS)
flags.DEFINE_integer(
    "devices", 1, "Devices that share the images; on a CPU, cores are made devices.", 1, flag_values=STEP_FLAGS
)
flags.DEFINE_bool("scan", False, "Compile one of the blocks that are alike, as model.scan.", flag_values=STEP_FLAGS)
flags.DEFINE_integer("image_size", 224, "Side of an image.", 1, flag_values=STEP_FLAGS)
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Precision.", flag_values=STEP_FLAGS)
flags.DEFINE_integer("samples", 7, "Samples, or rounds of a contest.", 1, flag_values=STEP_FLAGS)
flags.DEFINE_float("sample_seconds", 1.0, "Length of a sample.", flag_values=STEP_FLAGS)
flags.DEFINE_list(
    "against", [], "timm, or some of eager, compiled, eager-tuned, compiled-tuned.", flag_values=STEP_FLAGS
)
flags.DEFINE_string("torch_python", sys.executable, "An interpreter with torch and timm.", flag_values=STEP_FLAGS)


def _step(mode: str, flag_values: flags.FlagValues) -> dict[str, Any]:
    from swin_jax.benchmarking import against_timm, contest, models
    from swin_jax.benchmarking.timing import measure

    names = ("model", "batch_size", "microbatch", "devices", "image_size", "dtype", "scan")
    work = models.Work(mode, **{name: flag_values[name].value for name in names})
    kinds = against_timm.KINDS if flag_values.against == ["timm"] else tuple(flag_values.against)
    for kind in kinds:
        if kind not in against_timm.KINDS:
            known = ", ".join(against_timm.KINDS)
            raise UserError(
                f"--against={kind}: known are timm, for all, and {known}{did_you_mean(kind, against_timm.KINDS)}"
            )
    if kinds:
        against_timm.check_interpreter(flag_values.torch_python)
        # All of them are on the device at the same time: none may take the most of its memory in advance.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    compiled = models.compile_work(work)
    options = {"samples": flag_values.samples, "sample_seconds": flag_values.sample_seconds}
    timing = measure({mode: compiled.program}, **options)[mode]
    found = models.figures(work, compiled, timing, models.measure_machine(work.dtype, samples=flag_values.samples))
    print(f"{mode} {work.model}, batch {work.batch_size}, {work.dtype}\n\n{models.table(found)}")
    if kinds:
        del compiled
        with tempfile.TemporaryDirectory() as folder:
            rivals = against_timm.compare(
                work,
                kinds=kinds,
                torch_python=flag_values.torch_python,
                rounds=flag_values.samples,
                sample_seconds=flag_values.sample_seconds,
                folder=pathlib.Path(folder),
            )
        print(f"\n{contest.table(rivals, against_timm.OURS, work.batch_size)}")
        ratios = {name: contest.ratios(rivals, name) for name in rivals if name.startswith(against_timm.OURS)}
        found["contest"] = rivals
        found["ratios"] = {
            name: {other: dataclasses.asdict(ratio) for other, ratio in each.items()} for name, each in ratios.items()
        }
    return found


def train(flag_values: flags.FlagValues, overrides: list[str]) -> dict[str, Any]:
    return _step("train", flag_values)


def infer(flag_values: flags.FlagValues, overrides: list[str]) -> dict[str, Any]:
    return _step("infer", flag_values)


ATTENTION_FLAGS = flags.FlagValues()
flags.DEFINE_integer("batch_size", 8, "Maps.", 1, flag_values=ATTENTION_FLAGS)
flags.DEFINE_integer("map_size", 56, "Side of a map in tokens.", 1, flag_values=ATTENTION_FLAGS)
flags.DEFINE_integer(
    "window", 7, "Side of a window in tokens; 0: a ViT's full attention.", 0, flag_values=ATTENTION_FLAGS
)
flags.DEFINE_bool("shifted", True, "Windows shifted by half of their side.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_integer("num_heads", 3, "Heads.", 1, flag_values=ATTENTION_FLAGS)
flags.DEFINE_integer("head_dim", 32, "Width of each.", 1, flag_values=ATTENTION_FLAGS)
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Precision.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_integer("samples", 7, "Samples of each.", 1, flag_values=ATTENTION_FLAGS)
flags.DEFINE_float("sample_seconds", 0.2, "Least length of a sample.", flag_values=ATTENTION_FLAGS)


def attention(flag_values: flags.FlagValues, overrides: list[str]) -> dict[str, Any]:
    from swin_jax.benchmarking import attention as measuring
    from swin_jax.benchmarking.models import measure_machine

    names = ("batch_size", "map_size", "shifted", "num_heads", "head_dim", "dtype")
    work = measuring.Work(**{name: flag_values[name].value for name in names}, window_size=flag_values.window)
    samples = flag_values.samples
    found = measuring.compare(work, samples=samples, sample_seconds=flag_values.sample_seconds)
    _, copy = measure_machine(work.dtype, samples=samples)
    kind = f"windows of {work.window_size}" if work.window_size else "full attention"
    print(f"{kind}, {work.num_heads} heads of {work.head_dim}, {work.dtype}, maps {work.shape}\n")
    print(measuring.table(work, found, copy))
    return {
        **dataclasses.asdict(work),
        "copy_bytes_per_second": copy,
        "implementations": {name: dataclasses.asdict(outcome) for name, outcome in found.items()},
    }


COMMANDS = {
    "train": (train, STEP_FLAGS),
    "infer": (infer, STEP_FLAGS),
    "attention": (attention, ATTENTION_FLAGS),
    "length": (length, LENGTH_FLAGS),
    "data": (data, DATA_FLAGS),
}

if __name__ == "__main__":
    keep_freed_memory()
    run_subcommand(COMMANDS)

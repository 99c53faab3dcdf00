"""What the device augmentation of a recipe costs beside the training step it is part of.

    python benchmarks/augmentation.py [--config=configs/imagenet/swin_tiny.py] [--batch_size=8] [--rounds=5]

Times the whole training step and, as programs of their own, the augmentation alone and each part of it, one after the
other in every round, each on new draws. Prints one JSON object: the median seconds of each, the share of the step that
is augmentation, and that share by the CPU time of the process, which other programs on the machine disturb less. The
model computes in float32. Images are synthetic noise: what an operation costs does not depend on the pixels.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from swin_jax.commands import load_config  # noqa: E402
from swin_jax.tasks import create_task  # noqa: E402
from swin_jax.training import sharding  # noqa: E402
from swin_jax.training.experiment import build, compile_steps, task_options  # noqa: E402
from swin_jax.training.step import step_rngs  # noqa: E402

MIX = ("mixup_alpha", "cutmix_alpha")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs" / "imagenet" / "swin_tiny.py"))
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", action="store_true", help="each augmentation alone, too")
    arguments = parser.parse_args()
    overrides = ("data.source=synthetic", "data.num_classes=1000", f"batch_size={arguments.batch_size}")
    config = load_config(arguments.config, (*overrides, "model.dtype=float32", "init_from="))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        print(json.dumps(measure(config, mesh, rounds=arguments.rounds, parts=arguments.parts)))


def measure(config, mesh, *, rounds: int, parts: bool) -> dict[str, object]:
    """Return the figures that the command prints."""
    experiment = build(config, mesh)
    rng = np.random.default_rng(0)
    side = config.data.image_size
    batch = {
        "image": rng.integers(0, 256, (config.batch_size, side, side, config.data.channels), np.uint8),
        "label": rng.integers(0, config.data.num_classes, config.batch_size, np.int32),
    }
    batch = sharding.global_batch(batch, mesh)
    train_step, _ = compile_steps(config, experiment)
    state = experiment.init()

    def step(number):
        nonlocal state
        state, metrics = train_step(state, batch, number)
        return metrics

    options = task_options(config, experiment.inputs)
    programs = {"step": step, "augmentation": augmentation_of(experiment.task, batch)}
    for name, partial in part_options(options).items() if parts else ():
        programs[name] = augmentation_of(create_task(config.task.name, **partial), batch)
    walls, cpus = ({name: [] for name in programs} for _ in range(2))
    for number in range(rounds + 1):
        for name, run in programs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(run(number))
            if number:  # the first round compiles
                walls[name].append(time.perf_counter() - wall)
                cpus[name].append(time.process_time() - cpu)
    seconds, cpu_seconds = ({name: statistics.median(t) for name, t in times.items()} for times in (walls, cpus))
    return {
        "model": config.model.name,
        "batch_size": config.batch_size,
        "device": jax.devices()[0].device_kind,
        "load": os.getloadavg()[0],
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "cpu_seconds": {name: round(value, 4) for name, value in cpu_seconds.items()},
        "share_of_step": round(seconds["augmentation"] / seconds["step"], 4),
        "share_of_step_cpu": round(cpu_seconds["augmentation"] / cpu_seconds["step"], 4),
    }


def augmentation_of(task, batch):
    """Return the jitted augmentation of `task` on `batch` as a function of the step's number."""
    run = jax.jit(lambda batch, number: task.augmented(batch, step_rngs(0, number)))
    return lambda number: run(batch, number)


def part_options(options: dict) -> dict[str, dict]:
    """Return the task's options with each augmentation alone."""
    off = {**options, **dict.fromkeys(MIX, 0.0)}
    neutral = {"policy": "", "color_jitter": 0.0, "flip": False, "erasing": 0.0, "crop_padding": 0}
    neutral |= dict.fromkeys(("degrees", "translate", "scale", "shear"), 0.0)
    parts = {"normalize": {**off, "augment": {**options["augment"], **neutral}}}
    for name, value in neutral.items():
        if options["augment"].get(name, value) != value:
            alone = {**options["augment"], **neutral, name: options["augment"][name]}
            parts[f"normalize + {name}"] = {**off, "augment": alone}
    if any(options[name] for name in MIX):
        parts["normalize + mix"] = {**options, "augment": parts["normalize"]["augment"]}
    return parts


if __name__ == "__main__":
    main()

"""Measure what one update of a config takes in memory, by precision, remat and accumulation: compiled, not run.

    python tools/measure_memory.py --config=configs/imagenet/swin_tiny.py [--batch_size=8] [--variants=float32 ...]

Prints one JSON object for each variant, in bytes: the state (it is donated, so it counts once), what XLA allocates
beside it during an update (`memory_analysis()` of the compiled step), and what the traced backward pass takes from the
forward pass, parameters apart, which does not depend on the backend. On the CPU, XLA computes bfloat16 in float32 and
drops the barriers that hold recomputation back; the latter is turned off here.
"""

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402

from swin_jax.commands import load_config  # noqa: E402
from swin_jax.training import sharding  # noqa: E402
from swin_jax.training.experiment import build, compile_steps  # noqa: E402
from swin_jax.training.step import step_rngs  # noqa: E402

VARIANTS = {
    "float32": ("model.dtype=float32", "model.remat=False"),
    "bfloat16": ("model.dtype=bfloat16", "model.remat=False"),
    "float32, remat": ("model.dtype=float32", "model.remat=True"),
    "bfloat16, remat": ("model.dtype=bfloat16", "model.remat=True"),
    "float32, accumulation_steps=4": ("model.dtype=float32", "model.remat=False", "accumulation_steps=4"),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=VARIANTS)
    arguments = parser.parse_args()
    for name in arguments.variants:
        overrides = (f"batch_size={arguments.batch_size}", *VARIANTS[name])
        print(json.dumps({"variant": name, **measure(arguments.config, overrides)}), flush=True)


def measure(path: str, overrides: tuple[str, ...]) -> dict[str, float]:
    """Return the sizes in bytes, and the seconds of the compilation."""
    config = load_config(path, overrides)
    if config.data.kind == "images":  # no pixels are looked at
        config = load_config(path, (*overrides, "data.source=synthetic", "data.num_classes=1000"))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    experiment = build(config, mesh)
    example = next(experiment.inputs.train_iterator(batch_size=config.batch_size))
    batch = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), example)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = compile_steps(config, experiment)[0].lower(experiment.target, batch, 0)
        is_cpu = jax.default_backend() == "cpu"
        options = {"xla_disable_hlo_passes": "cse_barrier_expander", "xla_backend_optimization_level": 0}
        compiled = lowered.compile(compiler_options=options if is_cpu else None)
    memory = compiled.memory_analysis()
    return {
        "state": nbytes(experiment.target),
        "temporary": memory.temp_size_in_bytes,
        "donated": memory.alias_size_in_bytes,
        "kept for the backward pass": residuals(experiment, batch, config.accumulation_steps),
        "GFLOP": round(compiled.cost_analysis()["flops"] / 1e9, 1),
        "seconds to compile": round(time.perf_counter() - start, 1),
    }


def residuals(experiment, batch, accumulation_steps: int) -> int:
    """Return the bytes of what the backward pass takes from the forward pass, without the parameters."""
    target = experiment.target
    batch = {
        name: jax.ShapeDtypeStruct((leaf.shape[0] // accumulation_steps, *leaf.shape[1:]), leaf.dtype)
        for name, leaf in batch.items()
    }

    def backward_of(params, model_state, batch):
        def loss_of(params):
            return experiment.task.loss(experiment.model_def.merge(params, model_state), batch, step_rngs(0, 0))[0]

        return jax.vjp(loss_of, params)[1]

    kept = jax.eval_shape(backward_of, target.params, target.model_state, batch)
    return nbytes(kept) - nbytes(target.params)


def nbytes(tree) -> int:
    """Return the bytes of all arrays in a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    main()

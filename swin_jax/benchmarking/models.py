"""A training step or inference of an image model, and what the machine could do at most in the same run."""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from swin_jax.benchmarking.timing import Program, Timing, compile_program, measure
from swin_jax.errors import UserError
from swin_jax.models import create_model
from swin_jax.training import sharding
from swin_jax.training.default_config import default_config
from swin_jax.training.experiment import build, compile_steps

MATMUL_SIDE = {"cpu": 1024}  # of square matrices; elsewhere 8192
COPY_BYTES = {"cpu": 2**26}  # elsewhere a gigabyte


@dataclasses.dataclass(frozen=True)
class Work:
    """What is measured: `train`, an AdamW update with its input on the device, or `infer`, logits of a batch.

    `microbatch` images are computed at a time, one after the other, 0 for all: what stays in a CPU's caches is faster.
    `devices` share them. Cores of a CPU can be devices (`jax_num_cpu_devices`), and then do not wait for each other
    after every operation.
    """

    mode: str
    model: str
    batch_size: int
    image_size: int = 224
    dtype: str = "float32"
    microbatch: int = 0
    scan: bool = False
    devices: int = 1
    num_classes: int = 1000

    def __post_init__(self):
        if self.microbatch and self.batch_size % self.microbatch:
            raise UserError(f"--batch_size={self.batch_size} is no multiple of --microbatch={self.microbatch}")
        if self.part_size % self.devices:
            raise UserError(f"--devices={self.devices} cannot share {self.part_size} image(s)")

    @property
    def part_size(self) -> int:
        return self.microbatch or self.batch_size

    @property
    def parts(self) -> int:
        return self.batch_size // self.part_size

    def make_mesh(self) -> Mesh:
        """Return the mesh of the devices that share the work. Raises UserError if there are fewer."""
        is_set = jax.config.jax_num_cpu_devices != -1 or "device_count" in os.environ.get("XLA_FLAGS", "")
        if self.devices > 1 and not is_set:
            with contextlib.suppress(RuntimeError):  # JAX has been used: it has the devices that it has
                jax.config.update("jax_num_cpu_devices", min(self.devices, os.cpu_count()))
        if len(jax.devices()) < self.devices:
            raise UserError(f"--devices={self.devices}, and there are {len(jax.devices())}")
        return sharding.make_mesh(devices=jax.devices()[: self.devices])


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step. FLOPs are those of the whole batch, as XLA counts them before optimization; bytes are XLA's."""

    program: Program
    compile_seconds: float
    flops: float | None
    argument_bytes: int | None


def compile_work(work: Work) -> Compiled:
    """Compile the step and put its inputs on the device. Raises UserError for a model that there is not."""
    return _compile_training(work) if work.mode == "train" else _compile_inference(work)


def _compile_training(work: Work) -> Compiled:
    config = default_config()
    config.batch_size, config.accumulation_steps = work.batch_size, work.parts
    config.model.name, config.model.dtype = work.model, work.dtype
    config.data.source, config.data.image_size, config.data.num_classes = "synthetic", work.image_size, work.num_classes
    config.optimizer.weight_decay = 0.05
    config.model.drop_path_rate, config.model.scan = 0.0, work.scan
    mesh = work.make_mesh()
    with jax.set_mesh(mesh):
        experiment = build(config, mesh)
        state = experiment.layout.stack(experiment.init())
        images = np.random.default_rng(0).integers(0, 256, (work.batch_size, work.image_size, work.image_size, 3))
        batch = {"image": images.astype(np.uint8), "label": np.arange(work.batch_size, dtype=np.int32)}
        batch = sharding.global_batch(batch, mesh)
        step, _ = compile_steps(config, experiment)
        compiled, seconds = _timed_compile(step, state, batch, 0)
        # XLA counts the body of a loop once
        config.accumulation_steps, config.model.scan = 1, False
        flops = _flops(compile_steps(config, build(config, mesh))[0].lower(experiment.target, batch, 0))

    def run():
        nonlocal state
        state, metrics = compiled(state, batch, 0)
        return metrics

    return _summary(run, compiled, seconds, flops)


def _compile_inference(work: Work) -> Compiled:
    dtype, mesh = jnp.dtype(work.dtype), work.make_mesh()
    options = {"num_classes": work.num_classes, "image_size": work.image_size, "dtype": dtype}
    try:
        graphdef, parameters = nnx.split(create_model(work.model, **options, scan=work.scan, rngs=nnx.Rngs(0)))
        unrolled = nnx.graphdef(nnx.eval_shape(lambda: create_model(work.model, **options, rngs=nnx.Rngs(0))))
    except ValueError as error:
        raise UserError(str(error)) from error
    cut = NamedSharding(mesh, PartitionSpec(None, "data"))  # [parts, images of a part, ...]
    parameters = jax.device_put(parameters, sharding.replicated(mesh))
    shape = (work.parts, work.part_size, work.image_size, work.image_size, 3)
    images = jax.device_put(jax.random.normal(jax.random.key(0), shape, dtype), cut)

    def infer(parameters, images, graphdef=graphdef):
        return nnx.merge(graphdef, parameters)(images)

    def infer_parts(parameters, images):
        return jax.lax.map(lambda part: infer(parameters, part), images)

    def infer_whole(parameters, images):
        return infer(parameters, images[0])[None]

    infer_all = jax.jit(infer_parts if work.parts > 1 else infer_whole, out_shardings=cut)
    compiled, seconds = _timed_compile(infer_all, parameters, images)
    # XLA counts the body of a loop once
    flops = _flops(jax.jit(functools.partial(infer, graphdef=unrolled)).lower(parameters, images[0]))
    return _summary(lambda: compiled(parameters, images), compiled, seconds, flops and flops * work.parts)


def _timed_compile(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    return compiled, time.perf_counter() - start


def _summary(run: Callable[[], Any], compiled: Any, seconds: float, flops: float | None) -> Compiled:
    memory = compiled.memory_analysis()
    program = Program(run, getattr(memory, "temp_size_in_bytes", None))
    return Compiled(program, seconds, flops, getattr(memory, "argument_size_in_bytes", None))


def _flops(lowered: Any) -> float | None:
    cost = lowered.cost_analysis() or {}
    return cost.get("flops")


def measure_machine(dtype: str, *, samples: int) -> tuple[float, float]:
    """Return what one large matrix product reaches, in FLOP/s, and a copy, in bytes read and written a second."""
    platform = jax.default_backend()
    side, size = MATMUL_SIDE.get(platform, 8192), COPY_BYTES.get(platform, 2**30)
    matrix = jnp.ones((side, side), dtype)
    vector = jnp.ones((size // 4,), jnp.float32)
    programs = {
        "matmul": compile_program(lambda a: a @ a, matrix),
        "copy": compile_program(lambda a: -a, vector),
    }
    found = measure(programs, samples=samples)
    return 2 * side**3 / found["matmul"].low, 2 * size / found["copy"].low


def figures(work: Work, compiled: Compiled, timing: Timing, machine: tuple[float, float]) -> dict[str, Any]:
    """Return what the command prints: rates, and fractions of what the machine reached in the same run."""
    matmul, copy = machine
    flops_per_second = compiled.flops / timing.median if compiled.flops else None
    temporary = compiled.program.temporary_bytes
    temporary = None if temporary is None else temporary * work.devices
    matmul *= 1 if jax.default_backend() == "cpu" else work.devices  # a CPU's devices have its cores in common
    return {
        **dataclasses.asdict(work),
        "device": jax.devices()[0].device_kind,
        "seconds": dataclasses.asdict(timing),
        "images_per_second": work.batch_size / timing.median,
        "compile_seconds": compiled.compile_seconds,
        "temporary_bytes": temporary,
        "temporary_bytes_per_image": None if temporary is None else temporary / work.batch_size,
        "argument_bytes": compiled.argument_bytes,
        "flops_per_image": compiled.flops / work.batch_size if compiled.flops else None,
        "flops_per_second": flops_per_second,
        "matmul_flops_per_second": matmul,
        "copy_bytes_per_second": copy,
        "fraction_of_matmul": flops_per_second / matmul if flops_per_second else None,
    }


def table(found: dict[str, Any]) -> str:
    """Return the figures as lines of text."""

    def scaled(value: float | None, scale: float, digits: int = 1) -> str:
        return "-" if value is None else f"{value / scale:.{digits}f}"

    median, low, high = (1e3 * found["seconds"][name] for name in ("median", "low", "high"))
    rows = {
        "images/s": scaled(found["images_per_second"], 1, 2),
        "step": f"{median:.1f} ms, quartiles {low:.1f} to {high:.1f}",
        "compilation": f"{found['compile_seconds']:.1f} s",
        "temporaries": f"{scaled(found['temporary_bytes'], 1e6)} MB",
        "arguments": f"{scaled(found['argument_bytes'], 1e6)} MB",
        "an image": f"{scaled(found['flops_per_image'], 1e9, 2)} GFLOP",
        "reached": f"{scaled(found['flops_per_second'], 1e9)} GFLOP/s",
        "a matrix product": f"{scaled(found['matmul_flops_per_second'], 1e9)} GFLOP/s",
        "fraction of it": scaled(found["fraction_of_matmul"], 1, 3),
        "a copy": f"{scaled(found['copy_bytes_per_second'], 1e9)} GB/s read and written",
    }
    return "\n".join(f"{name:18}{value}" for name, value in rows.items())

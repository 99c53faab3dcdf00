"""Plan a run on chips that are not there:

python -m swin_jax.plan --config=configs/imagenet/swin_large_22k.py --chip=tpu_v5p --chips=256 --config.mesh.fsdp=16

The update is compiled for a mesh of that size and not run. Memory, operations and bytes on the wire are XLA's, for a
few layers and on a line from there to all of them. With libtpu installed (pip install "jax[tpu]") the TPU's own
compiler does it, otherwise the CPU's, for as many fake devices. docs/scaling.md says what the figures are worth.
"""

import copy
import dataclasses
import os
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from swin_jax.commands import load_config, run_command
from swin_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("config", None, "Config file; its keys can be set as --config.KEY=VALUE.", flag_values=FLAGS)
flags.DEFINE_string("chip", "tpu_v5p", "tpu_v5p or h100.", flag_values=FLAGS)
flags.DEFINE_integer("chips", 256, "How many; config.mesh says how they share the work.", flag_values=FLAGS)
flags.DEFINE_enum("compiler", "auto", ["auto", "tpu", "cpu"], "Whose memory and operations.", flag_values=FLAGS)
flags.DEFINE_float("share_of_peak", 0.5, "Assumed of a chip that waits for nothing.", flag_values=FLAGS)
flags.DEFINE_bool("all_layers", False, "Compile the whole model, not a few layers of it.", flag_values=FLAGS)
flags.DEFINE_bool("check", True, "Compile a third depth, to see how far off the line is.", flag_values=FLAGS)
flags.mark_flags_as_required(["config"], flag_values=FLAGS)

FIRST_DEPTHS = {"depth": (2, 3, 4), "depths": (2, 4, 6)}  # of a ViT, of Swin's longest stage: pairs, as blocks shift
CPU_OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # it is not to run

NO_TPU = {  # so that libtpu neither looks for a TPU that is not there, nor complains, nor keeps others from one
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def main(flag_values: flags.FlagValues, overrides: list[str]) -> dict[str, Any]:
    from swin_jax.planning.chips import get_chip

    chip, num_chips = get_chip(flag_values.chip), flag_values.chips
    if num_chips < 1:
        raise UserError(f"--chips={num_chips} must be at least 1")
    if not 0 < flag_values.share_of_peak <= 1:
        raise UserError(f"--share_of_peak={flag_values.share_of_peak} must be above 0 and at most 1")
    config = load_config(flag_values.config, overrides)
    if config.data.kind != "images":
        raise UserError(f"data.kind={config.data.kind}: a plan is for images")
    config.data.num_classes = config.data.num_classes or 1000
    config.data.source, config.data.train_split, config.data.eval_split = "synthetic", "train", "test"
    config.init_from = ""
    config.task.augment.policy = ""  # XLA for TPU counts 2 TB of memory traffic for RandAugment of 16 images
    if "scan" in config.model:
        config.model.scan = False  # XLA counts the body of a loop once
    compiler = choose_compiler(flag_values.compiler, chip.name)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if compiler == "cpu":
        count = f"--xla_force_host_platform_device_count={num_chips}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"

    from swin_jax.planning.costs import pace

    devices = find_devices(compiler, num_chips)
    plan = make_plan(config, devices, all_layers=flag_values.all_layers, check=flag_values.check)
    times = pace(plan.costs, chip, model_flops=plan.model_flops / num_chips, share_of_peak=flag_values.share_of_peak)
    report = figures(plan, times, config, num_chips) | {
        "chip": chip.name,
        "compiler": compiler,
        "share_of_peak_assumed": flag_values.share_of_peak,
        "fits": plan.costs.memory_bytes <= chip.memory_bytes,
        "chip_memory_bytes": chip.memory_bytes,
    }
    for line in table(report):
        print(line)
    return report


def choose_compiler(wanted: str, chip: str) -> str:
    """Return `tpu` or `cpu`. Raises UserError if the one that was asked for is not there, or not for this chip."""
    import importlib.util

    possible = chip.startswith("tpu") and importlib.util.find_spec("libtpu") is not None
    if wanted == "tpu" and not possible:
        raise UserError('--compiler=tpu is for a TPU and needs libtpu: pip install "jax[tpu]"')
    return "tpu" if possible and wanted != "cpu" else "cpu"


def find_devices(compiler: str, num_chips: int) -> list[Any]:
    """Return devices to compile for, which need not exist."""
    import jax

    from swin_jax.planning.chips import TPU_V5P_SLICES

    if compiler == "cpu":
        if jax.device_count() < num_chips:
            raise UserError(f"JAX has started with {jax.device_count()} fake devices, too few for {num_chips}")
        return jax.devices()[:num_chips]
    if num_chips not in TPU_V5P_SLICES:
        raise UserError(f"there is no TPU v5p slice of {num_chips} chips, but of {[*TPU_V5P_SLICES]}")
    from jax.experimental import topologies

    for name, value in NO_TPU.items():
        os.environ.setdefault(name, value)
    return topologies.get_topology_desc(f"v5p:{TPU_V5P_SLICES[num_chips]}", "tpu").devices


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was read of one config on one mesh."""

    costs: Any  # swin_jax.planning.costs.Costs
    model_flops: float  # of the whole batch, without recomputation
    num_parameters: int
    mesh: dict[str, int]
    depths: tuple[int, ...]  # that were compiled; the layers of the whole model last
    deviation: dict[str, float] | None  # of the line from the third depth


def make_plan(config: ConfigDict, devices: list[Any], *, all_layers: bool = False, check: bool = True) -> Plan:
    """Compile the update of `config` on these devices and read what it costs."""
    import jax

    from swin_jax.planning.costs import bytes_on_a_chip, deviation, extrapolate
    from swin_jax.training import sharding

    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    sharding.check_batch_size(config.batch_size, mesh, accumulation_steps=config.accumulation_steps)
    target = _experiment(config, mesh).target
    whole = {"num_parameters": sum(leaf.size for leaf in jax.tree.leaves(target.params)), "mesh": dict(mesh.shape)}
    key, depth, stages = _layers(target.params)
    first = FIRST_DEPTHS[key]
    if all_layers or depth <= first[1]:
        model_flops = _model_flops(config)
        return Plan(compile_costs(config, mesh), model_flops, **whole, depths=(depth,), deviation=None)

    def at(number: int) -> ConfigDict:
        return _with_layers(config, key, stages, number)

    costs = [compile_costs(at(number), mesh) for number in first[:2]]
    flops = [_model_flops(at(number)) for number in first[:2]]
    off = None
    if check and depth >= first[2]:
        expected = extrapolate(*costs, depths=first[:2], depth=first[2])
        off = deviation(expected, compile_costs(at(first[2]), mesh))
    model_flops = flops[0] + (flops[1] - flops[0]) * (depth - first[0]) / (first[1] - first[0])
    total = extrapolate(*costs, depths=first[:2], depth=depth)
    total = dataclasses.replace(total, state_bytes=bytes_on_a_chip(target))  # known without a line
    return Plan(total, model_flops, **whole, depths=(*first[: 3 if off else 2], depth), deviation=off)


def compile_costs(config: ConfigDict, mesh: Any) -> Any:
    """Compile one update and return its `Costs`."""
    import jax

    from swin_jax.planning.costs import bytes_on_a_chip, read_costs
    from swin_jax.training.experiment import compile_steps

    with jax.set_mesh(mesh):
        experiment = _experiment(config, mesh)
        step, _ = compile_steps(config, experiment)
        lowered = step.lower(experiment.target, _batch(config), 0)
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        compiled = lowered.compile(CPU_OPTIONS if on_cpu else None)
        try:
            return read_costs(compiled, state_bytes=bytes_on_a_chip(experiment.target))
        except ValueError as error:  # a figure that leaves a collective out would be wrong
            raise UserError(f"the bytes on the wire cannot be counted for this mesh: {error}") from error


def _experiment(config: ConfigDict, mesh: Any) -> Any:
    from swin_jax.training.experiment import build

    config = copy.deepcopy(config)
    config.batch_size, config.total_steps = 1, 10**8  # neither is in the program, and any number must fit the data's
    return build(config, mesh)


def _batch(config: ConfigDict) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    size = config.data.image_size
    sides = (size, size) if isinstance(size, int) else size
    return {
        "image": jax.ShapeDtypeStruct((config.batch_size, *sides, config.data.channels), jnp.uint8),
        "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
    }


def _model_flops(config: ConfigDict) -> float:
    """Return XLA's count of an update of the whole batch, as it is written: on one device and without `remat`."""
    import jax

    from swin_jax.training import sharding
    from swin_jax.training.experiment import compile_steps

    config = copy.deepcopy(config)
    config.accumulation_steps = 1
    if "remat" in config.model:
        config.model.remat = False
    mesh = sharding.make_mesh(devices=jax.devices("cpu")[:1])
    step, _ = compile_steps(config, experiment := _experiment(config, mesh))
    return step.lower(experiment.target, _batch(config), 0).cost_analysis()["flops"]


def _layers(params: dict[str, Any]) -> tuple[str, int, tuple[int, ...]]:
    """Return the model's argument that says how many blocks there are, the number to vary, and all stages' numbers."""
    if "blocks" in params:
        return "depth", len(params["blocks"]), ()
    if "stages" in params:
        stages = tuple(len(params["stages"][name]["blocks"]) for name in sorted(params["stages"], key=int))
        return "depths", max(stages), stages
    raise UserError("a plan is for models of blocks, or of stages of blocks: --all_layers for others")


def _with_layers(config: ConfigDict, key: str, stages: tuple[int, ...], number: int) -> ConfigDict:
    config = copy.deepcopy(config)
    longest = stages.index(max(stages)) if stages else 0
    config.model[key] = number if key == "depth" else (*stages[:longest], number, *stages[longest + 1 :])
    return config


def figures(plan: Plan, times: Any, config: ConfigDict, num_chips: int) -> dict[str, Any]:
    """Return the plan as what JSON can hold."""
    by_kind: dict[str, float] = {}
    for (kind, group), sent in plan.costs.wire.items():
        name = f"{kind} of {len(group)}"
        by_kind[name] = by_kind.get(name, 0.0) + sent
    return {
        "model": config.model.name,
        "num_parameters": plan.num_parameters,
        "chips": num_chips,
        "mesh": plan.mesh,
        "batch_size": config.batch_size,
        "memory_bytes": round(plan.costs.memory_bytes),
        "state_bytes": round(plan.costs.state_bytes),
        "temporary_bytes": round(plan.costs.temporary_bytes),
        "wire_bytes": round(plan.costs.wire_bytes),
        "wire_bytes_by_kind": {name: round(sent) for name, sent in by_kind.items()},
        "flops": plan.costs.flops,
        "model_flops": plan.model_flops / num_chips,
        "chip_seconds": times.chip_seconds,
        "memory_traffic_seconds": times.memory_seconds,
        "wire_seconds": times.wire_seconds,
        "scaling_efficiency": times.scaling_efficiency,
        "model_flops_utilization": times.model_flops_utilization,
        "images_per_second": (config.batch_size / times.slowest, config.batch_size / times.fastest),
        "compiled_layers": plan.depths,
        "deviation": plan.deviation,
    }


def table(report: dict[str, Any]) -> list[str]:
    """Return the plan in lines to read."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    low, high = report["scaling_efficiency"]
    least, most = report["model_flops_utilization"]
    slow, fast = report["images_per_second"]
    gib = 2**30
    lines = [
        f"{report['model']}, {report['num_parameters'] / 1e6:,.1f} M parameters, batch {report['batch_size']:,}, on "
        f"{report['chips']:,} {report['chip']} ({mesh}), compiled by XLA for {report['compiler'].upper()}",
        f"memory a chip    {report['memory_bytes'] / gib:8.2f} GiB of {report['chip_memory_bytes'] / gib:.0f}"
        f"{'' if report['fits'] else ': does not fit'} (state {report['state_bytes'] / gib:.2f}, activations and "
        f"gradients {report['temporary_bytes'] / gib:.2f})",
        f"sent a step      {report['wire_bytes'] / 1e9:8.3f} GB a chip",
        *(f"  {name:22} {sent / 1e9:8.3f} GB" for name, sent in report["wire_bytes_by_kind"].items()),
        f"operations       {report['flops'] / 1e12:8.2f} TFLOP a chip, "
        f"{report['model_flops'] / 1e12:.2f} the model's own",
        f"chip at work     {report['chip_seconds'] * 1e3:8.1f} ms at an assumed {report['share_of_peak_assumed']:.0%} "
        f"of its peak; {report['memory_traffic_seconds'] * 1e3:.1f} ms of memory traffic by XLA's count",
        f"wire at work     {report['wire_seconds'] * 1e3:8.1f} ms",
        f"scaling          {low:8.1%} with nothing overlapped, {high:.1%} with all that can be",
        f"model FLOP use   {least:8.1%} to {most:.1%} of the peak, {slow:,.0f} to {fast:,.0f} images/s",
    ]
    if report["deviation"]:
        off = ", ".join(f"{name} {share:.1%}" for name, share in report["deviation"].items())
        *compiled, depth = report["compiled_layers"]
        lines.append(
            f"a line to {depth} layers from {compiled[0]} and {compiled[1]}; at {compiled[2]} it is off by: {off}"
        )
    return lines


if __name__ == "__main__":
    run_command(main, FLAGS)

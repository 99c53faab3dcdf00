"""What one update costs one chip: read from the compiled program, carried on to more layers, and turned into time."""

import collections
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from swin_jax.planning.chips import Chip
from swin_jax.planning.collectives import read_collectives

Wire = tuple[str, tuple[int, ...]]  # kind of collective, one of its groups of chips


@dataclass(frozen=True)
class Costs:
    """One update on one of the chips that share it. All figures but `wire`'s keys are linear in the layers."""

    state_bytes: float
    batch_bytes: float
    temporary_bytes: float  # activations, gradients, gathered parameters, at the worst moment
    flops: float
    memory_traffic_bytes: float  # XLA's "bytes accessed", after fusion
    wire: Mapping[Wire, float]  # bytes sent

    @property
    def memory_bytes(self) -> float:
        return self.state_bytes + self.batch_bytes + self.temporary_bytes

    @property
    def wire_bytes(self) -> float:
        return sum(self.wire.values())


def read_costs(compiled: jax.stages.Compiled, *, state_bytes: float) -> Costs:
    """Return the costs of a compiled update; `state_bytes` is what its donated state takes on a chip."""
    memory, figures = compiled.memory_analysis(), compiled.cost_analysis()
    wire: collections.Counter[Wire] = collections.Counter()
    for collective in read_collectives(compiled.as_text()):
        wire[collective.kind, collective.group] += collective.sent_bytes
    return Costs(
        state_bytes=state_bytes,
        batch_bytes=memory.argument_size_in_bytes - state_bytes,
        temporary_bytes=memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        flops=figures["flops"],
        memory_traffic_bytes=figures["bytes accessed"],
        wire=dict(wire),
    )


def bytes_on_a_chip(tree: Any) -> int:
    """Return what the arrays of a tree, shapes with shardings, take on one device."""
    leaves = jax.tree.leaves(tree)
    return sum(
        leaf.dtype.itemsize * _size(leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape)
        for leaf in leaves
    )


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def extrapolate(fewer: Costs, more: Costs, *, depths: tuple[int, int], depth: int) -> Costs:
    """Return the costs at `depth` layers from those at two other depths, on the line through them."""
    factor = (depth - depths[0]) / (depths[1] - depths[0])

    def line(a: float, b: float) -> float:
        return a + factor * (b - a)

    keys = dict.fromkeys([*fewer.wire, *more.wire])
    return Costs(
        wire={key: max(line(fewer.wire.get(key, 0.0), more.wire.get(key, 0.0)), 0.0) for key in keys},
        **{name: line(getattr(fewer, name), getattr(more, name)) for name in LINEAR},
    )


LINEAR = ("state_bytes", "batch_bytes", "temporary_bytes", "flops", "memory_traffic_bytes")


def deviation(expected: Costs, found: Costs) -> dict[str, float]:
    """Return by what share of `found` each figure of `expected` is off."""
    pairs = {
        "temporary_bytes": (expected.temporary_bytes, found.temporary_bytes),
        "flops": (expected.flops, found.flops),
        "wire_bytes": (expected.wire_bytes, found.wire_bytes),
    }
    return {name: abs(a - b) / b if b else float(a != b) for name, (a, b) in pairs.items()}


@dataclass(frozen=True)
class Pace:
    """Seconds of an update: the chip at work, the wire, and both together with all overlapped or nothing."""

    chip_seconds: float
    memory_seconds: float
    wire_seconds: float
    model_flops_share: float  # of chip_seconds · peak: what of the work is the model's, not recomputation

    @property
    def fastest(self) -> float:
        return max(self.chip_seconds, self.wire_seconds)

    @property
    def slowest(self) -> float:
        return self.chip_seconds + self.wire_seconds

    @property
    def scaling_efficiency(self) -> tuple[float, float]:
        """The share of the time that chips work, not wait for each other: with nothing overlapped, with everything."""
        return self.chip_seconds / self.slowest, self.chip_seconds / self.fastest

    @property
    def model_flops_utilization(self) -> tuple[float, float]:
        """The model's operations as a share of the peak (PaLM, arXiv 2204.02311, appendix B), likewise."""
        work = self.model_flops_share * self.chip_seconds
        return work / self.slowest, work / self.fastest


def pace(costs: Costs, chip: Chip, *, model_flops: float, share_of_peak: float) -> Pace:
    """Return how long an update takes.

    Args:
        model_flops: of an update, the part of one chip, without what `remat` computes again.
        share_of_peak: what a chip reaches of its peak with nothing to wait for: an assumption.
    """
    chip_seconds = costs.flops / (chip.flops * share_of_peak)
    return Pace(
        chip_seconds=chip_seconds,
        memory_seconds=costs.memory_traffic_bytes / chip.memory_bytes_per_second,
        wire_seconds=sum(sent / chip.wire_bytes_per_second(group) for (_, group), sent in costs.wire.items()),
        model_flops_share=model_flops / (chip.flops * chip_seconds),
    )

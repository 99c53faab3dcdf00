"""What a compiled program sends between devices, read from its HLO text."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_OPERATION = re.compile(rf" ({'|'.join(KINDS)}|ragged-all-to-all|collective-broadcast)(-start)?\(")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]\d+[a-z0-9]*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """One exchange between the devices of a group, as one device sees it."""

    kind: str  # one of KINDS
    result_bytes: int  # what the device has of it afterwards
    group: tuple[int, ...]  # the devices of one of the groups, by their place in the mesh
    times: int  # a step

    @property
    def sent_bytes(self) -> float:
        """Bytes that a device sends in a step, in a ring of the group's n devices.

        all-gather and all-to-all: (n - 1) / n of the result; reduce-scatter: n - 1 times the result, of which its input
        has n; all-reduce: the two together, 2 (n - 1) / n of the result; collective-permute: the result.
        """
        n = len(self.group)
        factor = {"reduce-scatter": n - 1, "all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}
        return self.times * self.result_bytes * factor.get(self.kind, (n - 1) / n)


def read_collectives(hlo: str) -> list[Collective]:
    """Return the collectives of a step from the text of a compiled, partitioned program.

    Those in a loop count as often as it turns. Raises ValueError for one of a kind or form that is not known here, or
    in a loop whose turns XLA does not state: a figure that leaves something out would be wrong.
    """
    computations = dict(_computations(hlo))
    found: list[Collective] = []

    def visit(name: str, times: int | None) -> None:
        for line in computations[name][1]:
            operation = _OPERATION.search(line)
            if operation:
                if times is None:
                    raise ValueError(f"a collective in a loop of unknown length: {line.strip()[:200]}")
                collective = _collective(line, operation, times)
                if len(collective.group) > 1:
                    found.append(collective)
                continue  # `to_apply` is only what all-reduce does to two elements
            trips = _TRIPS.search(line)
            is_loop = re.search(r"\bwhile\(", line) is not None
            turns = times if not is_loop else int(trips[1]) * times if trips and times is not None else None
            called = _CALLED.findall(line) + [
                each.strip().lstrip("%") for found in _BRANCHES.findall(line) for each in found.split(",")
            ]
            for each in called:
                visit(each, turns)

    (entry,) = [name for name, (is_entry, _) in computations.items() if is_entry]
    visit(entry, 1)
    return found


def _computations(hlo: str) -> Iterator[tuple[str, tuple[bool, list[str]]]]:
    name, is_entry, lines = None, False, []
    for line in hlo.splitlines():
        if name is None:
            header = _COMPUTATION.match(line)
            if header and not line.startswith("HloModule"):
                name, is_entry, lines = header[2], bool(header[1]), []
        elif line.startswith("}"):
            yield name, (is_entry, lines)
            name = None
        else:
            lines.append(line)


def _collective(line: str, operation: re.Match, times: int) -> Collective:
    kind, is_start = operation[1], bool(operation[2])
    if kind not in KINDS:
        raise ValueError(f"an unknown collective: {line.strip()[:200]}")
    declared = line[: operation.start()].split(" = ", 1)[1]
    if is_start and kind != "all-reduce":  # (operands, results, ...), where an all-reduce has its results alone
        declared = _elements(declared)[1]
    return Collective(kind, type_bytes(declared), _group(line, kind), times)


def type_bytes(declared: str) -> int:
    """Return the bytes of an HLO type such as `f32[8,128]{1,0}` or a tuple of such."""
    total = 0
    for dtype, shape in _ARRAY.findall(declared):
        digits = re.search(r"\d+", dtype)
        bits = 8 if dtype == "pred" else int(digits[0])
        total += math.ceil(math.prod(int(size) for size in shape.split(",") if size) * bits / 8)
    return total


def _elements(declared: str) -> list[str]:
    """Split the type of a tuple at its own commas."""
    parts, depth, current = [], 0, ""
    for character in declared.strip()[1:-1]:
        depth += character in "([{"
        depth -= character in ")]}"
        if character == "," and depth == 0:
            parts, current = [*parts, current], ""
        else:
            current += character
    return [*parts, current]


def _group(line: str, kind: str) -> tuple[int, ...]:
    """Return the first group of devices, of the several that XLA runs side by side."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)+)\}", line)
        sent = [pair for pair in re.findall(r"\{(\d+),(\d+)\}", pairs[1] if pairs else "") if pair[0] != pair[1]]
        return tuple(map(int, sent[0])) if sent else (0,)
    if explicit := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return _numbers(explicit[1])
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        devices = _iota(iota[2], iota[3])
        return tuple(devices.reshape(_numbers(iota[1]))[0].tolist())
    if named := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", line
    ):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        axes = re.findall(r"'(\w+)'", named[4])
        if set(axes) <= set(sizes):
            devices = _iota(named[2], named[3]) if named[2] else np.arange(math.prod(sizes.values()))
            devices = devices.reshape(tuple(sizes.values()))
            chosen = tuple(slice(None) if name in axes else 0 for name in sizes)
            return tuple(devices[chosen].flatten().tolist())
    raise ValueError(f"the groups of this collective cannot be read: {line.strip()[:300]}")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _iota(shape: str, order: str | None) -> np.ndarray:
    """Return the devices 0, 1, ... in this shape, its axes then in this order."""
    devices = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return devices.transpose(_numbers(order)) if order else devices

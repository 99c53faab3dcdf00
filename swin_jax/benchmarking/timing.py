"""Time and memory of compiled programs."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np

Name = TypeVar("Name")


@dataclass(frozen=True)
class Program:
    """A compiled computation with its arguments; `temporary_bytes` is what XLA allocates beside arguments and results,
    at most, None where the backend does not tell."""

    run: Callable[[], Any]
    temporary_bytes: int | None


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and quartiles of several samples."""

    median: float
    low: float
    high: float


def compile_program(function: Callable[..., Any], *arguments: Any) -> Program:
    """Compile `function` for these arguments, which it keeps."""
    compiled = jax.jit(function).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    return Program(lambda: compiled(*arguments), getattr(memory, "temp_size_in_bytes", None))


def measure(programs: Mapping[Name, Program], *, samples: int = 7, sample_seconds: float = 0.05) -> dict[Name, Timing]:
    """Time programs after a warm-up. A sample is as many calls as fill `sample_seconds`, one at least.

    The samples go round the programs, so that a change of the machine's pace meets all of them.
    """
    calls = {}
    for name, program in programs.items():
        _seconds(program, 1)
        calls[name] = max(1, math.ceil(sample_seconds / _seconds(program, 1)))
    found: dict[Name, list[float]] = {name: [] for name in programs}
    for _ in range(samples):
        for name, program in programs.items():
            found[name].append(_seconds(program, calls[name]) / calls[name])
    return {name: quartiles(seconds) for name, seconds in found.items()}


def quartiles(values: Sequence[float]) -> Timing:
    """Return the median and the quartiles of some samples."""
    return Timing(*(float(np.quantile(values, share)) for share in (0.5, 0.25, 0.75)))


def _seconds(program: Program, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        result = program.run()
        jax.block_until_ready(result)
    return time.perf_counter() - start

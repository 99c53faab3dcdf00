"""The layers of attention alone, by each implementation that the platform has: what `auto` should choose there."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from swin_jax.benchmarking.timing import Program, Timing, compile_program, measure
from swin_jax.errors import UserError
from swin_jax.models.swin import WINDOW_ATTENTION, WINDOW_PLATFORMS
from swin_jax.nn.attention import MultiHeadAttention
from swin_jax.nn.implementations import MULTI_HEAD, PLATFORMS, choose_attention
from swin_jax.nn.initializers import dense_factory
from swin_jax.nn.windows import WindowAttention, shifted_window_attention

MODES = ("forward", "both passes")


@dataclasses.dataclass(frozen=True)
class Work:
    """A layer on a batch of square maps: windows of `window_size`, shifted or not, or 0 for a ViT's full attention."""

    batch_size: int
    map_size: int
    window_size: int
    shifted: bool
    num_heads: int
    head_dim: int
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.batch_size, self.map_size, self.map_size, self.num_heads * self.head_dim)

    @property
    def least_bytes(self) -> int:
        """Bytes of the map read and the outcome written once: what no implementation can do without."""
        return 2 * self.batch_size * self.map_size**2 * self.shape[-1] * jnp.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Time and memory by mode, or why there is none."""

    timings: dict[str, Timing] = dataclasses.field(default_factory=dict)
    temporary_bytes: dict[str, int | None] = dataclasses.field(default_factory=dict)
    problem: str | None = None


def compare(
    work: Work, *, names: Sequence[str] = tuple(PLATFORMS), samples: int, sample_seconds: float
) -> dict[str, Outcome]:
    """Time the layer by each of the implementations, by turns. Raises UserError if none of them can do the work."""
    programs: dict[tuple[str, str], Program] = {}
    problems = {}
    for name in names:
        try:
            programs |= {(name, mode): program for mode, program in layer_programs(work, name).items()}
        except ValueError as error:
            problems[name] = str(error)
    if not programs:
        raise UserError("; ".join(problems.values()))
    timings = measure(programs, samples=samples, sample_seconds=sample_seconds)

    def outcome(name: str) -> Outcome:
        if name in problems:
            return Outcome(problem=problems[name])
        return Outcome(
            {mode: timings[name, mode] for mode in MODES},
            {mode: programs[name, mode].temporary_bytes for mode in MODES},
        )

    return {name: outcome(name) for name in names}


def layer_programs(work: Work, name: str) -> dict[str, Program]:
    """Return the layer by the implementation called `name`: its outcome, and that with the gradients of all inputs.

    Raises ValueError if the platform does not have it, or it cannot do the work.
    """
    attend, parameters = _make_layer(work, name)
    keys = jax.random.split(jax.random.key(1))
    x, gradient = (jax.random.normal(key, work.shape, work.dtype) for key in keys)

    def both(parameters: Any, x: jax.Array, gradient: jax.Array) -> Any:
        y, backward = jax.vjp(attend, parameters, x)
        return y, backward(gradient)

    return {
        "forward": compile_program(attend, parameters, x),
        "both passes": compile_program(both, parameters, x, gradient),
    }


def _make_layer(work: Work, name: str) -> tuple[Callable[[Any, jax.Array], jax.Array], Any]:
    is_windowed = work.window_size > 0
    default = WindowAttention if is_windowed else MultiHeadAttention
    factory = choose_attention(
        default,
        name,
        default=default,
        others=WINDOW_ATTENTION if is_windowed else MULTI_HEAD,
        platforms=WINDOW_PLATFORMS if is_windowed else PLATFORMS,
        dtype=work.dtype,
        head_dim=work.head_dim,
        attention_dropout_rate=0.0,
    )
    window_size = (min(work.window_size, work.map_size),) * 2
    options = {"window_size": window_size} if is_windowed else {}
    kernel_init = nnx.initializers.normal(0.02)
    dense = dense_factory(kernel_init, dtype=jnp.dtype(work.dtype), param_dtype=jnp.float32)
    layer = factory(work.shape[-1], work.num_heads, **options, dense=dense, rngs=nnx.Rngs(0))
    graphdef, parameters = nnx.split(layer)

    def attend(parameters: Any, x: jax.Array) -> jax.Array:
        layer = nnx.merge(graphdef, parameters)
        if is_windowed:
            return shifted_window_attention(x, layer, window_size=window_size, shifted=work.shifted)
        return layer(x.reshape(x.shape[0], -1, x.shape[-1])).reshape(x.shape)

    return attend, parameters


def table(work: Work, found: dict[str, Outcome], copy_bytes_per_second: float) -> str:
    """Return the figures as lines of text; the last column holds the time against that of `xla`."""
    lines = [f"{'':10}{'':14}{'ms':>10}{'quartiles ms':>22}{'temporaries MB':>16}{'faster than xla by':>20}"]
    for name, outcome in found.items():
        if outcome.problem:
            lines.append(f"{name:10}{outcome.problem}")
            continue
        for mode in MODES:
            timing, size = outcome.timings[mode], outcome.temporary_bytes[mode]
            quartiles = f"{1e3 * timing.low:.3f} to {1e3 * timing.high:.3f}"
            megabytes = "-" if size is None else f"{size / 1e6:.2f}"
            plain = found["xla"].timings.get(mode) if "xla" in found else None
            ratio = f"{plain.median / timing.median:.2f}" if plain else "-"
            lines.append(f"{name:10}{mode:14}{1e3 * timing.median:10.3f}{quartiles:>22}{megabytes:>16}{ratio:>20}")
    least = 1e3 * work.least_bytes / copy_bytes_per_second
    lines.append(f"\nreading the map and writing the outcome, at the pace of a copy: {least:.3f} ms")
    return "\n".join(lines)

"""The cost of sequence length: training steps of attention over tokens, and of a ViT and a Swin over image size."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from swin_jax.benchmarking.timing import Program, Timing, compile_program, measure
from swin_jax.errors import UserError
from swin_jax.models import create_model
from swin_jax.nn.attention import dot_product_attention
from swin_jax.nn.masks import causal_mask

PATCH_SIZE = 4
# Narrow, to be measured in minutes on a CPU. The narrower, the sooner a ViT's attention outweighs the rest of it.
MODELS = {
    "ViT": dict(name="vit", embed_dim=32, depth=2, num_heads=2),
    "Swin": dict(name="swin", embed_dim=32, depths=(2, 2), num_heads=(2, 4), window_size=4),
}
IMAGE_MULTIPLE = 32  # windows then divide the maps of both of the Swin's stages
ATTENTION = ("full attention", "causal attention", "windowed attention")


@dataclass(frozen=True)
class Series:
    """The cost of one computation over sizes, ascending; exponents are fitted over the upper half of them."""

    name: str
    tokens: tuple[int, ...]
    timings: tuple[Timing, ...]
    temporary_bytes: tuple[int | None, ...]

    @property
    def time_exponent(self) -> float | None:
        return fit_exponent(self.tokens, [timing.median for timing in self.timings])

    @property
    def memory_exponent(self) -> float | None:
        return fit_exponent(self.tokens, self.temporary_bytes)


def fit_exponent(sizes: Sequence[int], costs: Sequence[float | None]) -> float | None:
    """Return the p of cost = c · sizeᵖ by least squares of the logarithms over the upper half of the sizes.

    None where there are fewer than two sizes, or costs that are not positive numbers.
    """
    half = min(len(sizes) // 2, max(len(sizes) - 2, 0))
    sizes, costs = list(sizes[half:]), list(costs[half:])
    if len(set(sizes)) < 2 or not all(cost is not None and cost > 0 for cost in costs):
        return None
    return float(np.polyfit(np.log(sizes), np.log(np.asarray(costs, float)), deg=1)[0])


def measure_length(
    *,
    lengths: Sequence[int],
    image_sizes: Sequence[int],
    window: int,
    num_heads: int,
    head_dim: int,
    dtype: DTypeLike = jnp.float32,
    samples: int,
    sample_seconds: float,
) -> list[Series]:
    """Measure forward and backward passes of one sequence, or image, of each size.

    `window` tokens, at most, see each other in windowed attention: `[1, N/M, M, heads, head_dim]`. Raises UserError
    for lengths that the windows do not divide, and for images whose maps Swin's windows do not.
    """
    for length in lengths:
        if length % min(window, length):
            raise UserError(f"windows of {window} tokens do not divide a length of {length}")
    for image_size in image_sizes:
        if image_size % IMAGE_MULTIPLE:
            raise UserError(f"image size {image_size} is no multiple of {IMAGE_MULTIPLE}")
    programs: dict[tuple[str, int], Program] = {}
    for length in sorted(set(lengths)):
        for name in ATTENTION:
            programs[name, length] = attention_program(
                name, length, window=window, num_heads=num_heads, head_dim=head_dim, dtype=dtype
            )
    for image_size in sorted(set(image_sizes)):
        for name in MODELS:
            tokens = (image_size // PATCH_SIZE) ** 2
            programs[name, tokens] = model_program(name, image_size, dtype=dtype)
    timings = measure(programs, samples=samples, sample_seconds=sample_seconds)
    series = []
    for name in dict.fromkeys(name for name, _ in programs):
        tokens = tuple(size for other, size in programs if other == name)
        found = tuple(timings[name, size] for size in tokens)
        series.append(Series(name, tokens, found, tuple(programs[name, size].temporary_bytes for size in tokens)))
    return series


def attention_program(
    name: str, length: int, *, window: int, num_heads: int, head_dim: int, dtype: DTypeLike
) -> Program:
    """Return attention of one of the kinds of `ATTENTION` over `length` tokens, with the gradients of all inputs."""
    shape = (1, length, num_heads, head_dim)
    if name == "windowed attention":
        width = min(window, length)
        shape = (1, length // width, width, num_heads, head_dim)
    mask = causal_mask(length) if name == "causal attention" else None

    def step(query, key, value, gradient):
        output, backward = jax.vjp(lambda *inputs: dot_product_attention(*inputs, mask=mask), query, key, value)
        return output, backward(gradient)

    keys = jax.random.split(jax.random.key(0), 4)
    return compile_program(step, *(jax.random.normal(key, shape, dtype) for key in keys))


def model_program(name: str, image_size: int, *, dtype: DTypeLike) -> Program:
    """Return one of `MODELS` on an image, with the gradients of its parameters."""
    options = dict(MODELS[name], patch_size=PATCH_SIZE, image_size=image_size, num_classes=10, dtype=dtype)
    graphdef, parameters = nnx.split(create_model(**options, rngs=nnx.Rngs(0)))
    images = jax.random.normal(jax.random.key(0), (1, image_size, image_size, 3), dtype)

    def loss(parameters, images):
        return -jax.nn.log_softmax(nnx.merge(graphdef, parameters)(images))[0, 0]

    return compile_program(jax.value_and_grad(loss), parameters, images)


def table(series: Sequence[Series]) -> str:
    """Return the figures as lines of text."""
    lines = [f"{'':20}{'tokens':>8}{'step ms':>12}{'quartiles ms':>22}{'temporaries MB':>18}"]
    for each in series:
        for tokens, timing, size in zip(each.tokens, each.timings, each.temporary_bytes, strict=True):
            median, low, high = (1e3 * seconds for seconds in (timing.median, timing.low, timing.high))
            quartiles, megabytes = f"{low:.3f} to {high:.3f}", "-" if size is None else f"{size / 1e6:.2f}"
            lines.append(f"{each.name:20}{tokens:8}{median:12.3f}{quartiles:>22}{megabytes:>18}")
    lines.append("")
    for each in series:
        time, memory = (describe_exponent(value) for value in (each.time_exponent, each.memory_exponent))
        lines.append(f"{each.name:20} time ~ tokens^{time}, memory ~ tokens^{memory}, over the upper half of the sizes")
    return "\n".join(lines)


def describe_exponent(exponent: float | None) -> str:
    return "?" if exponent is None else f"{exponent:.2f}"

"""A look at the images before anything is compiled: two seconds that tell of what would stop the run, or slow it."""

import dataclasses
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from swin_jax.data.batching import Batch
from swin_jax.data.pipeline import LoadImage
from swin_jax.data.sources import ImageSource
from swin_jax.data.splits import split_name
from swin_jax.data.transforms import ImageTransform
from swin_jax.errors import UnreadableRecord, UserError
from swin_jax.training.inputs import ImageInputs, Inputs

SAMPLE_SECONDS = 0.5  # of each split
RATE_SECONDS = 1.0
MAX_NAMED = 5
# Dense bfloat16 operations a second of a chip, as its maker states them; by parts of JAX's device_kind.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "TPU v6": 918e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v4": 275e12,
}
USUAL_SHARE = 0.4  # of that peak, which trained vision models come to when nothing keeps them waiting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What was found; `lines` are for the user, warnings beginning with `warning:`."""

    lines: tuple[str, ...] = ()
    images_per_second: float | None = None  # of this host, where it was measured
    batch: Batch | None = None  # a small one


def check_inputs(
    inputs: Inputs,
    *,
    num_images: int,
    seed: int,
    on_corrupt: str,
    worker_count: int,
) -> Report:
    """Look at splits, classes, labels and a random sample of at most `num_images` of each split, and time the input.

    Raises UserError for a label outside of the classes, and for unreadable images, which it names, unless `on_corrupt`
    is `skip`. Of texts, and with `num_images` = 0, nothing is looked at; the rate of images in memory, and of worker
    processes, which take long to start, is not measured.
    """
    if not num_images or not isinstance(inputs, ImageInputs):
        return Report()
    num_classes = inputs.task_options["num_classes"]
    train, evaluated = inputs.sources["train"], inputs.sources["eval"]
    lines = [f"{inputs.name}: {len(train):,} images to train, {len(evaluated):,} to evaluate, {num_classes:,} classes"]
    lines += class_warnings(train, num_classes)
    lines += overlap_warnings(train, evaluated)
    for source in (train, evaluated):
        lines += sample(
            source,
            num_images=num_images,
            num_classes=num_classes,
            channels=inputs.model_options["in_channels"],
            seed=seed + jax.process_index(),
            on_corrupt=on_corrupt,
        )
    if train.in_memory or worker_count:
        return Report(lines=tuple(lines))
    rate, batch = measure_rate(inputs.train_iterator(batch_size=4 * jax.process_count()))
    lines[0] += f"; about {rate:,.0f} images/s on this machine"
    return Report(lines=tuple(lines), images_per_second=rate, batch=batch)


def class_warnings(source: ImageSource, num_classes: int) -> Iterator[str]:
    """Yield what is odd about the classes of the training split."""
    if num_classes != source.num_classes:
        yield f"warning: data.num_classes={num_classes}, but {source.name} has {source.num_classes}"
    if source.labels is None:
        return
    missing = np.setdiff1d(np.arange(source.num_classes), source.labels)
    if len(missing):
        names = source.class_names or tuple(map(str, range(source.num_classes)))
        told = _first([names[label] for label in missing])
        yield f"warning: {source.name} has no image of {len(missing)} of {source.num_classes} classes: {told}"


def overlap_warnings(train: ImageSource, evaluated: ImageSource) -> Iterator[str]:
    """Yield a line if images of the evaluation are trained on."""
    (name, _, split), (other_name, _, other_split) = (source.name.rpartition(" ") for source in (train, evaluated))
    if name != other_name or split_name(split) != split_name(other_split):
        return
    shared = len(np.intersect1d(train.order, evaluated.order))
    if shared:
        yield f"warning: {shared:,} of the {len(evaluated):,} images of {evaluated.name} are trained on"


def sample(
    source: ImageSource, *, num_images: int, num_classes: int, channels: int, seed: int, on_corrupt: str
) -> Iterator[str]:
    """Read and decode images at random, for `SAMPLE_SECONDS` at most, and yield a line if some are unreadable."""
    if source.in_memory:
        return
    transform = ImageTransform(image_size=1, channels=channels, crop="resize", interpolation="nearest")
    load = LoadImage(source=source, transform=transform, num_classes=num_classes)
    problems, number, start = [], 0, time.perf_counter()
    for index in np.random.default_rng(seed).choice(len(source), min(num_images, len(source)), replace=False):
        try:
            load.random_map(int(index))
        except UnreadableRecord as error:
            problems.append(str(error))
        number += 1
        if time.perf_counter() - start > SAMPLE_SECONDS:
            break
    if problems:
        line = f"{len(problems)} of {number} sampled images of {source.name} are unreadable: {_first(problems)}"
        if on_corrupt == "stop":
            raise UserError(f"{line}; data.on_corrupt=skip goes on without such")
        yield f"warning: {line}"


def measure_rate(batches: Iterator[Batch]) -> tuple[float, Batch]:
    """Return how many images a second come out of `batches`, and one batch."""
    start, images = time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < RATE_SECONDS:
        batch = next(batches)
        images += len(batch["image"])
    return images / seconds, {name: batch[name] for name in ("image", "label")}


def compare(report: Report, train_step: Callable, state: object, mesh: Mesh, *, batch_size: int) -> Iterator[str]:
    """Yield a line on whether the input keeps up with the model, where the peak speed of the device is known.

    The operations of an update are XLA's count. What the model wants is an estimate from `USUAL_SHARE`.
    """
    kind = mesh.devices.flat[0].device_kind
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in kind), None)
    if report.images_per_second is None or peak is None:
        return
    batch = {
        name: jax.ShapeDtypeStruct((batch_size, *value.shape[1:]), value.dtype) for name, value in report.batch.items()
    }
    try:
        flops = train_step.lower(state, batch, 0).cost_analysis()["flops"]
    except (RuntimeError, NotImplementedError, TypeError, KeyError):  # a backend that does not count
        return
    wanted = batch_size * mesh.size * peak * USUAL_SHARE / flops
    found = report.images_per_second * jax.process_count()
    told = f"the input makes about {found:,.0f} images/s, the model could take {wanted:,.0f}"
    basis = f"{flops / batch_size / 1e9:,.1f} GFLOP an image, {USUAL_SHARE:.0%} of the peak of {mesh.size} {kind}"
    if found < wanted:
        yield f"warning: {told} ({basis}): the accelerator will wait; docs/data.md says what helps"
    else:
        yield f"{told} ({basis})"


def _first(texts: list[str]) -> str:
    more = len(texts) - MAX_NAMED
    return "; ".join(texts[:MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")

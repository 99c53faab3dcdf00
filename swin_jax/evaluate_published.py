"""Published weights, evaluated as they were by those who published them, beside their figures."""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import optax
from flax import nnx

from swin_jax.convert.misfit import ADVICE_NO_HEAD, ADVICE_OTHER_CLASSES, ADVICE_OTHER_SIZE, LoadError
from swin_jax.data.pipeline import eval_batches
from swin_jax.data.sources import ImageSource, evaluation_split, make_source
from swin_jax.data.splits import split_name
from swin_jax.errors import UserError
from swin_jax.models import create_model, list_models, published
from swin_jax.models.published import Preprocessing, Target
from swin_jax.tasks import create_task
from swin_jax.training import sharding
from swin_jax.training.pretrained import place, read_parameters
from swin_jax.training.state import abstract_state
from swin_jax.training.step import evaluate, make_eval_step

DEFAULT_BATCH_SIZE = 128
_ADVICE = {
    ADVICE_OTHER_CLASSES: "the data have another number of classes",
    ADVICE_NO_HEAD: "the file has no such head to evaluate",
    ADVICE_OTHER_SIZE: "take the preset of the file's own resolution, with --image_size for another",
}
DATASET_NAMES = {
    "imagenet": "ImageNet's validation set",
    "real": "ImageNet's validation set, ReaL labels",
    "v2": "ImageNet-V2, matched frequency",
}


def evaluate_published(
    name: str,
    pretrained: str,
    *,
    data: str,
    split: str = "",
    data_dir: str = "",
    batch_size: int = 0,
    variant: str = "",
    protocol: str = "timm",
    image_size: int = 0,
) -> dict[str, Any]:
    """Return, and print, the figures of a checkpoint file over a data source, beside the published ones.

    Args:
        name, pretrained: the preset and its weights, as `create_model` and `load_pretrained` take them.
        data, split, data_dir: as `make_source` takes them; without a split the one kept for evaluation.
        batch_size: images at a time on all devices.
        variant: the weights' pre-training as timm's tag, where their name does not tell.
        protocol: whose preprocessing, `timm` or `official`.
        image_size: side to evaluate at, where it is not the preset's.

    Raises UserError for whatever is unknown or does not fit together.
    """
    if min(batch_size, image_size) < 0:
        raise UserError(f"batch_size={batch_size} and image_size={image_size} must be at least 1")
    is_preset = name in list_models()
    if variant:
        published.check_variant(name, variant)
    variant = variant or published.find_variant(name, pretrained) or ""
    preprocessing = published.preprocessing(name, variant=variant, protocol=protocol) if is_preset else Preprocessing()
    if image_size:
        preprocessing = dataclasses.replace(preprocessing, image_size=image_size)
    split = split or evaluation_split(data, data_dir=data_dir or None)
    source = make_source(data, split, data_dir=data_dir or None, image_size=preprocessing.image_size)

    sums = run_evaluation(name, pretrained, source=source, preprocessing=preprocessing, batch_size=batch_size)
    dataset = known_dataset(data, split, source)
    found = published.targets(name, variant or None, dataset) if dataset else []
    compared = [compare(target, sums, name=name, preprocessing=preprocessing) for target in found]
    intervals = {key: wilson_interval(sums[key], sums["count"]) for key in ("accuracy", "top5")}
    if jax.process_index() == 0:
        print_figures(sums, intervals, source, preprocessing)
        print_targets(compared, name=name, variant=variant, dataset=dataset, source=source)
    return {
        "model": name,
        "pretrained": pretrained,
        "variant": variant or None,
        "data": source.name,
        **{key: sums[key] for key in ("accuracy", "top5", "loss", "count")},
        **{f"{key}_interval": [round(bound, 6) for bound in interval] for key, interval in intervals.items()},
        "preprocessing": dataclasses.asdict(preprocessing),
        "targets": compared,
        "seconds": sums["seconds"],
    }


def run_evaluation(
    name: str, pretrained: str, *, source: ImageSource, preprocessing: Preprocessing, batch_size: int
) -> dict[str, float]:
    """Return the figures of a checkpoint file over a source, on all devices."""
    mesh = sharding.make_mesh()
    target, model_def, _ = abstract_state(
        lambda: create_model(name, num_classes=source.num_classes, rngs=nnx.Rngs(0)),
        optimizer=optax.identity(),
        ema=False,
        mesh=mesh,
    )
    try:
        arrays, report = read_parameters(target, model_def, pretrained)
    except LoadError as error:
        if error.is_about_heads_alone:
            head = error.misshapen["head.kernel"]
            message = f"the {source.num_classes} classes of {source.name} are not those of {pretrained}"
            raise UserError(f"{message}: its head has the shape {head}") from error
        message = str(error)
        for advice, here in _ADVICE.items():
            message = message.replace(advice, here)
        raise UserError(message) from error
    images = jax.ShapeDtypeStruct((1, preprocessing.image_size, preprocessing.image_size, 3), "float32")
    try:
        jax.eval_shape(lambda params, x: model_def.merge(params, target.model_state)(x), target.params, images)
    except ValueError as error:
        raise UserError(f"{name} takes no images of {preprocessing.image_size}: {error}") from error
    task = create_task(
        "multi_label" if source.multi_label else "classification",
        num_classes=source.num_classes,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    shards = sharding.batch_shards(mesh)
    batch_size = -(-(batch_size or DEFAULT_BATCH_SIZE) // shards) * shards
    batches = eval_batches(
        source,
        batch_size=batch_size // jax.process_count(),
        image_size=preprocessing.image_size,
        channels=3,
        num_classes=source.num_classes,
        crop=preprocessing.crop,
        crop_fraction=preprocessing.crop_fraction,
        interpolation=preprocessing.interpolation,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    if jax.process_index() == 0:
        print(f"{name} from {pretrained}: {report}")
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        state = dataclasses.replace(target, params=place(arrays, target.params))
        eval_step = make_eval_step(model_def, task, abstract_state=target, mesh=mesh)
        figures = evaluate(eval_step, task, batches, state, mesh)
    return figures | {"seconds": round(time.perf_counter() - start, 1)}


def known_dataset(data: str, split: str, source: ImageSource) -> str | None:
    """Return which of the data sets with published figures this is, told by its name and its numbers; or None."""
    if source.num_classes != 1000 or split_name(split) == "train":
        return None
    if data.startswith("tfds:imagenet_v2"):
        is_other = "/" in data and "/matched-frequency" not in data
        return "v2" if len(source) == 10_000 and not is_other else None
    if len(source) != 50_000:
        return None
    return "real" if source.multi_label else "imagenet"


def wilson_interval(share: float, count: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95% interval of a share of `count` independent trials (Wilson 1927)."""
    center = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low, high = ((center + sign * half) / (1 + z * z / count) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def compare(target: Target, figures: dict[str, float], *, name: str, preprocessing: Preprocessing) -> dict[str, Any]:
    """Return a published figure beside the measured one; `passed` is None where they were not measured alike."""
    differences = {
        key: round(100 * figures[key] - getattr(target, key), 3)
        for key in ("accuracy", "top5")
        if getattr(target, key) is not None
    }
    is_alike = target.protocol is not None and preprocessing == published.preprocessing(
        name, variant=target.variant, protocol=target.protocol
    )
    within = all(abs(difference) <= published.TOLERANCE + 1e-9 for difference in differences.values())
    return {
        **dataclasses.asdict(target),
        "differences": differences,
        "tolerance": published.TOLERANCE,
        "passed": within if is_alike else None,
    }


def print_figures(
    figures: dict[str, float],
    intervals: dict[str, tuple[float, float]],
    source: ImageSource,
    preprocessing: Preprocessing,
) -> None:
    print(f"preprocessing: {preprocessing}")
    for label, key in (("top-1", "accuracy"), ("top-5", "top5")):
        low, high = (100 * bound for bound in intervals[key])
        print(f"{label} {100 * figures[key]:.3f} %, 95 % interval {low:.3f} to {high:.3f}")
    unlabelled = f" ({len(source) - figures['count']} more have no label)" if source.multi_label else ""
    print(f"over {figures['count']} images of {source.name}{unlabelled}")


def print_targets(
    compared: Sequence[dict[str, Any]], *, name: str, variant: str, dataset: str | None, source: ImageSource
) -> None:
    if dataset is None:
        print(
            f"no published figure applies: {len(source)} images and {source.num_classes} classes of {source.name} are "
            "not the whole validation set of ImageNet (50000 and 1000), nor ImageNet-V2"
        )
        return
    if not compared:
        print(f"no published figure of {name} on {DATASET_NAMES[dataset]} is known here")
        return
    if not variant:
        print("the file's name does not tell its pre-training, so all are listed: --variant=... picks one")
    verdicts = {True: "pass", False: "FAIL", None: "measured with other preprocessing"}
    columns = " ".join(f"{column:>7}" for column in ("top-1", "here", "top-5", "here"))
    print(f"{'published on ' + DATASET_NAMES[dataset]:48} {columns}  pass: within {published.TOLERANCE} points")
    for row in compared:
        cells = []
        for key in ("accuracy", "top5"):
            known = key in row["differences"]
            cells += [f"{row[key]:.3f}", f"{row['differences'][key]:+.3f}"] if known else ["-", "-"]
        label = f"{row['source']}, {row['variant']}"
        print(f"{label:48} {' '.join(f'{cell:>7}' for cell in cells)}  {verdicts[row['passed']]}")

"""Probe frozen features: python -m swin_jax.probe --workdir=DIR [--checkpoint=best|latest|STEP]
or published weights:    python -m swin_jax.probe --model=NAME --pretrained=FILE|hf:ORG/NAME --data=folder:PATH
                      [--data=... --train_split=... --split=...] [--shots=1,5,10,25] [--neighbors=10,20,100,200]

Few-shot least squares (big_vision's fewshot_lsr) and weighted nearest neighbours (DINO's protocol) from what the head
would see. By default the data are the run's own; images of both splits are prepared as for evaluation.
"""

import dataclasses
import pathlib
from collections.abc import Collection
from typing import Any

from absl import flags

from swin_jax.commands import define_allow, run_command
from swin_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=FLAGS)
flags.DEFINE_string("checkpoint", "best", "Of the run: best, latest or a step.", flag_values=FLAGS)
flags.DEFINE_string("model", None, "Name of a published model.", flag_values=FLAGS)
flags.DEFINE_string("pretrained", None, "Its weights: a file, or hf:ORG/NAME.", flag_values=FLAGS)
flags.DEFINE_string("data", "", "Other data than the run's: tfds:NAME, folder:PATH, ...", flag_values=FLAGS)
flags.DEFINE_string("data_dir", "", "Folder of the data, for TFDS.", flag_values=FLAGS)
flags.DEFINE_string("train_split", "", "To learn from; the run's, or train.", flag_values=FLAGS)
flags.DEFINE_string("split", "", "To be right on; the run's, or the one kept for evaluation.", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 128, "Images at a time on all devices.", flag_values=FLAGS)
flags.DEFINE_list("shots", ["1", "5", "10", "25"], "Examples of each class to learn from.", flag_values=FLAGS)
flags.DEFINE_float("l2", 1024.0, "Regularisation of the least squares.", flag_values=FLAGS)
flags.DEFINE_integer("seeds", 3, "How often to draw the examples anew.", flag_values=FLAGS)
flags.DEFINE_list("neighbors", ["10", "20", "100", "200"], "Numbers of neighbours.", flag_values=FLAGS)
flags.DEFINE_float("temperature", 0.07, "Of the neighbours' votes.", flag_values=FLAGS)
define_allow(FLAGS)


def main(flag_values: flags.FlagValues, overrides: list[str]) -> dict[str, Any]:
    shots, neighbors = (_numbers(name, flag_values[name].value) for name in ("shots", "neighbors"))
    if flag_values.batch_size < 1:
        raise UserError(f"batch_size={flag_values.batch_size} must be at least 1")
    published = {name: flag_values[name].value for name in ("model", "pretrained", "data")}
    if bool(flag_values.workdir) == bool(flag_values.model):
        raise UserError(
            "give --workdir=... for a run, or --model=... --pretrained=... --data=... for published weights"
        )
    if flag_values.workdir:
        if flag_values.pretrained:
            raise UserError("--workdir probes a run, --pretrained published weights: give one of them")
        subject = open_trained(pathlib.Path(flag_values.workdir), flag_values.checkpoint, flag_values.allow)
    else:
        missing = [name for name, value in published.items() if not value]
        if missing:
            raise UserError(f"--{missing[0]}=... is missing")
        subject = open_published(flag_values.model, flag_values.pretrained)
    options = {name: flag_values[name].value for name in ("data", "data_dir", "train_split", "split")}
    return probe(
        subject,
        **options,
        batch_size=flag_values.batch_size,
        few_shot={"shots": shots, "l2": flag_values.l2, "seeds": flag_values.seeds},
        nearest={"neighbors": neighbors, "temperature": flag_values.temperature},
    )


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is probed: a model with parameters, and how its images are prepared."""

    name: str
    state: Any
    model_def: Any
    mesh: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    transform: dict[str, Any]  # of `eval_batches`
    data: dict[str, str]  # the defaults of the data


def open_trained(workdir: pathlib.Path, checkpoint: str, allow: Collection[str] = ()) -> Subject:
    """Open a checkpoint of a run on images; `allow` as for `open_run`."""
    from swin_jax.runs import open_run

    run = open_run(workdir, checkpoint=checkpoint, allow=allow)
    config = run.config
    if config.data.kind != "images":
        raise UserError(f"{workdir} is a run on {config.data.kind}: images are probed")
    return Subject(
        name=str(workdir),
        state=run.restored.state,
        model_def=run.experiment.model_def,
        mesh=run.experiment.mesh,
        mean=config.task.mean,
        std=config.task.std,
        transform={
            "image_size": config.data.image_size,
            "channels": config.data.channels,
            "crop": config.data.eval_crop,
            "crop_fraction": config.data.crop_fraction,
            "interpolation": config.data.interpolation,
        },
        data={
            "data": config.data.source,
            "data_dir": config.data.data_dir,
            "train_split": config.data.train_split,
            "split": config.data.eval_split,
        },
    )


def open_published(name: str, pretrained: str) -> Subject:
    """Open a checkpoint file with the preprocessing of its preset; its head does not matter."""
    import optax
    from flax import nnx

    from swin_jax.convert.misfit import LoadError
    from swin_jax.models import create_model, published
    from swin_jax.training import sharding
    from swin_jax.training.pretrained import place, read_parameters
    from swin_jax.training.state import abstract_state

    mesh = sharding.make_mesh()
    target, model_def, init = abstract_state(
        lambda: create_model(name, rngs=nnx.Rngs(0)), optimizer=optax.identity(), ema=False, mesh=mesh
    )
    try:
        arrays, _ = read_parameters(target, model_def, pretrained, fresh_head=True)
    except LoadError as error:
        raise UserError(str(error)) from error
    state = init()
    preprocessing = published.preprocessing(name, variant=published.find_variant(name, pretrained) or "")
    return Subject(
        name=f"{name} from {pretrained}",
        state=dataclasses.replace(state, params=place(arrays, state.params)),
        model_def=model_def,
        mesh=mesh,
        mean=preprocessing.mean,
        std=preprocessing.std,
        transform={
            "image_size": preprocessing.image_size,
            "channels": 3,
            "crop": preprocessing.crop,
            "crop_fraction": preprocessing.crop_fraction,
            "interpolation": preprocessing.interpolation,
        },
        data={},
    )


def probe(
    subject: Subject,
    *,
    data: str,
    data_dir: str,
    train_split: str,
    split: str,
    batch_size: int,
    few_shot: dict[str, Any],
    nearest: dict[str, Any],
) -> dict[str, Any]:
    """Return the accuracies of both protocols. Raises UserError for data that cannot be used."""
    import jax

    from swin_jax.data.pipeline import eval_batches
    from swin_jax.data.sources import evaluation_split, make_source
    from swin_jax.probing.features import frozen_features
    from swin_jax.probing.few_shot import few_shot_accuracies
    from swin_jax.probing.neighbors import neighbor_accuracies
    from swin_jax.training import sharding

    own = {} if data else subject.data  # splits are those of the data they were named for
    data, data_dir = data or own["data"], data_dir or own.get("data_dir", "")
    splits = (
        train_split or own.get("train_split") or "train",
        split or own.get("split") or evaluation_split(data, data_dir=data_dir or None),
    )
    shards = sharding.batch_shards(subject.mesh)
    found, num_classes = [], 0
    for name in splits:
        source = make_source(
            data,
            name,
            data_dir=data_dir or None,
            image_size=subject.transform["image_size"],
            channels=subject.transform["channels"],
        )
        if source.multi_label:
            raise UserError(f"{source.name} has several labels an image: probes take one")
        num_classes = max(num_classes, source.num_classes)
        batches = eval_batches(
            source,
            batch_size=-(-batch_size // shards) * shards // jax.process_count(),
            num_classes=source.num_classes,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            **subject.transform,
        )
        found.append(
            frozen_features(
                subject.state, subject.model_def, batches, mean=subject.mean, std=subject.std, mesh=subject.mesh
            )
        )
    train, test = found
    return {
        "probed": subject.name,
        "data": data,
        "train_examples": len(train[1]),
        "test_examples": len(test[1]),
        "features": train[0].shape[1],
        **few_shot_accuracies(train, test, num_classes=num_classes, **few_shot),
        **neighbor_accuracies(train, test, num_classes=num_classes, **nearest),
    }


def _numbers(name: str, texts: list[str]) -> tuple[int, ...]:
    try:
        numbers = tuple(int(text) for text in texts)
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise UserError(f"--{name}={','.join(texts)} must be whole numbers from 1, such as 1,5,10")
    return numbers


if __name__ == "__main__":
    run_command(main, FLAGS)

"""From a config to what it describes: the one place, beside the loop, where a whole config is read."""

import dataclasses
from collections.abc import Callable
from typing import Any

import grain
import jax
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from swin_jax.data.pipeline import EvalBatches, eval_batches, train_iterator
from swin_jax.data.policies import mean_color
from swin_jax.data.sources import ImageSource, make_source
from swin_jax.errors import UserError
from swin_jax.models import create_model
from swin_jax.tasks import Task, create_task
from swin_jax.training.default_config import check_config
from swin_jax.training.optimizer import Schedule, create_optimizer, create_schedule
from swin_jax.training.pretrained import place, read_initial
from swin_jax.training.state import ModelDef, TrainState, abstract_state
from swin_jax.training.step import make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config describes, built but not begun."""

    mesh: Mesh
    source: ImageSource
    num_classes: int
    task: Task
    schedule: Schedule
    optimizer: optax.GradientTransformation
    target: TrainState  # shapes and shardings
    model_def: ModelDef
    init: Callable[[], TrainState]
    steps_per_epoch: int  # whole batches in the training images, as the published recipes count
    total_steps: int


def build(config: ConfigDict, mesh: Mesh) -> Experiment:
    """Build what `config` describes on `mesh`. Raises UserError for whatever in it does not fit together."""
    check_config(config)
    data = config.data
    source = open_source(config, data.train_split)
    num_classes = data.num_classes or source.num_classes
    if config.batch_size > len(source):
        raise UserError(f"batch_size={config.batch_size} is larger than the {len(source)} images of {source.name}")
    steps_per_epoch = len(source) // config.batch_size
    total_steps = config.total_steps or config.total_epochs * steps_per_epoch

    options = config.optimizer.to_dict()
    schedule = create_schedule(
        warmup_steps=int(options.pop("warmup_epochs") * steps_per_epoch),
        total_steps=total_steps,
        **{
            key: options.pop(key)
            for key in ("schedule", "learning_rate", "final_learning_rate", "warmup_learning_rate")
        },
    )
    optimizer = create_optimizer(schedule=schedule, **options)
    model_options = {"num_classes": num_classes, "image_size": data.image_size, "in_channels": data.channels}
    model_options |= config.model.to_dict()
    target, model_def, init = abstract_state(
        lambda: create_model(**model_options, rngs=nnx.Rngs(config.seed)),
        optimizer=optimizer,
        ema=config.ema_decay > 0,
        mesh=mesh,
    )
    return Experiment(
        mesh=mesh,
        source=source,
        num_classes=num_classes,
        task=create_task(**config.task.to_dict(), num_classes=num_classes),
        schedule=schedule,
        optimizer=optimizer,
        target=target,
        model_def=model_def,
        init=init,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


def open_source(config: ConfigDict, split: str) -> ImageSource:
    """Open a split of the config's data."""
    data = config.data
    return make_source(
        data.source,
        split,
        data_dir=data.data_dir or None,
        image_size=data.image_size,
        channels=data.channels,
        num_classes=data.num_classes,
    )


def initial_state(config: ConfigDict, experiment: Experiment) -> TrainState:
    """Return the state of step 0: the model's own initial values, in their place those of `init_from`.

    Raises UserError if that is no checkpoint or does not fit the model.
    """
    if not config.init_from:
        return experiment.init()
    arrays, report = read_initial(
        experiment.target,
        experiment.model_def,
        config.init_from,
        fresh_head=config.init_fresh_head,
        resize=config.init_resize,
        class_map=config.init_class_map,
    )
    if jax.process_index() == 0:
        print(f"starting from {config.init_from}: {report}")
    state = experiment.init()
    return dataclasses.replace(state, params=place(arrays, state.params), ema_params=place(arrays, state.ema_params))


def train_batches(config: ConfigDict, experiment: Experiment) -> grain.DatasetIterator:
    """Return this host's share of the training batches, without end."""
    data = config.data
    return train_iterator(
        experiment.source,
        crop=data.crop,
        crop_scale=data.crop_scale,
        flip=data.flip,
        policy=data.policy,
        policy_fill=mean_color(config.task.get("mean", 0.5), data.channels),
        color_jitter=data.color_jitter,
        repeats=data.repeats,
        seed=config.seed,
        worker_count=data.worker_count,
        **_common_options(config, experiment, batch_size=config.batch_size),
    )


def evaluation_batches(config: ConfigDict, experiment: Experiment, *, batch_size: int) -> EvalBatches:
    """Return this host's share of the evaluation batches."""
    data = config.data
    return eval_batches(
        open_source(config, data.eval_split),
        crop=data.eval_crop,
        crop_fraction=data.crop_fraction,
        **_common_options(config, experiment, batch_size=batch_size),
    )


def _common_options(config: ConfigDict, experiment: Experiment, *, batch_size: int) -> dict[str, Any]:
    data = config.data
    return {
        "batch_size": batch_size // jax.process_count(),
        "image_size": data.image_size,
        "channels": data.channels,
        "num_classes": experiment.num_classes,
        "interpolation": data.interpolation,
        "num_threads": data.num_threads,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }


def compile_steps(config: ConfigDict, experiment: Experiment) -> tuple[Callable, Callable]:
    """Return the jitted update and evaluation step."""
    common = {"abstract_state": experiment.target, "mesh": experiment.mesh}
    train_step = make_train_step(
        experiment.model_def,
        experiment.task,
        optimizer=experiment.optimizer,
        schedule=experiment.schedule,
        ema_decay=config.ema_decay,
        **common,
    )
    return train_step, make_eval_step(experiment.model_def, experiment.task, **common)

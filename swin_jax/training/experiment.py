"""From a config to what it describes: the one place, beside the loop, where a whole config is read."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from swin_jax.errors import UserError, did_you_mean
from swin_jax.models import create_model
from swin_jax.tasks import Task, create_task, task_arguments
from swin_jax.training.checkpoint import Checkpoints
from swin_jax.training.default_config import check_config, default_config
from swin_jax.training.inputs import Inputs, open_inputs
from swin_jax.training.optimizer import create_optimizer
from swin_jax.training.parameter_groups import frozen_mask
from swin_jax.training.pretrained import place, read_initial
from swin_jax.training.schedules import Schedule, create_schedule, resolve_milestones, resolve_steps
from swin_jax.training.stacking import Layout, can_stack, stacked_layout
from swin_jax.training.state import ModelDef, TrainState, abstract_state
from swin_jax.training.step import make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config describes, built but not begun."""

    mesh: Mesh
    inputs: Inputs
    task: Task
    schedule: Schedule
    optimizer: optax.GradientTransformation
    target: TrainState  # shapes and shardings, in the ordinary layout
    model_def: ModelDef
    init: Callable[[], TrainState]
    layout: Layout  # of the state within the run, for `compile_steps`
    steps_per_epoch: int  # whole batches in the training examples, as the published recipes count
    total_steps: int


def build(
    config: ConfigDict, mesh: Mesh, *, workdir: pathlib.Path | None = None, reads_text: bool = True
) -> Experiment:
    """Build what `config` describes on `mesh`. Raises UserError for whatever in it does not fit together.

    `workdir` is the run's folder, which keeps the tokenizer of a run on text; nothing is written there. Without
    `reads_text` a run on text is built for its model alone: its schedule and numbers of steps mean nothing.
    """
    check_config(config)
    inputs = open_inputs(config, workdir=workdir, reads_text=reads_text)
    if config.batch_size > inputs.num_examples:
        examples = f"{inputs.num_examples} examples of {inputs.name}"
        raise UserError(f"batch_size={config.batch_size} is larger than the {examples}")
    steps_per_epoch = inputs.num_examples // config.batch_size
    total_steps = config.total_steps or config.total_epochs * steps_per_epoch

    lengths = {"steps_per_epoch": steps_per_epoch, "total_steps": total_steps}
    schedule, optimizer = schedule_and_optimizer(config.optimizer.to_dict(), **lengths)
    model_options = inputs.model_options | config.model.to_dict()
    _check_sizes(model_options, inputs)

    def build_model():
        return create_model(**model_options, rngs=nnx.Rngs(config.seed))

    target, model_def, init = abstract_state(build_model, optimizer=optimizer, ema=config.ema_decay > 0, mesh=mesh)
    layout = _choose_layout(config, build_model, target.params) if model_options.get("scan") else None
    if layout:
        optimizer = schedule_and_optimizer(config.optimizer.to_dict(), **lengths, layout=layout)[1]
    return Experiment(
        mesh=mesh,
        inputs=inputs,
        task=create_task(config.task.name, **task_options(config, inputs)),
        schedule=schedule,
        optimizer=optimizer,
        target=target,
        model_def=model_def,
        init=init,
        layout=layout or Layout(model_def),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


def _choose_layout(config: ConfigDict, build_model: Callable[[], nnx.Module], params: dict[str, Any]) -> Layout | None:
    """Return the layout with layers stacked, if the optimizer may see them so."""
    layout = stacked_layout(build_model)
    names = ("learning_rate_multipliers", "weight_decay_multipliers", "layer_decay")
    options = {name: config.optimizer[name] for name in names}
    return layout if can_stack(layout, params, optimizer=config.optimizer.name, **options) else None


def schedule_and_optimizer(
    options: dict[str, Any], *, steps_per_epoch: int, total_steps: int, layout: Layout | None = None
) -> tuple[Schedule, optax.GradientTransformation]:
    """Return what the keys of `config.optimizer` describe, for parameters in this layout."""

    def pop_both(name: str) -> dict[str, Any]:
        given = {unit: options.pop(f"{name}_{unit}") for unit in ("steps", "epochs")}
        return {"name": f"optimizer.{name}", **given, "steps_per_epoch": steps_per_epoch}

    schedule = create_schedule(
        warmup_steps=resolve_steps(**pop_both("warmup")),
        milestones=resolve_milestones(**pop_both("milestone")),
        total_steps=total_steps,
        learning_rate=options["learning_rate"],
        **{
            key: options.pop(key)
            for key in ("schedule", "final_learning_rate", "warmup_learning_rate", "milestone_factor", "power")
        },
    )
    peak, independent = options.pop("learning_rate"), options.pop("independent_weight_decay")
    peak = peak if independent else None
    return schedule, create_optimizer(schedule=schedule, peak_learning_rate=peak, layout=layout, **options)


def _check_sizes(model_options: dict[str, Any], inputs: Inputs) -> None:
    """Raise a UserError for a text model that was made smaller than its tokens: inside jit nothing would tell."""
    least, given = inputs.model_options, model_options
    if given.get("vocab_size", 0) < least.get("vocab_size", 0):
        raise UserError(f"model.vocab_size={given['vocab_size']} is less than the tokenizer's {least['vocab_size']}")
    if given.get("positions") != "rotary" and given.get("max_length", 0) < least.get("max_length", 0):
        raise UserError(f"model.max_length={given['max_length']} is less than the {least['max_length']} of the text")


def task_options(config: ConfigDict, inputs: Inputs) -> dict[str, Any]:
    """Return the options of the config's task: of the keys that all tasks share, those that it takes.

    Raises UserError for one that was set although the task does not take it.
    """
    options, defaults = config.task.to_dict(), default_config().task.to_dict()
    name = options.pop("name")
    accepted = task_arguments(name)
    for key in [key for key in options if accepted is not None and key not in accepted]:
        if options.pop(key) != defaults[key]:
            raise UserError(f"the task {name!r} has no option task.{key}{did_you_mean(key, accepted)}")
    return options | inputs.task_options


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


def open_checkpoints(
    workdir: pathlib.Path, config: ConfigDict, experiment: Experiment, *, read_only: bool = False
) -> Checkpoints:
    """Open the folder of a run's checkpoints."""
    return Checkpoints(
        workdir / "checkpoints",
        keep=config.keep_checkpoints,
        best_metric=experiment.task.best_metric,
        lowest_is_best=experiment.task.lowest_is_best,
        read_only=read_only,
    )


def compile_steps(config: ConfigDict, experiment: Experiment) -> tuple[Callable, Callable]:
    """Return the jitted update and evaluation step, for states in the experiment's layout."""
    layout = experiment.layout
    common = {"abstract_state": layout.stack(experiment.target), "mesh": experiment.mesh}

    def frozen(params):
        multipliers = config.optimizer.learning_rate_multipliers
        return layout.shared(frozen_mask(layout.ordinary_shapes(params), multipliers))

    train_step = make_train_step(
        layout.model_def,
        experiment.task,
        optimizer=experiment.optimizer,
        schedule=experiment.schedule,
        ema_decay=config.ema_decay,
        accumulation_steps=config.accumulation_steps,
        frozen=frozen,
        **common,
    )
    return train_step, make_eval_step(layout.model_def, experiment.task, **common)

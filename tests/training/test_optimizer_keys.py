"""The keys of config.optimizer and config.accumulation_steps, from a config file to a run that resumes."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from swin_jax.commands import config_from_json, load_config
from swin_jax.errors import UserError
from swin_jax.training import loop, sharding
from swin_jax.training.checkpoint import Checkpoints
from swin_jax.training.default_config import check_config
from swin_jax.training.experiment import build, compile_steps
from swin_jax.training.step import evaluate
from swin_jax.training.workdir import config_to_dict

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
CONFIG, TEXT_CONFIG = str(CONFIGS / "digits" / "vit.py"), str(CONFIGS / "text" / "austen_lm.py")
SMALL = (
    "batch_size=16",
    "total_epochs=2",
    "eval_every_epochs=0",
    "checkpoint_every_epochs=1",
    "log_every_steps=1",
    "data.train_split=train[:48]",
    "data.eval_split=test[:16]",
    "model.depth=1",
    "model.embed_dim=16",
    "model.num_heads=2",
    "model.patch_size=4",
    "model.dropout_rate=0.1",
    *(f"task.augment.{name}=0" for name in ("degrees", "translate", "scale", "shear")),
)
EVERYTHING = (
    "accumulation_steps=2",
    "ema_decay=0.9",
    "optimizer.name=lamb",
    "optimizer.schedule=step",
    "optimizer.warmup_epochs=0",
    "optimizer.warmup_steps=1",
    "optimizer.milestone_epochs=(1.5,)",
    "optimizer.layer_decay=0.7",
    r"optimizer.learning_rate_multipliers=(('^patch_embed\\.', 0.0), ('head', 3.0))",
    "optimizer.weight_decay_multipliers=(('pos_embed', 0.5),)",
    "optimizer.momentum_dtype=bfloat16",
    "task.loss=sigmoid",
)


def build_with(*overrides):
    return build(load_config(CONFIG, (*SMALL, *overrides)), sharding.make_mesh())


def test_epochs_and_steps_are_the_same_curve():
    in_epochs = build_with(
        "optimizer.schedule=step", "optimizer.milestone_epochs=(1, 1.4)", "optimizer.warmup_epochs=0.7"
    )
    in_steps = build_with(
        "optimizer.schedule=step",
        "optimizer.milestone_steps=(3, 4)",
        "optimizer.warmup_epochs=0",
        "optimizer.warmup_steps=2",
    )
    assert in_epochs.steps_per_epoch == 3
    rates = [[float(experiment.schedule(step)) for step in range(6)] for experiment in (in_epochs, in_steps)]
    assert rates[0] == rates[1] == pytest.approx([0.0, 1e-3, 2e-3, 2e-4, 2e-5, 2e-5])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("optimizer.warmup_steps=3",), r"optimizer\.warmup_steps=3 and optimizer\.warmup_epochs=5\.0 exclude"),
        (("optimizer.name=adamv",), "did you mean 'adamw'"),
        (("optimizer.schedule=cosin",), "did you mean 'cosine'"),
        (("optimizer.learning_rate_multipliers=(('haed', 0.0),)",), "'haed' matches no parameter"),
        (("optimizer.learning_rate_multipliers=('head', 0.0)",), "takes pairs"),
        (("optimizer.layer_decay=1.5",), "layer_decay=1.5"),
        (("optimizer.name=moun",), "unknown optimizer 'moun'.*did you mean 'muon'"),
        (("optimizer.name=muon", "optimizer.adam_parameters=('fc3',)"), "'fc3' is found in no kernel"),
        (("optimizer.name=muon", "optimizer.adam_parameters=fc1"), "adam_parameters"),
        (("optimizer.adam_parameters=('fc1',)",), "adam_parameters.*is for optimizer.name='muon', not 'adamw'"),
        (("optimizer.independent_weight_decay=True", "optimizer.learning_rate=0"), "learning rate of 0"),
    ],
)
def test_mistakes_are_told_before_anything_is_compiled(overrides, message):
    with pytest.raises(UserError, match=message):
        build_with(*overrides)


@pytest.mark.parametrize(
    "key",
    [
        "accumulation_steps",
        "optimizer.adam_learning_rate_share",
        "optimizer.warmup_steps",
        "optimizer.milestone_factor",
    ],
)
def test_numbers_below_their_least(key):
    with pytest.raises(UserError, match=key):
        check_config(load_config(CONFIG, (f"{key}=-1",)))


def test_accumulation_that_does_not_divide_the_batch(tmp_path):
    config = load_config(CONFIG, (*SMALL, "accumulation_steps=4"))
    with pytest.raises(UserError, match="accumulation_steps = 4 is not divisible by the 8 devices"):
        loop.train(config, workdir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def text_config(tmp_path_factory):
    """Return the function from overrides to the config of a causal Transformer; an epoch is six updates."""
    path = tmp_path_factory.mktemp("text") / "letters.txt"
    letters = np.random.default_rng(0).choice(list("abcdef "), 16 * 16 * 6 + 1)
    path.write_text("".join(letters))
    options = (
        f"data.source=text:{path}",
        "text.held_out=0.0",
        "data.eval_split=train[:20%]",
        "text.sequence_length=16",
        "text.eval_stride=0",
        "batch_size=16",
        "optimizer.name=adamw",
        "optimizer.warmup_steps=0",
        "accumulation_steps=1",
        "model.embed_dim=16",
        "model.depth=1",
        "task.label_smoothing=0.1",
        "log_every_steps=1",
    )
    return lambda *overrides: load_config(TEXT_CONFIG, (*options, *overrides))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("optimizer.warmup_epochs=0.5", "optimizer.schedule=inverse_square_root"), {1: 1 / 3, 3: 1, 12: 0.5}),
        (("optimizer.warmup_epochs=0", "optimizer.warmup_steps=4"), {1: 1 / 4, 4: 1, 14: 0}),
        (
            ("optimizer.warmup_epochs=0", "optimizer.schedule=step", "optimizer.milestone_epochs=(0.5, 1.5)"),
            {2: 1, 3: 0.1, 8: 0.1, 9: 0.01},
        ),
    ],
)
def test_epochs_of_text_are_whole_batches_of_rows(overrides, expected, text_config):
    experiment = build(text_config("total_steps=14", *overrides), sharding.make_mesh())
    assert (experiment.steps_per_epoch, experiment.total_steps) == (6, 14)
    peak = text_config().optimizer.learning_rate
    rates = {step: float(experiment.schedule(step)) / peak for step in expected}
    assert rates == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_a_run_on_text_with_muon_averages_and_accumulates(tmp_path, text_config):
    """Its metrics have the schedule and the tokens; the averages in its checkpoint are what was evaluated."""
    options = ("optimizer.name=muon", "optimizer.learning_rate=0.02", "accumulation_steps=2", "ema_decay=0.5")
    config = text_config(*options, "total_steps=4", "optimizer.warmup_epochs=0", "optimizer.warmup_steps=2")
    summary = loop.train(config, workdir=str(tmp_path / "run"))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [record["train/learning_rate"] for record in records if "train/learning_rate" in record]
    assert rates == pytest.approx([0.0, 0.01, 0.02, 0.01])
    assert [record["train/loss_weight"] for record in records if "train/loss" in record] == [16 * 16] * 4

    mesh = sharding.make_mesh()
    experiment = build(config, mesh, workdir=tmp_path / "run")
    state = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True).restore(experiment.target).state
    eval_step = compile_steps(config, experiment)[1]

    def loss_of(state):
        batches = experiment.inputs.eval_batches(batch_size=16)
        return evaluate(eval_step, experiment.task, batches, state, mesh)["loss"]

    assert loss_of(state) == pytest.approx(summary["eval/loss"], rel=1e-6)
    assert loss_of(dataclasses.replace(state, ema_params=state.params)) != pytest.approx(loss_of(state), rel=1e-5)


def test_multipliers_survive_config_json():
    config = load_config(CONFIG, (*SMALL, *EVERYTHING))
    assert config_from_json(config_to_dict(config)).optimizer.to_dict() == config.optimizer.to_dict()


def test_a_run_with_everything_resumes_exactly(tmp_path, cut_off):
    config = load_config(CONFIG, (*SMALL, *EVERYTHING))
    loop.train(config, workdir=str(tmp_path / "straight"))

    cut_off(config, workdir=str(tmp_path / "cut"), after=5)
    assert loop.train(config, workdir=str(tmp_path / "cut"))["step"] == 6

    experiment = build(config, sharding.make_mesh())
    states = [
        jax.device_get(Checkpoints(tmp_path / name / "checkpoints", read_only=True).restore(experiment.target).state)
        for name in ("straight", "cut")
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)
    initial = jax.device_get(experiment.init().params)
    jax.tree.map(np.testing.assert_array_equal, states[0].params["patch_embed"], initial["patch_embed"])
    jax.tree.map(np.testing.assert_array_equal, states[0].eval_params["patch_embed"], initial["patch_embed"])
    moved = np.abs(states[0].params["head"]["kernel"] - initial["head"]["kernel"]).max()
    assert moved > 1e-4

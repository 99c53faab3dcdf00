"""Runs whose layers are stacked for the scan: the same updates and checkpoints as of layers one by one."""

import pathlib

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from swin_jax.commands import load_config
from swin_jax.training import loop, sharding
from swin_jax.training.checkpoint import Checkpoints
from swin_jax.training.experiment import build, compile_steps
from swin_jax.training.skipped import SkippedUpdates

DIGITS = pathlib.Path(__file__).parents[2] / "configs" / "digits"
RUN = (
    "batch_size=16",
    "total_epochs=2",
    "eval_every_epochs=1",
    "checkpoint_every_epochs=1",
    "log_every_steps=1",
    "ema_decay=0.9",
    "data.train_split=train[:48]",
    "data.eval_split=test[:16]",
    "model.drop_path_rate=0.3",
    *(f"task.augment.{name}=0" for name in ("degrees", "translate", "scale", "shear")),
)
MODELS = {
    "vit": ("model.depth=3", "model.embed_dim=16", "model.num_heads=2", "model.patch_size=4"),
    "swin": ("model.depths=(4,)", "model.embed_dim=16", "model.num_heads=(2,)", "model.window_size=2"),
}
FIRST = {"vit": ("blocks",), "swin": ("stages", "0", "blocks")}


def config_of(model, *overrides, scan=True):
    return load_config(str(DIGITS / f"{model}.py"), (*RUN, *MODELS[model], f"model.scan={scan}", *overrides))


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def updated(config, mesh, steps=2):
    """Return the experiment, its state after some updates in the ordinary layout, and the losses."""
    with jax.set_mesh(mesh):
        experiment = build(config, mesh)
        step, _ = compile_steps(config, experiment)
        batches = experiment.inputs.train_iterator(batch_size=config.batch_size)
        state, losses = experiment.layout.stack(experiment.init()), []
        for _ in range(steps):
            state, metrics = step(state, sharding.global_batch(next(batches), mesh), config.seed)
            losses.append(float(metrics["loss"]))
        return experiment, experiment.layout.unstack(state), losses


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


@pytest.mark.parametrize("model", MODELS)
def test_there_and_back(model):
    mesh = sharding.make_mesh(fsdp=2, devices=jax.devices()[:2])
    experiment = build(config_of(model), mesh)
    layout, state = experiment.layout, experiment.init()
    before = jax.device_get(state)
    stacked = layout.stack(state)

    def described(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), tree)

    assert described(stacked) == described(layout.stack(experiment.target))
    one = at(experiment.target.opt_state[1][0].mu, FIRST[model])["0"]["mlp"]["fc1"]["kernel"]
    all_of_a_kind = at(stacked.opt_state[1][0].mu, FIRST[model])["kinds"]["0"]["mlp"]["fc1"]["kernel"]
    assert all_of_a_kind.shape == (3 if model == "vit" else 2, *one.shape)
    assert all_of_a_kind.sharding.spec == P(None, *one.sharding.spec)
    assert "fsdp" in one.sharding.spec
    back = layout.unstack(stacked)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(back), before)
    assert described(back) == described(experiment.target)


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("swin", ("optimizer.grad_clip_norm=0.1", "accumulation_steps=2")),
        ("vit", ("optimizer.name=lion", r"optimizer.learning_rate_multipliers=(('^blocks\\.', 0.5), ('head', 0.0))")),
        ("vit", ("optimizer.name=sgd", r"optimizer.learning_rate_multipliers=(('^blocks\\.', 0.0),)")),
    ],
)
def test_updates_are_those_of_layers_one_by_one(model, overrides):
    experiment, state, losses = updated(config_of(model, *overrides), one_device())
    assert experiment.layout.lists
    _, expected, expected_losses = updated(config_of(model, *overrides, scan=False), one_device())
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), state, expected)
    if "lion" not in str(overrides):  # whose steps are signs
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), state.params, expected.params)


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer.name=lamb",),
        ("optimizer.layer_decay=0.7",),
        (r"optimizer.learning_rate_multipliers=(('s\\.1', 0.5),)",),
    ],
)
def test_what_depends_on_the_layer_keeps_layers_apart(overrides):
    assert not build(config_of("vit", *overrides), one_device()).layout.lists


def test_over_devices():
    _, state, losses = updated(config_of("vit"), sharding.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4]))
    _, expected, expected_losses = updated(config_of("vit"), one_device())
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), state.params, expected.params)


def test_a_run_resumes_exactly_and_its_checkpoints_are_ordinary(tmp_path, cut_off):
    config = config_of("vit")
    summary = loop.train(config, workdir=str(tmp_path / "straight"))
    cut_off(config, workdir=str(tmp_path / "cut"), after=5)
    assert loop.train(config, workdir=str(tmp_path / "cut"))["eval/loss"] == summary["eval/loss"]

    experiment = build(config_of("vit", scan=False), sharding.make_mesh())
    states = [
        Checkpoints(tmp_path / name / "checkpoints", read_only=True).restore(experiment.target).state
        for name in ("straight", "cut")
    ]
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get(states))


def test_a_skipped_update_is_kept_in_the_ordinary_layout(tmp_path):
    config = config_of(
        "vit",
        "optimizer.learning_rate=1e38",
        "optimizer.warmup_epochs=0",
        "max_skipped_updates=1",
        "eval_every_epochs=0",
    )
    with pytest.raises(SkippedUpdates) as error:
        loop.train(config, workdir=str(tmp_path / "run"))
    assert "skipped_update" in str(error.value)
    experiment = build(config, sharding.make_mesh())
    kept = Checkpoints(tmp_path / "run" / "skipped_update", read_only=True).restore(experiment.target)
    assert sorted(kept.state.params["blocks"]) == ["0", "1", "2"]

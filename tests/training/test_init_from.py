"""Fine-tuning from published weights: of another resolution, with other classes, and not again on resuming."""

import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from swin_jax.commands import load_config
from swin_jax.convert import resize_bias_table, save_timm
from swin_jax.errors import UserError
from swin_jax.models import create_model
from swin_jax.training import loop, sharding
from swin_jax.training.checkpoint import Checkpoints
from swin_jax.training.experiment import build, initial_state
from swin_jax.training.sharding import path_name

CONFIG = str(pathlib.Path(__file__).parents[2] / "configs" / "digits" / "swin.py")
TINY = {"patch_size": 2, "embed_dim": 8, "depths": (1,), "num_heads": (2,), "in_channels": 1}
TABLE = "stages.0.blocks.0.attention.relative_position_bias_table"
OVERRIDES = (
    "batch_size=16",
    "total_steps=2",
    "log_every_steps=1",
    "data.train_split=train[:64]",
    "data.eval_split=test[:16]",
    "ema_decay=0.9",
    "optimizer.warmup_epochs=0",
    "optimizer.learning_rate=0.1",
    *(f"model.{key}={value}" for key, value in TINY.items() if key != "in_channels"),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Random weights in timm's layout: of images of 16 and window 4 with 10 classes, and of 8 and window 2 with 7."""
    folder = tmp_path_factory.mktemp("weights")
    for name, options in {
        "same": {"image_size": 16, "window_size": 4, "num_classes": 10},
        "other": {"image_size": 8, "window_size": 2, "num_classes": 7},
    }.items():
        model = create_model("swin", **TINY, **options, rngs=nnx.Rngs(7))
        rng = np.random.default_rng(1)
        save_timm(model, folder / f"{name}.safetensors")
        tensors = load_file(folder / f"{name}.safetensors")
        tensors = {key: rng.normal(size=value.shape).astype(np.float32) for key, value in tensors.items()}
        save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
    return folder


def config_from(path, *overrides):
    return load_config(CONFIG, (*OVERRIDES, f"init_from={path}", *overrides))


def flat(tree):
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_both_the_parameters_and_their_average_are_those_of_the_file(files, capsys):
    mesh = sharding.make_mesh(fsdp=2, tensor=2)
    experiment = build(config_from(files / "same.safetensors"), mesh)
    with jax.set_mesh(mesh):
        state = initial_state(config_from(files / "same.safetensors"), experiment)
    tensors = load_file(files / "same.safetensors")
    params, averaged = flat(state.params), flat(state.ema_params)
    np.testing.assert_array_equal(params["head.kernel"], tensors["head.fc.weight"].T)
    np.testing.assert_array_equal(params[TABLE], tensors["layers.0.blocks.0.attn.relative_position_bias_table"])
    np.testing.assert_array_equal(params["norm.scale"], tensors["norm.weight"])
    assert params.keys() == averaged.keys()
    for name in params:
        np.testing.assert_array_equal(params[name], averaged[name], err_msg=name)
    wanted = jax.tree.map(lambda leaf: leaf.sharding, experiment.target)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == wanted
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1
    assert f"{len(params)} parameters loaded" in out[0]


def test_another_resolution_window_and_number_of_classes(files):
    config = config_from(files / "other.safetensors", "init_fresh_head=True", "init_resize=bicubic")
    experiment = build(config, sharding.make_mesh())
    with jax.set_mesh(experiment.mesh):
        params, initial = flat(initial_state(config, experiment).params), flat(experiment.init().params)
    tensors = load_file(files / "other.safetensors")
    for name in ("head.kernel", "head.bias"):
        np.testing.assert_array_equal(params[name], initial[name])
    table = tensors["layers.0.blocks.0.attn.relative_position_bias_table"]
    expected = resize_bias_table(table, (2, 2), (4, 4))
    np.testing.assert_allclose(params[TABLE], expected, atol=1e-6)
    np.testing.assert_array_equal(params["norm.bias"], tensors["norm.bias"])


def test_classes_are_picked_by_a_map(files, tmp_path):
    (tmp_path / "map.txt").write_text("\n".join(map(str, [6, 0, 3, 1, 1, 2, 4, 5, 6, 0])))
    options = (f"init_class_map={tmp_path / 'map.txt'}", "init_resize=bicubic")
    config = config_from(files / "other.safetensors", *options)
    experiment = build(config, sharding.make_mesh())
    with jax.set_mesh(experiment.mesh):
        params = flat(initial_state(config, experiment).params)
    weight = load_file(files / "other.safetensors")["head.fc.weight"]
    np.testing.assert_array_equal(params["head.kernel"], weight[[6, 0, 3, 1, 1, 2, 4, 5, 6, 0]].T)
    (tmp_path / "map.txt").write_text("7")
    with pytest.raises(UserError, match="some of the file's 7 classes"):
        initial_state(config, experiment)


def test_a_resumed_run_does_not_start_again_from_the_file(files, tmp_path, capsys):
    file = tmp_path / "gone.safetensors"
    file.write_bytes((files / "same.safetensors").read_bytes())
    config = config_from(file)
    result = loop.train(config, workdir=str(tmp_path / "run"))
    assert "starting from" in capsys.readouterr().out
    assert result["step"] == 2
    restored = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True).restore(
        build(config, sharding.make_mesh()).target
    )
    loaded = load_file(file)["norm.weight"]
    state = restored.state
    trained, averaged = (np.asarray(tree["norm"]["scale"]) for tree in (state.params, state.ema_params))
    assert np.abs(trained - loaded).max() > 0.05  # two steps of about 0.1
    np.testing.assert_array_less(np.abs(averaged - loaded), 0.05)  # the average began at the file's

    file.unlink()
    assert loop.train(config, workdir=str(tmp_path / "run")) == result
    assert "starting from" not in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["init_from"] == str(file)


@pytest.mark.parametrize(
    ("file", "overrides", "message"),
    [
        ("nowhere", (), "no such checkpoint file"),
        ("other", (), r"init_fresh_head=True.*init_resize='bicubic'"),
        ("other", ("init_fresh_head=True",), r"for another resolution or window set init_resize='bicubic'$"),
        ("same", ("init_resize=linear",), "resize='linear' is none of 'bicubic', 'geometric'"),
        ("same", ("init_class_map=/nowhere/map.txt",), "the class map /nowhere/map.txt cannot be read"),
        ("same", ("model.depths=(2,)",), "parameters are missing"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(files, tmp_path, file, overrides, message):
    config = config_from(files / f"{file}.safetensors", *overrides)
    with pytest.raises(UserError, match=message):
        loop.train(config, workdir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()

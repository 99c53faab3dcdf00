"""A workdir goes out for timm, and comes back as the model that was saved in it."""

import contextlib

import jax
import numpy as np
import pytest
from flax import nnx

from swin_jax.commands import load_config
from swin_jax.convert import load_pretrained
from swin_jax.convert.load import parameters_of
from swin_jax.errors import UserError
from swin_jax.export import export_run
from swin_jax.models import create_model
from swin_jax.training import sharding
from swin_jax.training.checkpoint import Checkpoints
from swin_jax.training.experiment import build
from swin_jax.training.sharding import path_name
from swin_jax.training.workdir import create_workdir

SHRUNK = ("batch_size=8", "ema_decay=0.5", "model.embed_dim=8", "model.depth=1", "model.num_heads=2")


def test_a_workdir_is_written_for_timm(tmp_path):
    config = load_config("configs/digits/vit.py", SHRUNK)
    experiment = build(config, sharding.make_mesh())
    create_workdir(tmp_path / "run", config)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    with jax.set_mesh(experiment.mesh), contextlib.closing(checkpoints):
        state = experiment.init()
        state.ema_params["norm"]["scale"] = state.ema_params["norm"]["scale"] + 0.5  # the averaged ones are written
        checkpoints.save(state, experiment.inputs.train_iterator(batch_size=config.batch_size))

    out = tmp_path / "model.safetensors"
    result = export_run(tmp_path / "run", out)
    options = dict(config.model.to_dict(), image_size=16, in_channels=1, num_classes=10)
    model = nnx.eval_shape(lambda: create_model(**options, rngs=nnx.Rngs(0)))
    report = load_pretrained(model, out)
    loaded = parameters_of(model)
    assert result["step"] == 0
    assert result["tensors"] == len(report.loaded) == len(loaded)
    assert result["parameters"] == sum(variable.size for variable in loaded.values())
    for path, array in jax.tree_util.tree_leaves_with_path(state.ema_params):
        np.testing.assert_array_equal(loaded[path_name(path)][...], array, err_msg=path_name(path))


def test_a_folder_that_is_no_run_is_told(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        export_run(tmp_path, tmp_path / "model.safetensors")

"""State cut over eight devices: what each holds, what they send each other, and that nothing else changes."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swin_jax.commands import load_config
from swin_jax.planning.collectives import read_collectives
from swin_jax.planning.costs import bytes_on_a_chip
from swin_jax.training import sharding
from swin_jax.training.experiment import build, compile_steps

ROOT = pathlib.Path(__file__).parents[2]
SWIN_T = ("data.source=synthetic", "data.train_split=train", "data.eval_split=test", "data.num_classes=1000",
          "total_steps=100000000", "ema_decay=0.9", "batch_size=8")  # fmt: skip
SMALL = (
    "model.depth=2",
    "model.embed_dim=128",
    "batch_size=32",
    "ema_decay=0.9",
    "task.augment.degrees=0",
    "task.augment.translate=0",
    "task.augment.scale=0",
    "task.augment.shear=0",
)


def total_bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


class Cut:
    """The small ViT on a mesh of eight, compiled."""

    def __init__(self, **axes):
        config = load_config(str(ROOT / "configs" / "digits" / "vit.py"), SMALL)
        mesh = sharding.make_mesh(**axes)
        with jax.set_mesh(mesh):
            self.experiment = build(config, mesh)
            step, _ = compile_steps(config, self.experiment)
            batches = self.experiment.inputs.train_iterator(batch_size=config.batch_size)
            given = [sharding.global_batch(next(batches), mesh) for _ in range(2)]
            self.compiled = step.lower(self.experiment.target, given[0], config.seed).compile()
            self.losses, state = [], self.experiment.init()
            for batch in given:
                state, metrics = self.compiled(state, batch, jnp.asarray(config.seed))
                self.losses.append(float(metrics["loss"]))
        self.collectives = read_collectives(self.compiled.as_text())


@pytest.fixture(scope="module")
def cut():
    return Cut(fsdp=8)


@pytest.fixture(scope="module")
def swin_t():
    config = load_config(str(ROOT / "configs" / "imagenet" / "swin_tiny.py"), SWIN_T)
    mesh = sharding.make_mesh(fsdp=8)
    with jax.set_mesh(mesh):
        return config, mesh, build(config, mesh)


def test_a_device_holds_an_eighth_of_swin_t(swin_t):
    """28.3 M parameters, their two moments and their average, in float32."""
    target = swin_t[2].target
    whole = total_bytes(target)
    assert whole == pytest.approx(4 * 4 * 28_288_354, rel=1e-6)
    assert bytes_on_a_chip(target) == pytest.approx(whole / 8, rel=0.15)


def test_the_compiled_update_takes_an_eighth_of_the_state(cut):
    memory, whole = cut.compiled.memory_analysis(), total_bytes(cut.experiment.target)
    assert memory.argument_size_in_bytes == pytest.approx(whole / 8, rel=0.15)
    assert memory.alias_size_in_bytes == pytest.approx(whole / 8, rel=0.15)  # donated: the new state is where it was


def test_devices_send_parameters_and_gradients_and_no_activations(cut):
    """Each parameter is gathered once for the way there and at most once for the way back, gradients are added up.

    XLA left to itself gathers the batch instead, and cuts and adds activations: see `keep_batch_cut`.
    """
    params = cut.experiment.target.params
    of_kind = {kind: [c for c in cut.collectives if c.kind == kind] for kind in {c.kind for c in cut.collectives}}
    assert set(of_kind) <= {"all-gather", "all-reduce", "reduce-scatter"}
    gathered = [collective.result_bytes * collective.times for collective in of_kind["all-gather"]]
    assert max(gathered) <= max(leaf.size * 4 for leaf in jax.tree.leaves(params))  # no more than one at a time
    large = sum(leaf.size * 4 for leaf in jax.tree.leaves(params) if leaf.size >= sharding.MIN_FSDP_SIZE)
    assert 0.9 * large <= sum(gathered) <= 2.1 * large
    added = sum(c.result_bytes for c in cut.collectives if c.kind == "all-reduce")
    added += sum(c.result_bytes * 8 for c in cut.collectives if c.kind == "reduce-scatter")
    assert added == pytest.approx(total_bytes(params), rel=0.1)


def test_the_loss_is_that_of_whole_copies(cut):
    np.testing.assert_allclose(cut.losses, Cut(data=8).losses, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_swin_t_compiled(swin_t):
    """The same of the real model: minutes of compilation."""
    config, mesh, experiment = swin_t
    batch = {
        "image": jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((8,), jnp.int32),
    }
    with jax.set_mesh(mesh):
        step, _ = compile_steps(config, experiment)
        options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        compiled = step.lower(experiment.target, batch, 0).compile(options)
    whole = total_bytes(experiment.target)
    assert compiled.memory_analysis().alias_size_in_bytes == pytest.approx(whole / 8, rel=0.15)
    found = read_collectives(compiled.as_text())
    largest = max(leaf.size * 4 for leaf in jax.tree.leaves(experiment.target.params))
    gathers = [collective.result_bytes for collective in found if collective.kind == "all-gather"]
    assert max(gathers) <= largest < whole / 40
    print({kind: sum(c.sent_bytes for c in found if c.kind == kind) for kind in {c.kind for c in found}}, max(gathers))

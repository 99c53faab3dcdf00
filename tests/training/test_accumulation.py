"""Gradient accumulation against the large batch, and against a loop over microbatches written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from swin_jax.errors import UserError
from swin_jax.tasks import LOSS_WEIGHT
from swin_jax.training import sharding
from swin_jax.training.state import split_model
from swin_jax.training.step import step_rngs
from tests.training.conftest import Setup, SmallModel


class PlainModel(nnx.Module):
    """No dropout, no batch statistics: all that may differ between a batch and its parts."""

    def __init__(self, *, rngs):
        self.blocks = nnx.List([nnx.Linear(16, 64, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)])

    def __call__(self, images, *, rngs=None):
        return self.blocks[1](jax.nn.gelu(self.blocks[0](images.reshape(len(images), -1))))


class MeanOfSome:
    """The mean over those examples whose label is below 7, as a language model's is over tokens that are no padding."""

    best_metric = "loss"

    def loss(self, model, batch, rngs):
        losses = optax.softmax_cross_entropy_with_integer_labels(model(batch["image"] / 255.0), batch["label"])
        counts = batch["label"] < 7
        weight = counts.sum()
        mean = jnp.where(counts, losses, 0.0).sum() / jnp.maximum(weight, 1)
        return mean, {"twice": 2 * mean, LOSS_WEIGHT: weight}


def updated(setup, updates=3):
    state, found = setup.init(), []
    for number in range(updates):
        state, metrics = setup.train_step(state, setup.batch(number), 7)
        found.append({name: float(value) for name, value in metrics.items()})
    return jax.device_get(state), found


def assert_equal_runs(run, expected):
    (state, metrics), (expected_state, expected_metrics) = run, expected
    for ours, theirs in zip(metrics, expected_metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), state.params, expected_state.params)


@pytest.fixture(scope="module")
def large_batch():
    return updated(Setup(model=PlainModel))


@pytest.mark.parametrize(
    ("number", "devices", "axes"),
    [(2, 1, {}), (4, 1, {}), (16, 1, {}), (2, 8, {}), (4, 4, {"fsdp": 2}), (2, 4, {"fsdp": 2, "tensor": 2})],
)
def test_accumulation_equals_the_large_batch(number, devices, axes, large_batch):
    assert_equal_runs(updated(Setup(devices, model=PlainModel, accumulation_steps=number, **axes)), large_batch)


def test_unequal_microbatches_count_by_their_weight():
    task = MeanOfSome()
    expected = updated(Setup(model=PlainModel, task=task))
    run = updated(Setup(2, model=PlainModel, task=task, accumulation_steps=8))
    assert len({metrics[LOSS_WEIGHT] for metrics in run[1]}) > 1
    assert_equal_runs(run, expected)


def test_each_microbatch_has_its_own_dropout_and_goes_on_with_the_statistics():
    number, seed = 4, 3
    setup = Setup(accumulation_steps=number)

    def loss_of(params, model_state, part, index):
        model = setup.model_def.merge(params, model_state)
        loss, _ = setup.task.loss(model, part, step_rngs(seed, 0, index))
        return loss, split_model(model)[2]

    gradient_of = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    before = setup.init()
    batch = {name: np.asarray(array) for name, array in setup.batch().items()}
    model_state, gradients, losses = before.model_state, [], []
    for index in range(number):
        part = {name: array[index::number] for name, array in batch.items()}
        (loss, model_state), grads = gradient_of(before.params, model_state, part, index)
        gradients.append(grads)
        losses.append(float(loss))
    mean = jax.tree.map(lambda *parts: sum(parts) / number, *gradients)
    updates, _ = jax.jit(setup.optimizer.update)(mean, before.opt_state, before.params)
    expected = optax.apply_updates(before.params, updates)

    after, metrics = setup.train_step(setup.init(), setup.batch(), seed)
    assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.global_norm(mean)), rel=1e-5)
    for ours, theirs in ((after.params, expected), (after.model_state, model_state)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), jax.device_get(ours), theirs)


def test_microbatches_draw_apart():
    keys = [step_rngs(0, 1).dropout(), *(step_rngs(0, 1, index).dropout() for index in range(3))]
    keys += [step_rngs(0, 1, index).augment() for index in range(3)]
    assert len({tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}) == len(keys)


def test_accumulation_saves_memory():
    def temporary_bytes(number):
        setup = Setup(model=SmallModel, accumulation_steps=number)
        batch = {
            "image": jax.ShapeDtypeStruct((4096, 4, 4, 1), jnp.uint8),
            "label": jax.ShapeDtypeStruct((4096,), jnp.int32),
        }
        return setup.train_step.lower(setup.target, batch, 0).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(8) < 0.4 * temporary_bytes(1)


def test_batches_that_cannot_be_cut():
    mesh = sharding.make_mesh(fsdp=2)
    sharding.check_batch_size(32, mesh, accumulation_steps=4)
    with pytest.raises(UserError, match="batch_size=32 is not divisible by accumulation_steps=3"):
        sharding.check_batch_size(32, mesh, accumulation_steps=3)
    with pytest.raises(UserError, match=r"accumulation_steps = 4 is not divisible by the 8 devices"):
        sharding.check_batch_size(32, mesh, accumulation_steps=8)

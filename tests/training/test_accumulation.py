"""Gradient accumulation against the large batch, and against a loop over microbatches written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from swin_jax.errors import UserError
from swin_jax.models import create_model
from swin_jax.tasks import LOSS_WEIGHT, create_task
from swin_jax.training import sharding
from swin_jax.training.accumulation import accumulate
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


def updated(setup, updates=3, batch_of=Setup.batch):
    state, found = setup.init(), []
    for number in range(updates):
        state, metrics = setup.train_step(state, batch_of(setup, number), 7)
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


TEXT = {
    "vocab_size": 11,
    "max_length": 12,
    "embed_dim": 16,
    "num_heads": 2,
    "depth": 1,
    "qkv_bias": False,  # a key's bias has no gradient but rounding errors, which Adam would blow up
}
TASKS = {"causal_transformer": "language_modeling", "transformer": "sequence_to_sequence"}


def rows_of_text(name):
    """Return the function from setup and number to a batch of eight rows: full, packed, short, and empty ones."""

    def batch_of(setup, number):
        rng = np.random.default_rng(number)
        tokens = rng.integers(0, 11, (2, 8, 13), np.int32)
        lengths = np.array([13, 13, 9, 5, 3, 2, 1, 0])
        segments = (np.arange(13) < lengths[:, None]) * (1 + (np.arange(13) >= 7) * (np.arange(8) % 2 == 1)[:, None])
        segments = segments.astype(np.int32)
        if name == "causal_transformer":
            batch = {"tokens": tokens[0], "segments": segments}
        else:
            batch = {"target": tokens[0], "target_segments": segments}
            batch |= {"source": tokens[1, :, 1:], "source_segments": segments[:, 1:]}
        return sharding.global_batch(batch, setup.mesh)

    return batch_of


@pytest.mark.parametrize("name", TASKS)
def test_microbatches_of_text_count_by_their_tokens(name):
    def setup(accumulation_steps):
        return Setup(
            model=lambda rngs: create_model(name, **TEXT, rngs=rngs),
            task=create_task(TASKS[name], vocab_size=11, label_smoothing=0.1),
            accumulation_steps=accumulation_steps,
        )

    batch_of = rows_of_text(name)
    expected = updated(setup(1), batch_of=batch_of)
    assert expected[1][0][LOSS_WEIGHT] == 12 + 11 + 8 + 4 + 2 + 1  # the second row holds two texts
    assert_equal_runs(updated(setup(8), batch_of=batch_of), expected)  # the last two microbatches predict nothing


def test_a_batch_without_a_token_to_predict_moves_nothing():
    def gradients(index, batch, model_state):
        loss = jnp.where(batch["counts"], 3.0, 0.0).sum() / jnp.maximum(batch["counts"].sum(), 1)
        return {"loss": loss, LOSS_WEIGHT: batch["counts"].sum()}, model_state, {"w": loss * jnp.ones(2)}

    like = jax.device_put({"w": jnp.ones(2)})
    for counts, expected in ((jnp.zeros((2, 4), bool), 0.0), (jnp.eye(2, 4, dtype=bool), 3.0)):
        metrics, _, grads = accumulate(gradients, {"counts": counts}, {}, like=like)
        assert float(metrics["loss"]) == expected
        np.testing.assert_array_equal(grads["w"], [expected, expected])


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

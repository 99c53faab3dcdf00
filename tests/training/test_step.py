import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swin_jax.errors import UserError
from swin_jax.training import sharding, step
from swin_jax.training.state import split_model
from swin_jax.training.step import evaluate, step_rngs
from tests.training.conftest import Setup, SmallModel


def test_split_and_merge_give_the_model_back():
    model = SmallModel(rngs=nnx.Rngs(3))
    images = jnp.linspace(0, 1, 32).reshape(2, 4, 4, 1)
    model_def, params, model_state = split_model(model)
    assert set(params) == {"blocks", "norm"}
    assert set(params["blocks"]) == {"0", "1"}
    assert set(model_state["norm"]) == {"mean", "var"}
    assert "scale" in model_state
    np.testing.assert_array_equal(model_def.merge(params, model_state)(images), model(images))


def test_random_state_in_the_model_is_rejected():
    class Stateful(nnx.Module):
        def __init__(self):
            self.blocks = nnx.List([nnx.Dropout(0.1, rngs=nnx.Rngs(0))])

    with pytest.raises(UserError, match=r"blocks\.0"):
        split_model(Stateful())


@pytest.mark.parametrize(
    ("num_devices", "axes"),
    [(2, {}), (8, {}), (4, {"fsdp": 4}), (8, {"fsdp": 2, "tensor": 2}), (2, {"tensor": 2})],
)
def test_any_mesh_gives_the_same_updates(num_devices, axes, setup):
    other = Setup(num_devices, ema_decay=0.9, **axes)
    state, other_state = setup.init(), other.init()
    for number in range(3):
        state, metrics = setup.train_step(state, setup.batch(number), 7)
        other_state, other_metrics = other.train_step(other_state, other.batch(number), 7)
        for name in metrics:
            assert float(metrics[name]) == pytest.approx(float(other_metrics[name]), rel=1e-5, abs=1e-6), name
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        jax.device_get(state.ema_params),
        jax.device_get(other_state.ema_params),
    )


class PoisonedTask:
    """A task whose loss, or its gradient alone, is not finite where the first label says so."""

    def __init__(self, task):
        self.task = task

    def __getattr__(self, name):
        return getattr(self.task, name)

    def loss(self, model, batch, rngs):
        loss, metrics = self.task.loss(model, {**batch, "label": batch["label"] % 10}, rngs)
        first = batch["label"][0]
        poison = jnp.where(first == 90, jnp.nan, jnp.where(first == 91, jnp.inf, 0.0))
        weight = model.blocks[1].bias.value[0]
        nothing = jnp.abs(weight - jax.lax.stop_gradient(weight))
        steep = jnp.sqrt(jnp.where(first == 92, nothing, 1.0)) - 1.0  # a square root's slope at 0 is infinite
        return loss + poison + steep, metrics


@pytest.fixture(scope="module", params=[True, False], ids=["branch of a CPU", "selection of an accelerator"])
def poisoned(setup, request):
    update_if = step._update_if
    with pytest.MonkeyPatch.context() as patch:  # until it is compiled
        patch.setattr(step, "_update_if", lambda *arguments, on_cpu: update_if(*arguments, on_cpu=request.param))
        poisoned = Setup(2, task=PoisonedTask(setup.task), ema_decay=0.9)
        poisoned.train_step(poisoned.init(), poisoned.batch(0), 0)
        return poisoned


@pytest.mark.parametrize("label", [90, 91, 92])
def test_an_update_that_is_not_finite_is_skipped(label, poisoned):
    def batch(number, label):
        found = dict(poisoned.batch(number))
        return {**found, "label": found["label"].at[0].set(label)}

    state, metrics = poisoned.train_step(poisoned.init(), batch(0, 3), 0)
    assert float(metrics["skipped_update"]) == 0
    before = jax.device_get(state)
    state, metrics = poisoned.train_step(state, batch(1, label), 0)
    assert float(metrics["skipped_update"]) == 1
    after = jax.device_get(state)
    assert int(after.step) == int(before.step) + 1 == 2
    jax.tree.map(np.testing.assert_array_equal, dataclasses.replace(after, step=before.step), before)
    state, metrics = poisoned.train_step(state, batch(2, 3), 0)
    assert float(metrics["skipped_update"]) == 0
    assert not np.array_equal(state.params["blocks"]["0"]["kernel"], before.params["blocks"]["0"]["kernel"])


def test_step_donates_updates_and_averages(setup):
    before, twin = setup.init(), setup.init()
    old = jax.device_get((twin.params, twin.ema_params, twin.model_state))
    after, metrics = setup.train_step(before, setup.batch(), 0)
    assert before.params["blocks"]["0"]["kernel"].is_deleted()
    assert int(after.step) == 1
    assert set(metrics) == {"loss", "accuracy", "grad_norm", "param_norm", "learning_rate", "skipped_update"}
    assert float(metrics["learning_rate"]) == pytest.approx(1e-3)
    jax.tree.map(
        lambda ema, previous, new: np.testing.assert_allclose(ema, 0.9 * previous + 0.1 * new, rtol=1e-5, atol=1e-7),
        jax.device_get(after.ema_params),
        old[1],
        jax.device_get(after.params),
    )
    assert np.abs(jax.device_get(after.params)["blocks"]["0"]["kernel"] - old[0]["blocks"]["0"]["kernel"]).max() > 1e-4
    assert np.abs(after.model_state["norm"]["mean"] - old[2]["norm"]["mean"]).max() > 0
    np.testing.assert_array_equal(after.model_state["scale"], old[2]["scale"])


def test_the_average_is_the_sum_written_out(setup):
    state = setup.init()
    expected = jax.tree.map(lambda leaf: 0.9**4 * np.asarray(leaf, np.float64), jax.device_get(state.params))
    for number in range(4):
        state, _ = setup.train_step(state, setup.batch(number), 0)
        share = 0.1 * 0.9 ** (3 - number)
        expected = jax.tree.map(lambda sum_, leaf: sum_ + share * leaf, expected, jax.device_get(state.params))  # noqa: B023
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), jax.device_get(state.ema_params), expected
    )


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_frozen_parameters_stay_bit_for_bit(accumulation_steps):
    optimizer = {"learning_rate_multipliers": ((r"^blocks\.0", 0.0),), "weight_decay": 10.0}
    frozen = Setup(2, ema_decay=0.9, accumulation_steps=accumulation_steps, optimizer=optimizer)
    state = frozen.init()
    before = jax.device_get(state.params)
    for number in range(3):
        state, metrics = frozen.train_step(state, frozen.batch(number), 0)
    after = jax.device_get(state)
    for params in (after.params, after.ema_params):
        np.testing.assert_array_equal(params["blocks"]["0"]["kernel"], before["blocks"]["0"]["kernel"])
        assert np.abs(params["blocks"]["1"]["kernel"] - before["blocks"]["1"]["kernel"]).max() > 1e-4
    names = [sharding.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(after.opt_state)]
    assert not [name for name in names if "blocks.0" in name]
    assert [name for name in names if "blocks.1" in name]
    assert 0 < float(metrics["grad_norm"]) < 100


def test_the_gradient_of_frozen_parameters_is_not_computed():
    def flops(pattern):
        setup = Setup(optimizer={"learning_rate_multipliers": ((pattern, 0.0),)})
        compiled = setup.train_step.lower(setup.target, setup.batch(), 0).compile()
        return compiled.cost_analysis()["flops"]

    matrix_products = 2 * 16 * 16 * 64  # examples, inputs, outputs of the first layer
    assert flops(r"^(blocks\.1\.bias)$") - flops(r"^blocks\.0\.|^blocks\.1\.bias$") > matrix_products


def test_randomness_is_a_function_of_seed_and_step():
    def draw(seed, step):
        rngs = step_rngs(seed, step)
        return np.asarray(jax.random.normal(rngs.dropout(), (4,))), np.asarray(jax.random.normal(rngs.augment(), (4,)))

    np.testing.assert_array_equal(draw(0, 3), draw(0, 3))
    draws = np.concatenate([*draw(0, 3), *draw(1, 3), *draw(0, 4)])
    assert len(set(draws.tolist())) == len(draws)


def test_dropout_follows_the_seed(setup):
    losses = {float(setup.train_step(setup.init(), setup.batch(), seed)[1]["loss"]) for seed in (0, 0, 1)}
    assert len(losses) == 2


def numpy_batches(images, labels, size):
    for start in range(0, len(images), size):
        image, label = images[start : start + size], labels[start : start + size]
        missing = size - len(image)
        yield {
            "image": np.pad(image, [(0, missing), (0, 0), (0, 0), (0, 0)]),
            "label": np.pad(label, (0, missing)),
            "valid": np.arange(size) < len(image),
        }


@pytest.mark.parametrize(("num_devices", "batch_size"), [(1, 7), (1, 64), (4, 8), (8, 16)])
def test_evaluation_is_exact_for_any_batch_size_and_devices(num_devices, batch_size):
    setup = Setup(num_devices)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (37, 4, 4, 1), np.uint8), rng.integers(0, 10, 37).astype(np.int32)
    state = setup.init()
    figures = evaluate(setup.eval_step, setup.task, numpy_batches(images, labels, batch_size), state, setup.mesh)

    model = SmallModel(rngs=nnx.Rngs(0))
    logits = np.asarray(model((images / 255.0 - 0.5) / 0.5), np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ranks = (logits > logits[np.arange(37), labels][:, None]).sum(-1)
    assert figures["count"] == 37
    assert figures["accuracy"] == pytest.approx((ranks == 0).mean())
    assert figures["top5"] == pytest.approx((ranks < 5).mean())
    assert figures["loss"] == pytest.approx(-log_probabilities[np.arange(37), labels].mean(), rel=1e-5)


def test_evaluation_uses_the_averaged_parameters(setup):
    state = setup.init()
    for number in range(3):
        state, _ = setup.train_step(state, setup.batch(number), 0)

    def figures(state):
        batch = {name: np.asarray(array) for name, array in setup.batch(5).items()}
        return evaluate(setup.eval_step, setup.task, [{**batch, "valid": np.ones(16, bool)}], state, setup.mesh)

    of_average = figures(state)
    assert of_average == figures(dataclasses.replace(state, params=state.ema_params, ema_params=None))
    assert of_average["loss"] != pytest.approx(figures(dataclasses.replace(state, ema_params=None))["loss"], rel=1e-4)

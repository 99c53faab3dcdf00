"""Twenty updates of the official recipe follow PyTorch's, and the learning-rate curves are the official scheduler's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from swin_jax.training.optimizer import create_optimizer
from swin_jax.training.schedules import create_schedule
from swin_jax.training.state import split_model
from tests.convert import goldens


def schedule_of(values: dict, updates_per_epoch: int = 1):
    return create_schedule(
        schedule="cosine",
        learning_rate=values["base_lr"],
        final_learning_rate=values["min_lr"],
        warmup_learning_rate=values["warmup_lr"],
        warmup_steps=values["warmup_epochs"] * updates_per_epoch,
        total_steps=values["epochs"] * updates_per_epoch,
    )


@pytest.mark.parametrize("name", ["trajectory_swin", "trajectory_vit"])
def test_twenty_updates_follow_the_official_loop(name, tmp_path):
    golden = goldens.read(name)
    hyperparameters = json.loads(str(golden["hyperparameters"]))
    curve = schedule_of(hyperparameters)

    def lagging(update):  # the official loop sets the rate after each update
        return curve(jnp.maximum(update - 1, 0))

    optimizer = create_optimizer(
        name="adamw",
        schedule=lagging,
        weight_decay=0.05,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        momentum=0.0,
        nesterov=False,
        grad_clip_norm=5.0,
    )
    model, _ = goldens.load(name, tmp_path)
    model_def, params, model_state = split_model(model)
    targets = optax.smooth_labels(jax.nn.one_hot(golden["labels"], 5), 0.1)

    def loss_of(params):
        logits = model_def.merge(params, model_state)(golden["images"])
        return optax.softmax_cross_entropy(logits, targets).mean()

    def update(params, opt_state):
        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss, optax.global_norm(gradients)

    update = jax.jit(update, compiler_options=goldens.COMPILE_FAST)
    opt_state = jax.jit(optimizer.init, compiler_options=goldens.COMPILE_FAST)(params)
    losses, norms = [], []
    for _ in golden["losses"]:
        params, opt_state, loss, norm = update(params, opt_state)
        losses.append(loss)
        norms.append(norm)
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-4)
    np.testing.assert_allclose(norms, golden["gradient_norms"], rtol=1e-3)
    assert golden["gradient_norms"].min() < 5.0 < golden["gradient_norms"].max()  # some clipped, some not
    rates = [float(lagging(jnp.asarray(step))) for step in range(len(losses))]
    np.testing.assert_allclose(rates, golden["learning_rates"], rtol=1e-5)


CURVES = goldens.part("learning_rate_curves", "hyperparameters")


@pytest.mark.parametrize("name", CURVES)
def test_learning_rates_equal_the_official_schedulers(name):
    values = json.loads(str(CURVES[name]))
    schedule = schedule_of(values, values["updates_per_epoch"])
    rates = jax.vmap(schedule)(goldens.part("learning_rate_curves", "steps")[name])
    expected = goldens.part("learning_rate_curves", "rates")[name]
    np.testing.assert_allclose(rates, expected, rtol=2e-5, atol=1e-6 * values["base_lr"])

"""The compiled functions of the loop: one update, one evaluation batch."""

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from swin_jax.tasks import Task
from swin_jax.training import sharding
from swin_jax.training.optimizer import Schedule
from swin_jax.training.state import ModelDef, TrainState, split_model

Batch = Mapping[str, jax.Array]
MAX_PENDING = 2  # calls the host may be ahead of the device: enough to keep it busy, little memory in waiting batches


def step_rngs(seed: jax.Array | int, step: jax.Array | int) -> nnx.Rngs:
    """Return the randomness of one update, a function of (seed, step) alone."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return nnx.Rngs(dropout=jax.random.fold_in(key, 0), augment=jax.random.fold_in(key, 1))


def make_train_step(
    model_def: ModelDef,
    task: Task,
    *,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    ema_decay: float,
    abstract_state: TrainState,
    mesh: Mesh,
) -> Callable[[TrainState, Batch, int], tuple[TrainState, dict[str, jax.Array]]]:
    """Return `step(state, batch, seed) -> (state, metrics)`; the state passed in is donated, so use the new one."""

    def train_step(state, batch, seed):
        def loss_of(params):
            model = model_def.merge(params, state.model_state)
            loss, metrics = task.loss(model, batch, step_rngs(seed, state.step))
            return loss.astype(jnp.float32), (metrics, split_model(model)[2])

        (loss, (metrics, model_state)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_params is not None:
            ema_params = optax.incremental_update(params, ema_params, 1.0 - ema_decay)
        metrics = {
            **metrics,
            "loss": loss,
            "grad_norm": optax.global_norm(grads),
            "param_norm": optax.global_norm(params),
            "learning_rate": schedule(state.step),
        }
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        return TrainState(state.step + 1, params, model_state, opt_state, ema_params), metrics

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
    everywhere = sharding.replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(shardings, sharding.batch_sharding(mesh), None),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )


def make_eval_step(
    model_def: ModelDef, task: Task, *, abstract_state: TrainState, mesh: Mesh
) -> Callable[[dict[str, Any], dict[str, Any], Batch], dict[str, jax.Array]]:
    """Return `step(params, model_state, batch) -> sums over the batch's valid examples`."""

    def eval_step(params, model_state, batch):
        return task.evaluate(model_def.merge(params, model_state), batch)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, (abstract_state.params, abstract_state.model_state))
    return jax.jit(
        eval_step,
        in_shardings=(*shardings, sharding.batch_sharding(mesh)),
        out_shardings=sharding.replicated(mesh),
    )


def evaluate(
    eval_step: Callable[[dict[str, Any], dict[str, Any], Batch], dict[str, jax.Array]],
    task: Task,
    batches: Iterable[Mapping[str, np.ndarray]],
    state: TrainState,
    mesh: Mesh,
) -> dict[str, float]:
    """Return the task's figures over all examples of `batches`, summed in float64 over the batches."""
    sums: collections.defaultdict[str, float] = collections.defaultdict(float)
    pending: collections.deque[dict[str, jax.Array]] = collections.deque()

    def add_oldest():
        for name, value in jax.device_get(pending.popleft()).items():
            sums[name] += float(value)

    for batch in batches:
        pending.append(eval_step(state.eval_params, state.model_state, sharding.global_batch(batch, mesh)))
        if len(pending) > MAX_PENDING:
            add_oldest()
    while pending:
        add_oldest()
    return task.summarize(sums)

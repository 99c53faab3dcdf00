"""The compiled functions of the loop: one update, one evaluation batch."""

import collections
import dataclasses
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
from swin_jax.training.accumulation import accumulate, microbatches
from swin_jax.training.schedules import Schedule
from swin_jax.training.state import ModelDef, TrainState, split_model

Batch = Mapping[str, jax.Array]
MAX_PENDING = 2  # calls the host may be ahead of the device: enough to keep it busy, little memory in waiting batches


def step_rngs(seed: jax.Array | int, step: jax.Array | int, microbatch: jax.Array | int | None = None) -> nnx.Rngs:
    """Return the randomness of one update, or of one microbatch of it, a function of these numbers alone."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    if microbatch is not None:
        keys = tuple(jax.random.fold_in(key, microbatch) for key in keys)
    return nnx.Rngs(dropout=keys[0], augment=keys[1])


def make_train_step(
    model_def: ModelDef,
    task: Task,
    *,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    ema_decay: float,
    abstract_state: TrainState,
    mesh: Mesh,
    accumulation_steps: int = 1,
    frozen: Callable[[dict[str, Any]], Any] | None = None,
) -> Callable[[TrainState, Batch, int], tuple[TrainState, dict[str, jax.Array]]]:
    """Return `step(state, batch, seed) -> (state, metrics)`; the state passed in is donated, so use the new one.

    An update whose loss or gradient is not finite is skipped: all but `state.step` stays as it was, to
    the bit, and `metrics["skipped_update"]` is 1, not 0.

    Args:
        accumulation_steps: into how many microbatches the batch is cut, one after the other, so that only the
            activations of one are in memory. See `accumulate`.
        frozen: from the parameters to a tree of bools, True for those that need no gradient; the optimizer must leave
            them as they are.
    """

    def train_step(state, batch, seed):
        is_frozen = frozen(state.params) if frozen else jax.tree.map(lambda _: False, state.params)
        nothing = jax.tree.map(lambda _: None, is_frozen)

        def choose(where_frozen, elsewhere):  # a tree may have None where the other one is taken
            return jax.tree.map(lambda mask, a, b: a if mask else b, is_frozen, where_frozen, elsewhere)

        def gradients(microbatch, batch, model_state):
            def loss_of(learned):
                model = model_def.merge(choose(state.params, learned), model_state)
                loss, metrics = task.loss(model, batch, step_rngs(seed, state.step, microbatch))
                return loss.astype(jnp.float32), (metrics, split_model(model)[2])

            learned = choose(nothing, state.params)
            (loss, (metrics, model_state)), grads = jax.value_and_grad(loss_of, has_aux=True)(learned)
            grads = sharding.cut_as(grads, choose(nothing, abstract_state.params), mesh)
            return {**metrics, "loss": loss}, model_state, grads

        if accumulation_steps == 1:
            metrics, model_state, grads = gradients(None, batch, state.model_state)
        else:
            batches = microbatches(batch, accumulation_steps, mesh)
            like = choose(nothing, abstract_state.params)
            metrics, model_state, grads = accumulate(gradients, batches, state.model_state, like=like)
        grads = jax.tree.map(
            lambda mask, leaf, grad: jnp.zeros_like(leaf) if mask else grad, is_frozen, state.params, grads
        )
        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)

        def update():
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            ema_params = state.ema_params
            if ema_params is not None:
                ema_params = choose(params, optax.incremental_update(params, ema_params, 1.0 - ema_decay))
            return TrainState(state.step, params, model_state, opt_state, ema_params)

        updated = _update_if(finite, update, state, on_cpu=mesh.devices.flat[0].platform == "cpu")
        norms = {"grad_norm": grad_norm, "param_norm": optax.global_norm(updated.params)}
        metrics = {**metrics, **norms, "learning_rate": schedule(state.step), "skipped_update": ~finite}
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        return dataclasses.replace(updated, step=state.step + 1), metrics

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
    everywhere = sharding.replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(shardings, sharding.batch_sharding(mesh), None),
        out_shardings=(shardings, everywhere),
        donate_argnums=() if jax.config.jax_debug_nans else 0,  # which goes through the step again, with the old state
    )


def _update_if(finite: jax.Array, update: Callable[[], TrainState], state: TrainState, *, on_cpu: bool) -> TrainState:
    """Return `update()` where `finite`, else `state`, bit for bit.

    A branch lets XLA for CPU update in place; with a selection it keeps a copy of parameters and moments, and computes
    the update once more for their norm. An accelerator would wait for the host at a branch.
    """
    if on_cpu:
        return jax.lax.cond(finite, update, lambda: state)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), update(), state)


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

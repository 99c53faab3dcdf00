import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from swin_jax.errors import UserError
from swin_jax.training.optimizer import clip_by_global_norm, create_optimizer, create_schedule, decay_mask

OPTIONS = {
    "name": "adamw",
    "weight_decay": 0.1,
    "b1": 0.9,
    "b2": 0.99,
    "eps": 1e-8,
    "momentum": 0.9,
    "nesterov": True,
    "grad_clip_norm": 0.0,
}


def make_schedule(**changes):
    options = {
        "schedule": "cosine",
        "learning_rate": 1e-3,
        "final_learning_rate": 1e-5,
        "warmup_learning_rate": 1e-6,
        "warmup_steps": 20,
        "total_steps": 100,
    }
    return create_schedule(**{**options, **changes})


def timm_cosine(t, *, base=1e-3, lr_min=1e-5, warmup_lr=1e-6, warmup_t=20, total=100):
    """timm's CosineLRScheduler as the official Swin code sets it up (warmup_prefix, t_initial without the warm-up)."""
    if t < warmup_t:
        return warmup_lr + t * (base - warmup_lr) / warmup_t
    t, t_initial = t - warmup_t, total - warmup_t
    return lr_min + 0.5 * (base - lr_min) * (1 + math.cos(math.pi * t / t_initial)) if t < t_initial else lr_min


@pytest.mark.parametrize("warmup", [0, 1, 20])
def test_schedule_is_the_published_one(warmup):
    schedule = make_schedule(warmup_steps=warmup)
    steps = np.arange(110)
    expected = [timm_cosine(int(step), warmup_t=warmup) for step in steps]
    np.testing.assert_allclose(jax.vmap(schedule)(steps), expected, rtol=2e-5, atol=1e-10)


def test_constant_schedule():
    schedule = make_schedule(schedule="constant")
    assert float(schedule(10)) == pytest.approx(1e-6 + 10 * (1e-3 - 1e-6) / 20)
    assert float(schedule(20)) == float(schedule(99)) == pytest.approx(1e-3)


def test_a_run_shorter_than_its_warm_up_ends_within_it():
    whole, short = make_schedule(), make_schedule(total_steps=3)
    np.testing.assert_allclose([short(step) for step in range(4)], [whole(step) for step in range(4)])


def test_schedule_rejects_unknown_names():
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        make_schedule(schedule="cosin")


def test_decay_mask_spares_biases_tokens_and_tables():
    shapes = {
        "patch_embed": {"proj": {"kernel": (4, 4, 3, 8), "bias": (8,)}, "norm": {"scale": (8,)}},
        "cls_token": (1, 1, 8),
        "dist_token": (1, 1, 8),
        "pos_embed": (1, 17, 8),
        "blocks": {
            "0": {
                "attention": {
                    "qkv": {"kernel": (8, 3, 2, 4), "bias": (3, 2, 4)},
                    "relative_position_bias_table": (9, 2),
                    "proj": {"kernel": (8, 8), "bias": (8,)},
                },
                "layer_scale1": {"gamma": (8,)},
            }
        },
    }
    params = jax.tree.map(jnp.zeros, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    mask = decay_mask(params)
    decayed = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in jax.tree_util.tree_leaves_with_path(mask)
        if leaf
    }
    assert decayed == {
        "patch_embed.proj.kernel",
        "blocks.0.attention.qkv.kernel",
        "blocks.0.attention.proj.kernel",
    }


def run(optimizer, params, grads):
    state = optimizer.init(params)
    for grad in grads:
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
    return params


def problem():
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(3, 4)), rng.normal(size=4)
    grads = [{"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)} for _ in range(5)]
    return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}, grads


def test_adamw_is_torch_adamw():
    params, grads = problem()
    schedule = make_schedule()
    result = run(create_optimizer(schedule=schedule, **OPTIONS), params, grads)
    for name, weight_decay in (("kernel", 0.1), ("bias", 0.0)):
        value, first, second = np.asarray(params[name], np.float64), 0.0, 0.0
        for step, grad in enumerate(grads):
            lr = float(schedule(step))
            value = value * (1 - lr * weight_decay)
            first = 0.9 * first + 0.1 * grad[name]
            second = 0.99 * second + 0.01 * grad[name] ** 2
            denominator = np.sqrt(second) / math.sqrt(1 - 0.99 ** (step + 1)) + 1e-8
            value = value - lr / (1 - 0.9 ** (step + 1)) * first / denominator
        np.testing.assert_allclose(result[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_is_torch_sgd(nesterov):
    params, grads = problem()
    schedule = make_schedule()
    optimizer = create_optimizer(schedule=schedule, **{**OPTIONS, "name": "sgd", "nesterov": nesterov})
    result = run(optimizer, params, grads)
    for name, weight_decay in (("kernel", 0.1), ("bias", 0.0)):
        value, buffer = np.asarray(params[name], np.float64), 0.0
        for step, grad in enumerate(grads):
            change = grad[name] + weight_decay * value
            buffer = 0.9 * buffer + change
            value = value - float(schedule(step)) * (change + 0.9 * buffer if nesterov else buffer)
        np.testing.assert_allclose(result[name], value, rtol=1e-6, atol=1e-7)


def test_clipping_is_torch_clip_grad_norm():
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0])}
    clipped, _ = clip_by_global_norm(5.0).update(grads, optax.EmptyState())
    np.testing.assert_allclose(clipped["b"], 12.0 * 5.0 / (13.0 + 1e-6), rtol=1e-7)
    untouched, _ = clip_by_global_norm(14.0).update(grads, optax.EmptyState())
    np.testing.assert_array_equal(untouched["a"], grads["a"])


def test_unknown_optimizer_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'adamw'"):
        create_optimizer(schedule=make_schedule(), **{**OPTIONS, "name": "adam"})

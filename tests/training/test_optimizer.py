import math
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from swin_jax.errors import UserError
from swin_jax.training.optimizer import OPTIMIZERS, clip_by_global_norm, create_optimizer
from swin_jax.training.schedules import create_schedule

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


def test_lamb_is_apex_and_timm_lamb():
    params, grads = problem()
    params["norm"] = {"scale": jnp.ones(4)}
    grads = [{**grad, "norm": {"scale": grad["bias"] + 0.3}} for grad in grads]
    schedule = make_schedule()
    result = run(create_optimizer(schedule=schedule, **{**OPTIONS, "name": "lamb"}), params, grads)
    leaves = {"kernel": (0.1, lambda tree: tree["kernel"]), "scale": (0.0, lambda tree: tree["norm"]["scale"])}
    for name, (weight_decay, pick) in leaves.items():
        value, first, second = np.asarray(pick(params), np.float64), 0.0, 0.0
        for step, grad in enumerate(map(pick, grads)):
            first = 0.9 * first + 0.1 * grad
            second = 0.99 * second + 0.01 * grad**2
            update = first / (1 - 0.9 ** (step + 1)) / (np.sqrt(second / (1 - 0.99 ** (step + 1))) + 1e-8)
            update = update + weight_decay * value
            if weight_decay:  # apex adapts only the group that has weight decay
                update = update * np.linalg.norm(value) / np.linalg.norm(update)
            value = value - float(schedule(step)) * update
        np.testing.assert_allclose(pick(result), value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_lion_is_algorithm_2():
    params, grads = problem()
    schedule = make_schedule()
    result = run(create_optimizer(schedule=schedule, **{**OPTIONS, "name": "lion"}), params, grads)
    for name, weight_decay in (("kernel", 0.1), ("bias", 0.0)):
        value, momentum = np.asarray(params[name], np.float64), 0.0
        for step, grad in enumerate(grads):
            direction = np.sign(0.9 * momentum + 0.1 * grad[name])
            value = value - float(schedule(step)) * (direction + weight_decay * value)
            momentum = 0.99 * momentum + 0.01 * grad[name]
        np.testing.assert_allclose(result[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("b2", [0.999, 0.3])
def test_adafactor_is_that_of_scaling_vit(b2):
    rng = np.random.default_rng(0)
    shapes = {"large": (3, 40, 33), "small": (31, 40), "bias": (50,)}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    grads = [{name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(4)]
    schedule = make_schedule()
    options = {**OPTIONS, "name": "adafactor", "b2": b2}
    result = run(create_optimizer(schedule=schedule, **options), params, grads)
    for name in shapes:
        value, momentum, rows, columns, second = np.asarray(params[name], np.float64), 0.0, 0.0, 0.0, 0.0
        for step, grad in enumerate(grads):
            grad = grad[name]
            rate = min(b2, 1 - (step + 1) ** -0.8)
            if name == "large":  # over its two longest axes
                rows = rate * rows + (1 - rate) * (grad**2).mean(2, keepdims=True)
                columns = rate * columns + (1 - rate) * (grad**2).mean(1, keepdims=True)
                second = rows * columns / rows.mean(1, keepdims=True)
            else:
                second = rate * second + (1 - rate) * grad**2
            momentum = 0.9 * momentum + 0.1 * grad / np.sqrt(second)
            decay = 0.0 if name == "bias" else 0.1
            value = value - float(schedule(step)) * (momentum + decay * value)
        np.testing.assert_allclose(result[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    state = create_optimizer(schedule=schedule, **options).init(params)
    kept = sum(leaf.size for leaf in jax.tree.leaves(state))
    momenta = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert kept - momenta == 3 * (40 + 33) + 31 * 40 + 50 + 5 + 3  # and placeholders of one, counters


def test_independent_weight_decay_is_big_visions():
    params, grads = problem()
    schedule = make_schedule()
    options = {**OPTIONS, "learning_rate_multipliers": (("kernel", 0.5),)}
    result = run(create_optimizer(schedule=schedule, peak_learning_rate=1e-3, **options), params, grads)
    for name, weight_decay, multiplier in (("kernel", 0.1, 0.5), ("bias", 0.0, 1.0)):
        value, first, second = np.asarray(params[name], np.float64), 0.0, 0.0
        for step, grad in enumerate(grads):
            first = 0.9 * first + 0.1 * grad[name]
            second = 0.99 * second + 0.01 * grad[name] ** 2
            adam = first / (1 - 0.9 ** (step + 1)) / (np.sqrt(second / (1 - 0.99 ** (step + 1))) + 1e-8)
            value = value - float(schedule(step)) / 1e-3 * (1e-3 * multiplier * adam + weight_decay * value)
        np.testing.assert_allclose(result[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_first_moments_may_be_bfloat16(name):
    params, grads = problem()
    create = partial(create_optimizer, schedule=make_schedule())
    state = create(**{**OPTIONS, "name": name, "momentum_dtype": "bfloat16"}).init(params)
    plain = create(**{**OPTIONS, "name": name}).init(params)
    changed = [
        (old.shape, str(new.dtype))
        for old, new in zip(jax.tree.leaves(plain), jax.tree.leaves(state), strict=True)
        if old.dtype != new.dtype
    ]
    assert sorted(changed) == [((3, 4), "bfloat16"), ((4,), "bfloat16")]
    result = run(create(**{**OPTIONS, "name": name, "momentum_dtype": "bfloat16"}), params, grads)
    reference = run(create(**{**OPTIONS, "name": name}), params, grads)
    moved = np.abs(reference["kernel"] - params["kernel"]).max()
    assert np.abs(result["kernel"] - reference["kernel"]).max() < 0.02 * moved


def grouped_problem():
    rng = np.random.default_rng(1)
    shapes = {
        "patch_embed": {"kernel": (4, 3)},
        "blocks": {"0": {"kernel": (3, 3), "bias": (3,)}},
        "head": {"kernel": (3, 2), "bias": (2,)},
    }

    def draw(scale=1.0):
        return jax.tree.map(lambda shape: jnp.asarray(scale * rng.normal(size=shape)), shapes, is_leaf=is_shape)

    return draw(), [draw(2.0) for _ in range(4)]


def is_shape(value):
    return isinstance(value, tuple)


def test_multipliers_are_an_optimizer_for_each_group():
    params, grads = grouped_problem()
    schedule = make_schedule()
    optimizer = create_optimizer(
        schedule=schedule,
        learning_rate_multipliers=((r"^head\.kernel", 10.0), (r"^head\.", 3.0)),
        weight_decay_multipliers=((r"^blocks\..*bias$", 0.7), ("head", 0.0)),
        **OPTIONS,
    )
    result = run(optimizer, params, grads)
    expected = {  # multiplier of the learning rate, weight decay
        ("patch_embed", "kernel"): (1.0, 0.1),
        ("blocks", "0", "kernel"): (1.0, 0.1),
        ("blocks", "0", "bias"): (1.0, 0.07),
        ("head", "kernel"): (10.0, 0.0),
        ("head", "bias"): (3.0, 0.0),
    }
    for path, (multiplier, weight_decay) in expected.items():
        pick = partial(reduce, lambda tree, key: tree[key], path)
        reference = optax.adamw(
            lambda step, multiplier=multiplier: multiplier * schedule(step), 0.9, 0.99, 1e-8, weight_decay=weight_decay
        )
        alone = run(reference, pick(params), [pick(grad) for grad in grads])
        np.testing.assert_allclose(pick(result), alone, rtol=1e-5, atol=1e-7, err_msg=str(path))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("peak", [None, 1e-3])
def test_frozen_parameters_stay_and_cost_nothing(name, peak):
    params, grads = grouped_problem()
    create = partial(create_optimizer, schedule=make_schedule(), peak_learning_rate=peak)
    options = {**OPTIONS, "name": name, "grad_clip_norm": 1.0}
    optimizer = create(**options, learning_rate_multipliers=(("patch_embed|blocks", 0.0),))
    result = run(optimizer, params, grads)
    for key in ("patch_embed", "blocks"):
        jax.tree.map(np.testing.assert_array_equal, result[key], params[key])
    head, head_grads = {"head": params["head"]}, [{"head": grad["head"]} for grad in grads]
    alone = run(create(**options), head, head_grads)  # so the others count nothing in the norm that clips
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), result["head"], alone["head"])
    assert np.abs(result["head"]["kernel"] - params["head"]["kernel"]).max() > 1e-6
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(state))
        for state in (optimizer.init(params), create(**options).init(head))
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "adam"}, "did you mean 'adamw'"),
        ({"name": "shampoo"}, "known: adamw, sgd, lamb, lion, adafactor, muon"),
        ({"momentum_dtype": "float8"}, "momentum_dtype='float8'"),
        ({"peak_learning_rate": 0.0}, "learning rate of 0"),
    ],
)
def test_optimizers_that_do_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        create_optimizer(schedule=make_schedule(), **{**OPTIONS, **changes})

"""Learning-rate curves against timm's, optax's and the papers' formulas."""

import bisect
import math

import jax
import numpy as np
import optax
import pytest

from swin_jax.errors import UserError
from swin_jax.training.schedules import create_schedule, resolve_milestones, resolve_steps

STEPS = np.arange(110)


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


@pytest.mark.parametrize(("name", "power", "exponent"), [("linear", 3.0, 1), ("polynomial", 2.5, 2.5)])
def test_linear_and_polynomial_are_optax_ones(name, power, exponent):
    curve = optax.polynomial_schedule(1e-3, 1e-5, exponent, 80)
    reference = optax.join_schedules([optax.linear_schedule(1e-6, 1e-3, 20), curve], [20])
    rates = jax.vmap(make_schedule(schedule=name, power=power))(STEPS)
    np.testing.assert_allclose(rates, [reference(step) for step in STEPS], rtol=1e-5, atol=1e-10)
    assert float(rates[100]) == float(rates[109]) == pytest.approx(1e-5)


def test_steps_are_those_of_multistep_lr():
    schedule = make_schedule(schedule="step", milestones=(40, 60, 61), milestone_factor=0.3)
    expected = [1e-3 * 0.3 ** bisect.bisect_right((40, 60, 61), step) for step in STEPS[20:]]
    np.testing.assert_allclose(jax.vmap(schedule)(STEPS[20:]), expected, rtol=1e-6)
    assert float(schedule(39)) / float(schedule(40)) == pytest.approx(1 / 0.3)
    assert float(schedule(10)) == pytest.approx(1e-6 + 10 * (1e-3 - 1e-6) / 20)


def test_inverse_square_root_is_equation_3():
    width, warmup = 512, 20
    schedule = make_schedule(
        schedule="inverse_square_root", learning_rate=(width * warmup) ** -0.5, warmup_learning_rate=0.0
    )
    steps = np.arange(1, 500)
    expected = width**-0.5 * np.minimum(steps**-0.5, steps * warmup**-1.5)
    np.testing.assert_allclose(jax.vmap(schedule)(steps), expected, rtol=1e-5)
    assert steps[np.argmax(jax.vmap(schedule)(steps))] == warmup


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "step"}, "needs milestones"),
        ({"milestones": (30,)}, "only it takes any"),
        ({"schedule": "step", "milestones": (19,)}, "within the 20 of the warm-up"),
        ({"schedule": "inverse_square_root", "warmup_steps": 0}, "time scale"),
        ({"schedule": "polynomial", "power": 0.0}, "power=0.0"),
        ({"schedule": "rsqrt"}, "inverse_square_root"),
    ],
)
def test_schedules_that_do_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        make_schedule(**changes)


def test_lengths_are_given_in_steps_or_epochs():
    assert resolve_steps("warmup", steps=7, epochs=0.0, steps_per_epoch=11) == 7
    assert resolve_steps("warmup", steps=0, epochs=2.5, steps_per_epoch=11) == 27
    assert resolve_steps("warmup", steps=0, epochs=0.0, steps_per_epoch=11) == 0
    with pytest.raises(UserError, match=r"warmup_steps=7 and warmup_epochs=0\.5 exclude each other"):
        resolve_steps("warmup", steps=7, epochs=0.5, steps_per_epoch=11)
    assert resolve_milestones("milestone", steps=(3, 5), epochs=(), steps_per_epoch=11) == (3, 5)
    assert resolve_milestones("milestone", steps=(), epochs=(1, 2.5), steps_per_epoch=11) == (11, 27)
    assert resolve_milestones("milestone", steps=(), epochs=(), steps_per_epoch=11) == ()


@pytest.mark.parametrize(
    ("steps", "epochs"), [((3,), (1,)), ((5, 3), ()), ((), (2, 2.01)), ((2.5,), ()), ((), (0,)), ((), ("2",))]
)
def test_milestones_that_do_not_fit(steps, epochs):
    with pytest.raises(UserError, match="milestone_"):
        resolve_milestones("milestone", steps=steps, epochs=epochs, steps_per_epoch=11)

"""The learning rate as a function of the update, and the one place where epochs become updates."""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from swin_jax.errors import UserError, did_you_mean

Schedule = Callable[[jax.Array | int], jax.Array]
SCHEDULES = ("cosine", "linear", "polynomial", "step", "inverse_square_root", "constant")


def resolve_steps(name: str, *, steps: int, epochs: float, steps_per_epoch: int) -> int:
    """Return a length that the config gives as `{name}_steps` or as `{name}_epochs`, in updates, rounded down.

    Raises UserError if it gives both; 0 is "not given".
    """
    if steps and epochs:
        raise UserError(f"{name}_steps={steps} and {name}_epochs={epochs} exclude each other: set one of them to 0")
    return steps or int(epochs * steps_per_epoch)


def resolve_milestones(
    name: str, *, steps: Sequence[int], epochs: Sequence[float], steps_per_epoch: int
) -> tuple[int, ...]:
    """Return a list of points in time that the config gives as `{name}_steps` or as `{name}_epochs`, in updates.

    Raises UserError if it gives both, and for anything but positive numbers in rising order.
    """
    if steps and epochs:
        raise UserError(f"{name}_steps={steps} and {name}_epochs={epochs} exclude each other: set one of them to ()")
    given, unit = (epochs, "epochs") if epochs else (steps, "steps")
    numbers = int | float if unit == "epochs" else int
    if not all(isinstance(value, numbers) and not isinstance(value, bool) and value > 0 for value in given):
        raise UserError(f"{name}_{unit}={given} must be positive{'' if unit == 'epochs' else ' whole'} numbers")
    milestones = tuple(int(value * (steps_per_epoch if unit == "epochs" else 1)) for value in given)
    if any(later <= earlier for earlier, later in itertools.pairwise(milestones)):
        raise UserError(f"{name}_{unit}={given} must rise, by at least one update")
    return milestones


def create_schedule(
    *,
    schedule: str,
    learning_rate: float,
    final_learning_rate: float,
    warmup_learning_rate: float,
    warmup_steps: int,
    total_steps: int,
    milestones: Sequence[int] = (),
    milestone_factor: float = 0.1,
    power: float = 1.0,
) -> Schedule:
    """Return the learning rate as a function of the update, counted from 0: linear warm-up, then the named curve.

    Every curve is at `learning_rate` in update `warmup_steps`, the first one after the warm-up:

    - `cosine`: that of the official Swin recipe (timm's CosineLRScheduler with `warmup_prefix`), which would reach
      `final_learning_rate` in update `total_steps`. The official loop sets the rate after each update and so lags this
      curve by one update.
    - `linear`, `polynomial`: the distance to `final_learning_rate` shrinks as (1 - progress) ** `power`; linear is
      power 1.
    - `step`: times `milestone_factor` from each of the `milestones` on, as PyTorch's MultiStepLR.
    - `inverse_square_root`: the Transformer's (arXiv 1706.03762, eq. 3), learning_rate * sqrt(warmup_steps / update).
    - `constant`.

    A run shorter than its warm-up, as for a quick look, ends within it. Raises UserError for an unknown name and for
    arguments that do not fit it.
    """
    if schedule not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise UserError(f"unknown schedule {schedule!r}{did_you_mean(schedule, SCHEDULES)} (known: {known})")
    if (schedule == "step") != bool(milestones):
        raise UserError(f"schedule 'step' needs milestones, and only it takes any: {schedule=} with {milestones=}")
    if schedule == "step" and milestones[0] < warmup_steps:
        raise UserError(f"the first milestone, update {milestones[0]}, lies within the {warmup_steps} of the warm-up")
    if schedule == "inverse_square_root" and not warmup_steps:
        raise UserError("schedule 'inverse_square_root' takes its time scale from the warm-up, which must not be 0")
    if not (math.isfinite(power) and power > 0):
        raise UserError(f"the schedule's {power=} must be above 0")

    def curve(step):
        if schedule == "constant":
            return learning_rate
        if schedule == "step":
            rates = [learning_rate * milestone_factor**passed for passed in range(len(milestones) + 1)]
            return jnp.asarray(rates)[(step >= jnp.asarray(milestones, jnp.float32)).sum()]
        if schedule == "inverse_square_root":
            return learning_rate * jnp.sqrt(warmup_steps / jnp.maximum(step, warmup_steps))
        remaining = jnp.clip((total_steps - step) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
        if schedule == "cosine":  # sin² is the published (1 + cos) / 2 without its cancellation in float32 at the end
            share = jnp.sin(0.5 * jnp.pi * remaining) ** 2
        else:
            share = remaining ** (1.0 if schedule == "linear" else power)
        return final_learning_rate + (learning_rate - final_learning_rate) * share

    def learning_rate_at(step):
        step = jnp.asarray(step, jnp.float32)
        warmup = warmup_learning_rate + step * ((learning_rate - warmup_learning_rate) / max(warmup_steps, 1))
        rate = curve(step)
        return jnp.where(step < warmup_steps, warmup, rate)

    return learning_rate_at

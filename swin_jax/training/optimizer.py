"""AdamW and SGD as the published recipes run them in PyTorch: schedule, weight decay and clipping, in raw optax."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from swin_jax.errors import UserError, did_you_mean
from swin_jax.training.sharding import path_name

# Parameters of more than one dimension that are never decayed, by the last part of their path. (1-D ones never are.)
NO_DECAY_NAMES = ("bias", "relative_position_bias_table", "pos_embed", "cls_token", "dist_token")

Schedule = Callable[[jax.Array | int], jax.Array]


def create_schedule(
    *,
    schedule: str,
    learning_rate: float,
    final_learning_rate: float,
    warmup_learning_rate: float,
    warmup_steps: int,
    total_steps: int,
) -> Schedule:
    """Return the learning rate as a function of the update, counted from 0: linear warm-up, then cosine or constant.

    The cosine is that of the official Swin recipe (timm's CosineLRScheduler with `warmup_prefix`): it starts at
    `learning_rate` in update `warmup_steps` and would reach `final_learning_rate` in update `total_steps`. The
    official loop sets the rate after each update and so lags this curve by one update. A run shorter than its
    warm-up, as for a quick look, ends within it.
    """
    if schedule not in ("cosine", "constant"):
        raise UserError(f"unknown schedule {schedule!r}{did_you_mean(schedule, ('cosine', 'constant'))}")

    def learning_rate_at(step):
        step = jnp.asarray(step, jnp.float32)
        warmup = warmup_learning_rate + step * ((learning_rate - warmup_learning_rate) / max(warmup_steps, 1))
        remaining = jnp.clip((total_steps - step) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
        # sin² is the published (1 + cos) / 2 without its cancellation in float32 towards the end
        half_wave = jnp.sin(0.5 * jnp.pi * remaining) ** 2
        cosine = final_learning_rate + (learning_rate - final_learning_rate) * half_wave
        return jnp.where(step < warmup_steps, warmup, cosine if schedule == "cosine" else learning_rate)

    return learning_rate_at


def decay_mask(params: Any) -> Any:
    """Return the tree of booleans that says which parameters weight decay acts on.

    None on 1-D parameters, biases of any shape (a fused qkv bias has three axes), tokens and position tables, as the
    published Swin, ViT and DeiT recipes have it.
    """
    named = re.compile(rf"(^|[._])({'|'.join(NO_DECAY_NAMES)})$")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim > 1 and not named.search(path_name(path)), params
    )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale the gradient so that its global norm is at most `max_norm`, with the 1e-6 of torch's clip_grad_norm_."""

    def clip(updates, params=None):
        scale = jnp.minimum(1.0, max_norm / (optax.global_norm(updates) + 1e-6))
        return jax.tree.map(lambda update: update * scale.astype(update.dtype), updates)

    return optax.stateless(clip)


def create_optimizer(
    *,
    name: str,
    schedule: Schedule,
    weight_decay: float,
    b1: float,
    b2: float,
    eps: float,
    momentum: float,
    nesterov: bool,
    grad_clip_norm: float,
) -> optax.GradientTransformation:
    """Return the optimizer, which computes what torch's AdamW or SGD does with the same arguments.

    AdamW decays by `learning_rate * weight_decay` apart from the gradient; SGD adds `weight_decay * parameter` to the
    clipped gradient before the momentum.
    """
    decay = optax.add_decayed_weights(weight_decay, mask=decay_mask) if weight_decay else optax.identity()
    if name == "adamw":
        direction = optax.chain(optax.scale_by_adam(b1, b2, eps), decay)
    elif name == "sgd":
        direction = optax.chain(decay, optax.trace(momentum, nesterov) if momentum else optax.identity())
    else:
        raise UserError(f"unknown optimizer {name!r}{did_you_mean(name, ('adamw', 'sgd'))}")
    clip = clip_by_global_norm(grad_clip_norm) if grad_clip_norm else optax.identity()
    return optax.chain(clip, direction, optax.scale_by_learning_rate(schedule))

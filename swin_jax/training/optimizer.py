"""The optimizers as the published recipes run them: clipping, direction, weight decay and schedule, in raw optax."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from swin_jax.errors import UserError, did_you_mean
from swin_jax.training.muon import muon_mask, scale_by_muon_and_adam
from swin_jax.training.parameter_groups import Multipliers, decay_factors, learning_rate_factors
from swin_jax.training.schedules import Schedule
from swin_jax.training.stacking import Layout

OPTIMIZERS = ("adamw", "sgd", "lamb", "lion", "adafactor", "muon")


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
    momentum_dtype: str = "",
    muon_momentum: float = 0.95,
    adam_learning_rate_share: float = 1.0,
    adam_parameters: Sequence[str] = (),
    peak_learning_rate: float | None = None,
    learning_rate_multipliers: Multipliers = (),
    weight_decay_multipliers: Multipliers = (),
    layer_decay: float = 1.0,
    layout: Layout | None = None,
) -> optax.GradientTransformation:
    """Return the optimizer; adamw and sgd compute what torch's do with the same arguments.

    - `adamw` decays by `learning_rate * weight_decay` apart from the gradient.
    - `sgd` adds `weight_decay * parameter` to the clipped gradient before the momentum.
    - `lamb` (arXiv 1904.00962) is AdamW whose update is scaled to the norm of its parameter, as apex's FusedLAMB and
      timm's Lamb do it: not for the parameters that weight decay spares.
    - `lion` (arXiv 2302.06675, algorithm 2), with the decay of adamw.
    - `adafactor` is the variant of "Scaling Vision Transformers" (arXiv 2106.04560, section 3.4) at Adam's scale of
      learning rates: second moments factored where two axes have 32 entries, averaged with 1 - t**-0.8 but at most
      `b2`, first moments with `b1`, no scaling by the parameters; with the decay of adamw.
    - `muon` is Muon for the kernels between embedding and head, Adam for all else (see `scale_by_muon_and_adam`); each
      decays as adamw does, at its own learning rate.

    Args:
        momentum_dtype: of the first moments; "" for that of the parameters.
        muon_momentum, adam_learning_rate_share, adam_parameters: of muon alone. The learning rate of Adam is that share
            of Muon's at every update; `adam_parameters` are regular expressions, see `muon_mask`.
        peak_learning_rate: if given, weight decay does not depend on the learning rate, as in big_vision: it takes
            `weight_decay * schedule / peak_learning_rate` of the parameter, outside of momentum and trust ratio.
        learning_rate_multipliers: ((pattern, factor), ...), see `match_multipliers`. They scale the whole update, so
            decay as well unless that is independent of the learning rate. A parameter with factor 0 is frozen: no
            update, no decay, no state, and no share in the gradient's norm for clipping.
        weight_decay_multipliers: in the same form; they stand in for the default, 1 or 0 as `decay_mask` says.
        layer_decay: factor of the learning rate from each layer to the one below it, see `layer_factors`.
        layout: of the parameters that will be given, if layers are stacked in them.

    Raises UserError for an unknown name and, when first given the parameters, for multipliers that do not fit them.
    """
    if name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise UserError(f"unknown optimizer {name!r}{did_you_mean(name, OPTIMIZERS)} (known: {known})")
    if momentum_dtype not in ("", "float32", "bfloat16"):
        raise UserError(f"optimizer.momentum_dtype={momentum_dtype!r} is none of '', 'float32', 'bfloat16'")
    if adam_parameters and name != "muon":
        raise UserError(f"optimizer.adam_parameters={adam_parameters} is for optimizer.name='muon', not {name!r}")
    if peak_learning_rate == 0:
        raise UserError("weight decay cannot be independent of a learning rate of 0")
    accumulator = momentum_dtype or None

    def transformation(params: Any) -> optax.GradientTransformation:
        paths = layout.ordinary_shapes(params) if layout else params
        factors = learning_rate_factors(paths, multipliers=learning_rate_multipliers, layer_decay=layer_decay)
        decay = decay_factors(paths, weight_decay_multipliers)
        if layout:
            factors, decay = layout.shared(factors), layout.shared(decay)
        is_adapted = jax.tree.map(lambda factor: factor > 0, decay)
        if peak_learning_rate is None:
            inner, outer = _add_decay(weight_decay, decay), []
        else:  # the factors of the learning rate come last, so the decay is divided by them here
            own = jax.tree.map(lambda rate, factor: rate / factor if factor else 0.0, decay, factors)
            inner, outer = optax.identity(), [_add_decay(weight_decay / peak_learning_rate, own)]
        if name == "adamw":
            direction = optax.chain(optax.scale_by_adam(b1, b2, eps, mu_dtype=accumulator), inner)
        elif name == "sgd":
            trace = optax.trace(momentum, nesterov, accumulator) if momentum else optax.identity()
            direction = optax.chain(inner, trace)
        elif name == "lamb":
            trust = optax.masked(optax.scale_by_trust_ratio(), is_adapted)
            direction = optax.chain(optax.scale_by_adam(b1, b2, eps, mu_dtype=accumulator), inner, trust)
        elif name == "lion":
            direction = optax.chain(optax.scale_by_lion(b1, b2, mu_dtype=accumulator), inner)
        elif name == "adafactor":
            direction = optax.chain(_scale_by_adafactor(b1, b2, accumulator), inner)
        else:
            is_matrix = muon_mask(params, adam_parameters)
            is_adam = jax.tree.map(lambda matrix: not matrix, is_matrix)
            scaled = scale_by_muon_and_adam(
                is_matrix, momentum=muon_momentum, nesterov=nesterov, b1=b1, b2=b2, eps=eps, momentum_dtype=accumulator
            )
            direction = optax.chain(scaled, inner, optax.masked(optax.scale(adam_learning_rate_share), is_adam))
        clip = clip_by_global_norm(grad_clip_norm) if grad_clip_norm else optax.identity()
        steps = optax.chain(clip, direction, *outer, optax.scale_by_learning_rate(schedule))
        if not any(factor != 1.0 for factor in jax.tree.leaves(factors)):
            return steps
        if not all(jax.tree.leaves(factors)):
            steps = optax.masked(steps, jax.tree.map(lambda factor: factor != 0, factors))
        return optax.chain(steps, _scale_by_factors(factors))

    # Groups follow from the parameters' paths, which optax hands over with each call; made anew, they cost no time on
    # the device, and the state is that of the plain chain.
    return optax.GradientTransformation(
        init=lambda params: transformation(params).init(params),
        update=lambda updates, state, params=None: transformation(params).update(updates, state, params),
    )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale the gradient so that its global norm is at most `max_norm`, with the 1e-6 of torch's clip_grad_norm_."""

    def clip(updates, params=None):
        scale = jnp.minimum(1.0, max_norm / (optax.global_norm(updates) + 1e-6))
        return jax.tree.map(lambda update: update * scale.astype(update.dtype), updates)

    return optax.stateless(clip)


def _add_decay(weight_decay: float, factors: Any) -> optax.GradientTransformation:
    """Add `weight_decay * factor * parameter` to the updates, one transformation for each factor."""

    def group(value: float) -> optax.GradientTransformation:
        mask = jax.tree.map(lambda factor: factor == value, factors)
        return optax.add_decayed_weights(weight_decay * value, mask=mask)

    values = dict.fromkeys(jax.tree.leaves(factors)) if weight_decay else ()
    groups = [group(value) for value in values if value]
    return optax.chain(*groups) if len(groups) > 1 else groups[0] if groups else optax.identity()


def _scale_by_factors(factors: Any) -> optax.GradientTransformation:
    """Multiply each update by its factor; those of factor 0 become 0 whatever they were."""

    def scale(updates, params=None):
        return jax.tree.map(
            lambda factor, update: update * factor if factor else jnp.zeros_like(update), factors, updates
        )

    return optax.stateless(scale)


def _scale_by_adafactor(b1: float, b2: float, accumulator: str | None) -> optax.GradientTransformation:
    def decay_rate(step, exponent):
        return jnp.minimum(b2, 1.0 - (jnp.asarray(step, jnp.float32) + 1.0) ** -exponent)

    rms = optax.scale_by_factored_rms(min_dim_size_to_factor=32, decay_rate=0.8, decay_rate_fn=decay_rate)
    return optax.chain(rms, optax.ema(b1, debias=False, accumulator_dtype=accumulator)) if b1 else rms

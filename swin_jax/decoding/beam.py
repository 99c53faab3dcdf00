"""Beam search, batched and with the cache: finished hypotheses are kept apart from the live ones."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from swin_jax.decoding.inputs import Inputs, TokenIds, TokenRules, prefill, prepare
from swin_jax.errors import UserError, did_you_mean
from swin_jax.nn.cache import DecodingCache

STOPS = ("exact", "heuristic", "full")
PENALTIES = ("gnmt", "power")


class Hypotheses(NamedTuple):
    """The best continuations of each prompt, best first; a search that found fewer has scores of -inf at the end."""

    tokens: Array  # int32 [B, beams, max_new_tokens], `pad_id` behind the end
    lengths: Array  # int32 [B, beams], with the eos
    scores: Array  # float32 [B, beams], log-probability / penalty(length)


@partial(jax.tree_util.register_dataclass, data_fields=["alpha"], meta_fields=["form"])  # another alpha: no compiling
@dataclasses.dataclass(frozen=True)
class LengthPenalty:
    """What a hypothesis' log-probability is divided by, so that long ones are not always the worse.

    "gnmt" is ((5 + length) / 6)^alpha (arXiv 1609.08144, eq. 14), which arXiv 1706.03762 uses with alpha 0.6 and beams
    of 4; "power" is length^alpha, HF's. The length counts the new tokens, the eos among them. alpha 0: no penalty.
    """

    alpha: float = 0.6
    form: str = "gnmt"

    def __post_init__(self):
        if self.form not in PENALTIES:
            raise UserError(f"length penalty {self.form!r} is none of {', '.join(map(repr, PENALTIES))}")

    def __call__(self, length: Array | int) -> Array:
        length = jnp.asarray(length, jnp.float32)
        return (length if self.form == "power" else (5.0 + length) / 6.0) ** self.alpha


def beam_search(
    model: nnx.Module,
    prompts: Sequence[TokenIds],
    *,
    max_new_tokens: int,
    source: Sequence[TokenIds] | None = None,
    beams: int = 4,
    length_penalty: LengthPenalty | None = None,
    stop: str = "exact",
    prefix: bool = False,
    rules: TokenRules | None = None,
    prompt_length: int | None = None,
    source_length: int | None = None,
) -> Hypotheses:
    """Search for the most probable continuations of each prompt, up to `max_new_tokens` tokens.

    At each step the 2 · beams most probable extensions of the live hypotheses are found. Those of the first `beams` of
    them that end are finished, and compete for `beams` places by their scores; the best `beams` that do not end live
    on. Without room for more, all end.

    Args:
        model, prompts, source, prefix, prompt_length, source_length: as of `generate`.
        beams: hypotheses kept; 1 is greedy decoding, but for `stop`.
        length_penalty: (5 + length)/6 to the power of 0.6 if None.
        stop: when a prompt is done, once it has `beams` finished hypotheses. "exact": when no live one can come to beat
            the worst of them. "heuristic": when none would beat it if it ended at its present length. "full": at
            once. HF's `early_stopping` "never", False (its default) and True.
        rules: see `TokenRules`.

    Raises UserError as `generate` does.
    """
    rules = TokenRules() if rules is None else rules
    rules.check(model.vocab_size)
    if beams < 1:
        raise UserError(f"{beams=} must be at least 1")
    if stop not in STOPS:
        raise UserError(f"{stop=} is none of {', '.join(map(repr, STOPS))}{did_you_mean(stop, STOPS)}")
    if model.vocab_size < 2:
        raise UserError(f"there is nothing to search with vocab_size={model.vocab_size}")
    inputs = prepare(
        model,
        prompts,
        source,
        max_new_tokens=max_new_tokens,
        prompt_length=prompt_length,
        source_length=source_length,
        pad_id=rules.pad_id,
    )
    graphdef, arrays = nnx.split(model)
    return _search(
        graphdef,
        arrays,
        inputs,
        LengthPenalty() if length_penalty is None else length_penalty,
        beams=beams,
        stop=stop,
        rules=rules,
        max_new_tokens=max_new_tokens,
        prefix=prefix,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Progress:
    step: Array  # int32 []
    cache: DecodingCache  # of B · beams rows
    last: Array  # int32 [B, beams], the model's next inputs
    live_tokens: Array  # int32 [B, beams, max_new_tokens]
    live_log_probs: Array  # float32 [B, beams], best first; -inf where there is no hypothesis
    finished: Hypotheses
    searches: Array  # [B]


@partial(jax.jit, static_argnames=("graphdef", "beams", "stop", "rules", "max_new_tokens", "prefix"))
def _search(
    graphdef: nnx.GraphDef,
    arrays: nnx.State,
    inputs: Inputs,
    penalty: LengthPenalty,
    *,
    beams: int,
    stop: str,
    rules: TokenRules,
    max_new_tokens: int,
    prefix: bool,
) -> Hypotheses:
    model = nnx.merge(graphdef, arrays)
    batch_size = inputs.tokens.shape[0]

    def goes_on(progress: _Progress) -> Array:
        return (progress.step < max_new_tokens) & progress.searches.any()

    def advance(progress: _Progress) -> _Progress:
        step, length = progress.step, progress.step + 1
        logits, cache = model.decode(progress.last.reshape(-1, 1), progress.cache)
        is_last = length == max_new_tokens
        log_probs = rules.log_probs(logits.reshape(batch_size, beams, -1), is_last)  # [B, beams, V]
        totals = (progress.live_log_probs[:, :, None] + log_probs).reshape(batch_size, -1)
        # At most `beams` of twice as many end, so enough are left to live on.
        best, places = jax.lax.top_k(totals, 2 * beams)
        parents, chosen = jnp.divmod(places, log_probs.shape[-1])  # [B, 2 · beams]
        tokens = _take(progress.live_tokens, parents).at[:, :, step].set(chosen)
        ends = jnp.broadcast_to(is_last, chosen.shape) if rules.eos_id is None else is_last | (chosen == rules.eos_id)

        ends_now = ends & (jnp.arange(2 * beams) < beams) & progress.searches[:, None]
        scores = jnp.where(ends_now, best / penalty(length), -jnp.inf)
        lengths = jnp.broadcast_to(length, scores.shape)
        finished = _best(progress.finished, Hypotheses(tokens, lengths, scores), beams)

        live_log_probs, order = jax.lax.top_k(jnp.where(ends, -jnp.inf, best), beams)
        parents = jnp.take_along_axis(parents, order, axis=1)
        rows = (jnp.arange(batch_size)[:, None] * beams + parents).reshape(-1)
        return _Progress(
            step=length,
            cache=_reorder(cache, rows),
            last=jnp.take_along_axis(chosen, order, axis=1),
            live_tokens=_take(tokens, order),
            live_log_probs=live_log_probs,
            finished=finished,
            searches=progress.searches & can_improve(live_log_probs[:, 0], finished.scores[:, -1], length),
        )

    def can_improve(best_live: Array, worst_finished: Array, length: Array) -> Array:
        """Tell of each row whether its best live hypothesis may yet beat the worst finished one, `[B]`."""
        if stop == "full":
            return jnp.isneginf(worst_finished)
        divisor = penalty(length)
        if stop == "exact":  # log-probabilities only fall, so the largest divisor to come bounds the score
            divisor = jnp.maximum(divisor, penalty(max_new_tokens))
        return best_live / divisor > worst_finished

    cache, last = prefill(model, inputs, max_new_tokens, prefix=prefix)
    no_tokens = jnp.full((batch_size, beams, max_new_tokens), rules.pad_id, jnp.int32)
    no_scores = jnp.full((batch_size, beams), -jnp.inf)
    begin = _Progress(
        step=jnp.zeros((), jnp.int32),
        cache=cache.take(jnp.repeat(jnp.arange(batch_size), beams)),
        last=jnp.repeat(last[:, None], beams, axis=1),
        live_tokens=no_tokens,
        live_log_probs=no_scores.at[:, 0].set(0.0),  # all beams are the same prompt: one of them counts
        finished=Hypotheses(no_tokens, jnp.zeros((batch_size, beams), jnp.int32), no_scores),
        searches=jnp.ones((batch_size,), bool),
    )
    return jax.lax.while_loop(goes_on, advance, begin).finished


def _best(finished: Hypotheses, new: Hypotheses, beams: int) -> Hypotheses:
    together = Hypotheses(*(jnp.concatenate(pair, axis=1) for pair in zip(finished, new, strict=True)))
    scores, order = jax.lax.top_k(together.scores, beams)
    return Hypotheses(_take(together.tokens, order), jnp.take_along_axis(together.lengths, order, axis=1), scores)


def _take(sequences: Array, places: Array) -> Array:
    """Return the sequences `[B, K, T]` at places `[B, M]` as `[B, M, T]`."""
    return jnp.take_along_axis(sequences, places[:, :, None], axis=1)


def _reorder(cache: DecodingCache, rows: Array) -> DecodingCache:
    """Return the cache with the beams that live on; the encoder's output is the same for all beams of a prompt."""
    moved = dataclasses.replace(cache, context=None, context_mask=None).take(rows)
    return dataclasses.replace(moved, context=cache.context, context_mask=cache.context_mask)

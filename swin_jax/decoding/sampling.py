"""Greedy decoding and sampling, with temperature, top-k (arXiv 1805.04833) and nucleus (arXiv 1904.09751)."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from swin_jax.decoding.inputs import Inputs, TokenIds, TokenRules, prefill, prepare
from swin_jax.errors import UserError
from swin_jax.nn.cache import DecodingCache


class Generated(NamedTuple):
    """One continuation for each prompt."""

    tokens: Array  # int32 [B, max_new_tokens], `pad_id` behind the end
    lengths: Array  # int32 [B], with the eos
    log_probs: Array  # float32 [B], what the model gives them, whatever the temperature, top-k and top-p


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn: the temperature first, then `top_k`, then `top_p`, as HF has it.

    Args:
        temperature: divides the logits; 0 takes the most probable token.
        top_k: draw from the k most probable tokens; 0 for all.
        top_p: draw from the fewest tokens that together have at least this probability.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not self.temperature >= 0.0:
            raise UserError(f"temperature={self.temperature} must not be negative")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k} must not be negative")
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top_p={self.top_p} must be above 0 and at most 1")

    def filter(self, log_probs: Array) -> Array:
        """Map log-probabilities `[..., vocab_size]` to unnormalized ones to draw from, -inf for what is left out.

        Tokens as probable as the last one kept are kept too.
        """
        log_probs = log_probs / self.temperature
        if not self.top_k and self.top_p == 1.0:
            return log_probs
        highest = jax.lax.top_k(log_probs, min(self.top_k or log_probs.shape[-1], log_probs.shape[-1]))[0]
        probabilities = jax.nn.softmax(highest)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        # The first is always kept, even where rounding has its turn.
        in_nucleus = (before < self.top_p).at[..., 0].set(True)
        lowest = jnp.where(in_nucleus, highest, jnp.inf).min(axis=-1, keepdims=True)
        return jnp.where(log_probs >= lowest, log_probs, -jnp.inf)

    def choose(self, log_probs: Array, keys: Array, step: Array) -> Array:
        """Return a token for each row of `[B, vocab_size]`; each has a key of its own, `[B]`."""
        if self.temperature == 0.0:
            return log_probs.argmax(axis=-1).astype(jnp.int32)
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        return jax.vmap(jax.random.categorical)(keys, self.filter(log_probs)).astype(jnp.int32)


def generate(
    model: nnx.Module,
    prompts: Sequence[TokenIds],
    *,
    max_new_tokens: int,
    source: Sequence[TokenIds] | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    prefix: bool = False,
    rules: TokenRules | None = None,
    key: Array | None = None,
    prompt_length: int | None = None,
    source_length: int | None = None,
) -> Generated:
    """Continue each prompt by up to `max_new_tokens` tokens, until all have ended.

    Args:
        model: a `CausalTransformer`, or a `Transformer`, whose prompts are the beginnings of the targets.
        prompts: token ids, of any lengths; for a `Transformer` usually `[[bos_id]]` for each source.
        source: token ids that the encoder reads, with the eos they were trained with.
        temperature, top_k, top_p: see `Sampling`; temperature 0 is greedy decoding.
        prefix: the prompts are prefixes of a prefix language model; see `prefill`.
        rules: see `TokenRules`.
        key: what is drawn is a function of it and the place in the batch, not of the batch's size.
        prompt_length, source_length: pad to these, so that batches of several lengths share a compiled program.

    Raises UserError for token ids out of range, empty prompts, and more tokens than the model's context.
    """
    rules = TokenRules() if rules is None else rules
    rules.check(model.vocab_size)
    sampling = Sampling(temperature, top_k, top_p)
    if key is None:
        if temperature:
            raise UserError(f"temperature={temperature} needs key=, for what is drawn")
        key = jax.random.key(0)  # never used
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
    options = dict(sampling=sampling, rules=rules, max_new_tokens=max_new_tokens, prefix=prefix)
    return _generate(graphdef, arrays, inputs, key, **options)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Progress:
    step: Array  # int32 []
    last: Array  # int32 [B], the model's next input
    cache: DecodingCache
    generated: Generated
    has_ended: Array  # [B]


@partial(jax.jit, static_argnames=("graphdef", "sampling", "rules", "max_new_tokens", "prefix"))
def _generate(
    graphdef: nnx.GraphDef,
    arrays: nnx.State,
    inputs: Inputs,
    key: Array,
    *,
    sampling: Sampling,
    rules: TokenRules,
    max_new_tokens: int,
    prefix: bool,
) -> Generated:
    model = nnx.merge(graphdef, arrays)
    batch_size = inputs.tokens.shape[0]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch_size))

    def goes_on(progress: _Progress) -> Array:
        return (progress.step < max_new_tokens) & ~progress.has_ended.all()

    def advance(progress: _Progress) -> _Progress:
        step, has_ended, so_far = progress.step, progress.has_ended, progress.generated
        logits, cache = model.decode(progress.last[:, None], progress.cache)
        log_probs = rules.log_probs(logits[:, 0], step == max_new_tokens - 1)
        chosen = jnp.where(has_ended, rules.pad_id, sampling.choose(log_probs, keys, step))
        gained = jnp.take_along_axis(log_probs, chosen[:, None], axis=1)[:, 0]
        generated = Generated(
            tokens=so_far.tokens.at[:, step].set(chosen),
            lengths=so_far.lengths + ~has_ended,
            log_probs=so_far.log_probs + jnp.where(has_ended, 0.0, gained),
        )
        if rules.eos_id is not None:
            has_ended = has_ended | (chosen == rules.eos_id)
        return _Progress(step + 1, chosen, cache, generated, has_ended)

    cache, last = prefill(model, inputs, max_new_tokens, prefix=prefix)
    nothing = Generated(
        tokens=jnp.full((batch_size, max_new_tokens), rules.pad_id, jnp.int32),
        lengths=jnp.zeros((batch_size,), jnp.int32),
        log_probs=jnp.zeros((batch_size,), jnp.float32),
    )
    begin = _Progress(jnp.zeros((), jnp.int32), last, cache, nothing, jnp.zeros((batch_size,), bool))
    return jax.lax.while_loop(goes_on, advance, begin).generated

"""What greedy decoding, sampling and beam search share: prompts as arrays, the first pass, which tokens may follow."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from swin_jax.errors import UserError
from swin_jax.nn.cache import DecodingCache

TokenIds = Sequence[int] | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a batch begins with; a pytree."""

    tokens: np.ndarray  # int32 [B, P], padded on the left, so that all rows go on at the same place
    start: np.ndarray  # int32 [B], where each row begins
    source: np.ndarray | None  # int32 [B, S], padded on the right
    source_segments: np.ndarray | None  # int32 [B, S], 0 for padding


@dataclasses.dataclass(frozen=True)
class TokenRules:
    """Which tokens may follow, and what ends a sequence.

    Args:
        eos_id: the token that ends a sequence and belongs to it; None if there is none.
        pad_id: stands behind the end in what is returned.
        suppressed_ids: tokens that are never generated; their probability is not given to the others.
        force_eos: the last token that there is room for is `eos_id`, whatever the model says, at no cost to the
            score: what HF calls `forced_eos_token_id`, as Marian's published models have it.
    """

    eos_id: int | None = None
    pad_id: int = 0
    suppressed_ids: tuple[int, ...] = ()
    force_eos: bool = False

    def check(self, vocab_size: int) -> None:
        """Raise UserError for ids that are none of the model's, and for rules that leave nothing to generate."""
        given = {"pad_id": self.pad_id, "eos_id": self.eos_id}
        given |= {f"suppressed_ids[{place}]": token for place, token in enumerate(self.suppressed_ids)}
        for name, token in given.items():
            if token is not None and not 0 <= token < vocab_size:
                raise UserError(f"{name}={token} is out of range for vocab_size={vocab_size}")
        if self.force_eos and self.eos_id is None:
            raise UserError("force_eos needs an eos_id")
        if len(set(self.suppressed_ids)) == vocab_size:
            raise UserError(f"suppressed_ids leave none of the {vocab_size} tokens")

    def log_probs(self, logits: Array, is_last: Array) -> Array:
        """Map logits `[..., vocab_size]` to log-probabilities, -inf for what may not follow."""
        log_probs = jax.nn.log_softmax(logits)
        if self.suppressed_ids:
            log_probs = log_probs.at[..., np.array(self.suppressed_ids)].set(-jnp.inf)
        if self.force_eos:
            is_eos = jnp.arange(logits.shape[-1]) == self.eos_id
            log_probs = jnp.where(is_last, jnp.where(is_eos, 0.0, -jnp.inf), log_probs)
        return log_probs


def prepare(
    model: nnx.Module,
    prompts: Sequence[TokenIds],
    source: Sequence[TokenIds] | None,
    *,
    max_new_tokens: int,
    prompt_length: int | None,
    source_length: int | None,
    pad_id: int,
) -> Inputs:
    """Return the arrays of `prompts` and `source`, checked against the model. Raises UserError for what does not fit.

    `prompt_length` and `source_length` pad to more than the longest, so that batches of several lengths share a
    compiled program.
    """
    if not hasattr(model, "decode"):
        raise UserError(f"{type(model).__name__} does not generate: it has no decoder")
    if max_new_tokens < 1:
        raise UserError(f"{max_new_tokens=} must be at least 1")
    if model.has_encoder != (source is not None):
        needs = "needs a source" if model.has_encoder else "takes no source"
        raise UserError(f"{type(model).__name__} {needs}")
    limit = None if model.is_rotary else model.max_length
    vocab_size = model.vocab_size
    tokens, lengths = _rows(prompts, "prompt", prompt_length, vocab_size, limit, pad_id, on_the_left=True)
    if limit is not None and tokens.shape[1] + max_new_tokens > limit:
        together = f"a prompt of {tokens.shape[1]} tokens and {max_new_tokens} new ones"
        raise UserError(f"{together} are more than the model's context of {limit}")
    if source is None:
        return Inputs(tokens, tokens.shape[1] - lengths, None, None)
    if len(source) != len(prompts):
        raise UserError(f"{len(prompts)} prompts do not belong to {len(source)} sources")
    sources, source_lengths = _rows(source, "source", source_length, vocab_size, limit, pad_id, on_the_left=False)
    segments = (np.arange(sources.shape[1]) < source_lengths[:, None]).astype(np.int32)
    return Inputs(tokens, tokens.shape[1] - lengths, sources, segments)


def _rows(
    sequences: Sequence[TokenIds],
    name: str,
    length: int | None,
    vocab_size: int,
    limit: int | None,
    pad_id: int,
    *,
    on_the_left: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sequences padded to one length, `[B, N]`, and their lengths, `[B]`."""
    if not len(sequences):
        raise UserError(f"there is no {name}")
    rows = [np.asarray(sequence).reshape(-1) for sequence in sequences]
    lengths = np.array([len(row) for row in rows], np.int32)
    for number, row in enumerate(rows):
        which = f"{name} {number}"
        if not len(row):
            raise UserError(f"{which} is empty")
        if limit is not None and len(row) > limit:
            raise UserError(f"{which} has {len(row)} tokens, more than the model's context of {limit}")
        if length is not None and len(row) > length:
            raise UserError(f"{which} has {len(row)} tokens, more than {name}_length={length}")
        if row.dtype.kind not in "iu":
            raise UserError(f"{which} is no sequence of token ids: {row[:3].tolist()}")
        wrong = row[(row < 0) | (row >= vocab_size)]
        if len(wrong):
            raise UserError(f"token id {wrong[0]} in {which} is out of range for vocab_size={vocab_size}")
    tokens = np.full((len(rows), length or lengths.max()), pad_id, np.int32)
    for padded, row in zip(tokens, rows, strict=True):
        padded[slice(-len(row), None) if on_the_left else slice(len(row))] = row
    return tokens, lengths


def prefill(
    model: nnx.Module, inputs: Inputs, max_new_tokens: int, *, prefix: bool = False
) -> tuple[DecodingCache, Array]:
    """Return a cache with all of the prompts but their last tokens, and those, `[B]`.

    The last tokens are left to the loop that generates: so no logits of the prompt are computed, which for a large
    vocabulary would take more memory than all else, and the model is compiled only once if the prompt is one token.
    With `prefix` all tokens but the last see each other both ways: a prefix of one token less than the prompt.
    """
    batch_size, length = inputs.tokens.shape
    room = length + max_new_tokens - 1  # the last new token is never an input
    if inputs.source is None:
        cache = model.init_cache(batch_size, room)
    else:
        cache = model.init_cache(inputs.source, room, source_segments=inputs.source_segments)
    cache = dataclasses.replace(cache, start=inputs.start)
    if length > 1:
        _, cache = model.decode(inputs.tokens[:, :-1], cache, **({"both_ways": True} if prefix else {}))
    return cache, inputs.tokens[:, -1]


def token_lists(tokens: Array, lengths: Array, *, eos_id: int | None = None) -> list[list[int]]:
    """Return the rows `[B, N]` as lists of their own lengths, without `eos_id` at their ends."""
    rows = [row[:length].tolist() for row, length in zip(np.asarray(tokens), np.asarray(lengths), strict=True)]
    return [row[:-1] if row and row[-1] == eos_id else row for row in rows]

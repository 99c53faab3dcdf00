"""Language modelling (the next token, masked tokens, a text after its prefix) and sequence to sequence."""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from swin_jax.errors import UserError, did_you_mean
from swin_jax.tasks import LOSS_WEIGHT

OBJECTIVES = ("next", "masked", "prefix")
# What becomes of a token chosen to be predicted: the rest of them stays as it is (BERT, arXiv 1810.04805, section 3.1).
MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1


class LanguageModeling:
    """Cross-entropy of tokens on batches of int32 `tokens` and `segments` `[B, L + 1]`.

    Objectives: `next`, each token from those before it (a `CausalTransformer`); `prefix`, the same behind a prefix of
    random length whose tokens see each other (arXiv 1910.10683, section 3.2.1); `masked`, a share `mask_rate` of the
    tokens, the last one aside, from all others (a `MaskedTransformer`). In evaluation a prefix is half of the text, and
    which tokens are masked depends on the text alone. Tokens count where `scored`, if a batch has it.

    Args:
        token_characters: `[vocab_size]`, the characters of each token, for bits per character.
        packed: whether a row may hold several texts. If not, a causal model need not be told of segments: what follows
            a text is never seen from it, and all rows share one mask and their positions.
    """

    best_metric, lowest_is_best = "loss", True

    def __init__(
        self,
        *,
        vocab_size: int,
        mask_id: int | None = None,
        token_characters: Sequence[float] | None = None,
        objective: str = "next",
        mask_rate: float = 0.15,
        label_smoothing: float = 0.0,
        packed: bool = True,
    ):
        if objective not in OBJECTIVES:
            near = did_you_mean(objective, OBJECTIVES)
            raise UserError(f"unknown objective {objective!r}, known: {', '.join(OBJECTIVES)}{near}")
        if objective == "masked" and mask_id is None:
            raise UserError("the objective 'masked' needs a tokenizer with a mask token")
        check_shares(mask_rate=mask_rate, label_smoothing=label_smoothing)
        self.vocab_size, self.mask_id = vocab_size, mask_id
        self.objective, self.mask_rate, self.label_smoothing = objective, mask_rate, label_smoothing
        self.packed = packed
        self.token_characters = None if token_characters is None else np.asarray(token_characters, np.float32)

    def loss(
        self, model: nnx.Module, batch: Mapping[str, jax.Array], rngs: nnx.Rngs
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the mean loss over the tokens to be predicted, and how many of them are the likeliest."""
        tokens, segments = batch["tokens"], batch["segments"]
        key = rngs.augment()
        if self.objective == "masked":
            tokens, segments = tokens[:, :-1], segments[:, :-1]
            inputs, chosen = self._mask(tokens, segments, jax.random.split(key, len(tokens)))
            logits, targets, weights = model(inputs, segments=segments, rngs=rngs), tokens, chosen
        else:
            lengths = None
            if self.objective == "prefix":
                shares = jax.random.uniform(key, (len(tokens),))
                lengths = prefix_lengths(segments[:, :-1], shares)
            logits, targets, weights = self._predict(model, tokens, segments, lengths, rngs)
        return training_loss(logits, targets, weights, label_smoothing=self.label_smoothing)

    def evaluate(self, model: nnx.Module, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return the sums of loss, hits, tokens and characters over the tokens that count."""
        tokens, segments = batch["tokens"], batch["segments"]
        scored = batch.get("scored")
        if self.objective == "masked":
            tokens, segments, scored = tokens[:, :-1], segments[:, :-1], None if scored is None else scored[:, :-1]
            keys = jax.vmap(_key_of_text)(jnp.where(segments > 0, tokens, 0))
            inputs, weights = self._mask(tokens, segments, keys)
            logits, targets = model(inputs, segments=segments), tokens
        else:
            halves = jnp.full(len(tokens), 0.5)
            lengths = prefix_lengths(segments[:, :-1], halves) if self.objective == "prefix" else None
            logits, targets, weights = self._predict(model, tokens, segments, lengths, None)
            scored = None if scored is None else scored[:, 1:]
        weights = weights & batch["valid"][:, None]
        weights = weights if scored is None else weights & scored
        sums = token_sums(logits, targets, weights)
        if self.token_characters is not None:
            sums["characters"] = (jnp.asarray(self.token_characters)[targets] * weights).sum()
        return sums

    def summarize(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return loss in nats a token, perplexity, accuracy, bits per character, and the number of tokens."""
        figures = token_figures(sums)
        if "characters" in sums and self.objective != "masked":
            figures["bits_per_character"] = sums["loss"] / math.log(2) / max(sums["characters"], 1.0)
        return figures

    def _predict(self, model, tokens, segments, lengths, rngs) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return logits, targets and which of them count: tokens after the first of a text, behind the prefix."""
        options = {} if lengths is None else {"prefix_lengths": lengths}
        if self.packed or lengths is not None:
            options["segments"] = segments[:, :-1]
        logits = model(tokens[:, :-1], rngs=rngs, **options)
        weights = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        if lengths is not None:
            weights &= jnp.arange(1, tokens.shape[1]) >= lengths[:, None]
        return logits, tokens[:, 1:], weights

    def _mask(self, tokens: jax.Array, segments: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the tokens with some of them hidden, and which are to be predicted; a key for each row."""

        def mask_row(tokens, segments, key):
            chosen_key, kind_key, token_key = jax.random.split(key, 3)
            chosen = jax.random.bernoulli(chosen_key, self.mask_rate, tokens.shape) & (segments > 0)
            kind = jax.random.uniform(kind_key, tokens.shape)
            random_tokens = jax.random.randint(token_key, tokens.shape, 0, self.vocab_size)
            hidden = jnp.where(kind < MASKED_SHARE + RANDOM_SHARE, random_tokens, tokens)
            hidden = jnp.where(kind < MASKED_SHARE, self.mask_id, hidden)
            return jnp.where(chosen, hidden, tokens), chosen

        return jax.vmap(mask_row)(tokens, segments, keys)


class SequenceToSequence:
    """Cross-entropy of target tokens, with label smoothing (arXiv 1706.03762, section 5.4), for a `Transformer`.

    Batches have int32 `source` `[B, S]` and `target` `[B, T + 1]`, and `source_segments`, `target_segments` of the same
    shapes; a target begins with a token that only starts it.
    """

    best_metric, lowest_is_best = "loss", True

    def __init__(self, *, vocab_size: int, label_smoothing: float = 0.0):
        check_shares(label_smoothing=label_smoothing)
        self.vocab_size, self.label_smoothing = vocab_size, label_smoothing

    def loss(
        self, model: nnx.Module, batch: Mapping[str, jax.Array], rngs: nnx.Rngs
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the mean loss over the target tokens, and how many of them are the likeliest."""
        logits, targets, weights = self._predict(model, batch, rngs)
        return training_loss(logits, targets, weights, label_smoothing=self.label_smoothing)

    def evaluate(self, model: nnx.Module, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return the sums of loss (without smoothing), hits and tokens."""
        logits, targets, weights = self._predict(model, batch, None)
        return token_sums(logits, targets, weights & batch["valid"][:, None])

    def summarize(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return loss in nats a token, perplexity, accuracy, and the number of tokens."""
        return token_figures(sums)

    def _predict(self, model, batch, rngs) -> tuple[jax.Array, jax.Array, jax.Array]:
        target, segments = batch["target"], batch["target_segments"]
        logits = model(
            batch["source"],
            target[:, :-1],
            source_segments=batch["source_segments"],
            target_segments=segments[:, :-1],
            rngs=rngs,
        )
        return logits, target[:, 1:], (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)


def check_shares(**shares: float) -> None:
    """Raise a UserError for a share outside of [0, 1)."""
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise UserError(f"{name} must be in [0, 1), not {share}")


def prefix_lengths(segments: jax.Array, shares: jax.Array) -> jax.Array:
    """Return `[B]`, a share in [0, 1) of each row's first text, at least one token and never all of them."""
    lengths = (segments == 1).sum(-1)
    return jnp.clip((shares * lengths).astype(jnp.int32), 1, jnp.maximum(lengths - 1, 1))


def smoothed_cross_entropy(logits: jax.Array, targets: jax.Array, smoothing: float) -> jax.Array:
    """Return the cross-entropy `[B, N]` with labels (1 - smoothing) · one-hot + smoothing / vocab_size, as PyTorch."""
    log_total = jax.nn.logsumexp(logits, axis=-1)
    right = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    if not smoothing:
        return log_total - right
    return log_total - (1 - smoothing) * right - smoothing * logits.mean(-1)


def training_loss(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, *, label_smoothing: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the mean loss over the tokens that count, their accuracy, and as `LOSS_WEIGHT` their number."""
    losses = smoothed_cross_entropy(logits, targets, label_smoothing)
    accuracy = weighted_mean(logits.argmax(-1) == targets, weights)
    return weighted_mean(losses, weights), {"accuracy": accuracy, LOSS_WEIGHT: weights.sum()}


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the mean where `weights`, 0 where there are none."""
    return jnp.where(weights, values, 0).sum() / jnp.maximum(weights.sum(), 1)


def token_sums(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> dict[str, jax.Array]:
    """Return the sums of loss and hits over the tokens that count, and their number."""
    losses = smoothed_cross_entropy(logits, targets, 0.0)
    hits = logits.argmax(-1) == targets
    return {
        "loss": jnp.where(weights, losses, 0.0).sum(),
        "accuracy": (hits & weights).sum(),
        "count": weights.sum(),
    }


def token_figures(sums: Mapping[str, float]) -> dict[str, float]:
    """Return means over tokens, and perplexity."""
    count = max(sums["count"], 1)
    loss = sums["loss"] / count
    # Beyond e^700 a float ends.
    figures = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": sums["accuracy"] / count}
    return figures | {"count": int(sums["count"])}


def _key_of_text(tokens: jax.Array) -> jax.Array:
    """Return a key that depends on the tokens and their order, not on the batch they are in."""
    places = jnp.arange(tokens.shape[0], dtype=jnp.uint32)
    mixed = (tokens.astype(jnp.uint32) + jnp.uint32(1)) * (places * jnp.uint32(2_654_435_761) + jnp.uint32(0x9E3779B9))
    return jax.random.fold_in(jax.random.key(0), mixed.sum(dtype=jnp.uint32))

"""Tiny models whose predictions are far from uniform, and what to expect of them, computed without a cache."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from swin_jax.models import CausalTransformer, Transformer
from swin_jax.nn.cache import DecodingCache

VOCAB_SIZE, MAX_LENGTH = 11, 24
KINDS = ("causal learned", "causal sinusoidal", "causal rotary", "translation sinusoidal", "translation rotary")


def make(kind: str, *, vocab_size: int = VOCAB_SIZE, seed: int = 0) -> nnx.Module:
    """Build one of KINDS; the causal ones are pre-norm, the others post-norm."""
    family, positions = kind.split()
    options = dict(vocab_size=vocab_size, max_length=MAX_LENGTH, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0)
    is_translation = family == "translation"
    factory = Transformer if is_translation else CausalTransformer
    options |= dict(positions=positions, post_norm=is_translation, tie_embeddings=False, logits_bias=True)
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: factory(**options, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(seed)
    in_embedding = 1.0 if is_translation else 0.25

    def values(path, leaf):  # at a scale that makes predictions vary; numpy's, as nothing is to be compiled
        name = jax.tree_util.keystr(path)
        scale = 0.1 if leaf.ndim == 1 else in_embedding if "embed" in name else leaf.shape[0] ** -0.5
        scale *= 3.0 if "head" in name else 2.0 if "fc" in name else 1.0
        offset = 1.0 if "scale" in name else 0.0
        return jnp.asarray(offset + scale * rng.standard_normal(leaf.shape), leaf.dtype)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(values, shapes))


class LookUp(nnx.Module):
    """A model whose logits are a row of a table `[positions, V, V]`, by the place and the token there."""

    has_encoder, is_rotary = False, False

    def __init__(self, table: np.ndarray):
        self.table = nnx.Param(jnp.asarray(table))
        self.max_length, self.vocab_size = table.shape[0] + 1, table.shape[1]

    def init_cache(self, batch_size: int, max_length: int) -> DecodingCache:
        return DecodingCache.empty(batch_size, max_length, depth=1, num_heads=1, head_dim=1, dtype=jnp.float32)

    def decode(self, tokens, cache):
        logits = self.table[...][cache.positions(tokens.shape[1]), tokens]
        return logits, DecodingCache(cache.layers, cache.index + tokens.shape[1], cache.start)


class Recomputed:
    """The log-probabilities of the next token, from the whole sequence each time."""

    def __init__(self, model: nnx.Module, *, length: int = MAX_LENGTH):
        self.length = length
        graphdef, arrays = nnx.split(model)
        self._call = jax.jit(lambda *inputs: nnx.merge(graphdef, arrays)(*inputs))

    def logits(self, sequences: list[list[int]], source: list[int] | None = None) -> np.ndarray:
        """Return `[sequences, V]`, what follows each."""
        num_rows = max(4, 1 << (len(sequences) - 1).bit_length())  # few different shapes to compile
        tokens = np.zeros((num_rows, self.length), np.int32)  # what is behind the end is not seen
        for row, sequence in zip(tokens, sequences, strict=False):
            row[: len(sequence)] = sequence
        sources = () if source is None else (np.array([source] * num_rows, np.int32),)
        logits = np.asarray(self._call(*sources, tokens))
        return logits[np.arange(len(sequences)), [len(sequence) - 1 for sequence in sequences]]

    def log_probs(self, sequences: list[list[int]], source: list[int] | None = None) -> np.ndarray:
        return np.asarray(jax.nn.log_softmax(self.logits(sequences, source)))

    def greedy(self, prompt: list[int], count: int, *, eos_id: int | None = None, source=None):
        """Return the most probable continuation, token by token, and its log-probability."""
        sequence, total = list(prompt), 0.0
        for _ in range(count):
            log_probs = self.log_probs([sequence], source)[0]
            sequence.append(int(log_probs.argmax()))
            total += log_probs.max()
            if sequence[-1] == eos_id:
                break
        return sequence[len(prompt) :], total

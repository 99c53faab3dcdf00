"""From a model's predictions to text: greedy decoding, sampling and beam search, batched and with a cache."""

from swin_jax.decoding.beam import Hypotheses, LengthPenalty, beam_search
from swin_jax.decoding.inputs import TokenRules, token_lists
from swin_jax.decoding.sampling import Generated, Sampling, generate

__all__ = [
    "Generated",
    "Hypotheses",
    "LengthPenalty",
    "Sampling",
    "TokenRules",
    "beam_search",
    "generate",
    "token_lists",
]

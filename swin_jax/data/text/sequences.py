"""Texts as token sequences, all of them in one flat array."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from swin_jax.data.text.tokenizer import Tokenizer
from swin_jax.errors import UserError

_TEXTS_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TokenSequences(Sequence):
    """Sequence i is `tokens[offsets[i]:offsets[i + 1]]`; tokens are uint16 where the vocabulary allows, else int32."""

    tokens: np.ndarray  # [M]
    offsets: np.ndarray  # [N + 1] int64

    @classmethod
    def of(cls, arrays: Iterable[np.ndarray], *, vocab_size: int | None = None) -> "TokenSequences":
        """Put arrays of ids one behind the other."""
        small = vocab_size is not None and vocab_size <= 2**16
        arrays = [np.asarray(array, np.uint16 if small else np.int32) for array in arrays]
        offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays], dtype=np.int64)]).astype(np.int64)
        tokens = np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
        return cls(tokens=tokens, offsets=offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self.tokens[self.offsets[index] : self.offsets[index + 1]].astype(np.int32)

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each sequence, int64 `[N]`."""
        return np.diff(self.offsets)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TokenPairs:
    """Sources and targets: `source[i]` belongs to `target[i]`."""

    source: TokenSequences
    target: TokenSequences

    def __len__(self) -> int:
        return len(self.source)


def tokenize(
    texts: Iterable[str], tokenizer: Tokenizer, *, bos_id: int | None = None, eos_id: int | None = None
) -> TokenSequences:
    """Encode texts in order, each with `bos_id` before it and `eos_id` behind it where they are given."""
    before, behind = (np.array([] if id is None else [id], np.int32) for id in (bos_id, eos_id))
    blocks = []  # few large arrays: millions of small ones would take more memory than the tokens
    iterator = iter(texts)
    while chunk := list(itertools.islice(iterator, _TEXTS_AT_ONCE)):
        arrays = (np.concatenate([before, ids, behind]) for ids in tokenizer.encode_many(chunk))
        blocks.append(TokenSequences.of(arrays, vocab_size=tokenizer.vocab_size))
    lengths = np.concatenate([np.zeros(0, np.int64), *(block.lengths for block in blocks)])
    tokens = np.concatenate([block.tokens for block in blocks]) if blocks else np.zeros(0, np.int32)
    return TokenSequences(tokens=tokens, offsets=np.concatenate([[0], np.cumsum(lengths)]))


def tokenize_pairs(
    pairs: Sequence[tuple[str, str]],
    tokenizer: Tokenizer,
    *,
    target_tokenizer: Tokenizer | None = None,
    bos_id: int | None = None,
) -> TokenPairs:
    """Encode pairs for translation: a source is its tokens and eos, a target is bos, its tokens and eos.

    Args:
      target_tokenizer: where the target has a vocabulary of its own; else both sides share one.
      bos_id: what a target begins with, for a published tokenizer without bos (Marian begins with pad).

    Raises UserError where a tokenizer lacks the token.
    """
    target_tokenizer = target_tokenizer or tokenizer
    bos_id = target_tokenizer.bos_id if bos_id is None else bos_id
    for name, id in (("eos", tokenizer.eos_id), ("eos", target_tokenizer.eos_id), ("bos", bos_id)):
        if id is None:
            raise UserError(f"the tokenizer has no {name} token, which pairs for translation need")
    source = tokenize((pair[0] for pair in pairs), tokenizer, eos_id=tokenizer.eos_id)
    target = tokenize((pair[1] for pair in pairs), target_tokenizer, bos_id=bos_id, eos_id=target_tokenizer.eos_id)
    return TokenPairs(source=source, target=target)

"""Text to token ids and back: one class around Hugging Face's `tokenizers`, trained here or read from a file.

Whatever is trained here is written in that library's own format, so `tokenizers.Tokenizer.from_file` reads it too.
"""

import functools
import json
import math
import pathlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from swin_jax.errors import UserError, did_you_mean

KINDS = ("byte", "char", "bpe", "unigram")
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>", "<mask>")  # ids 0 to 4 of every tokenizer trained here
PAD_ID, BOS_ID, EOS_ID, UNK_ID, MASK_ID = range(5)
# The same in published tokenizers; GPT-2's one special token begins and ends a text.
SPECIAL_NAMES = (
    ("<pad>", "[PAD]"),
    ("<bos>", "<s>", "<|begin_of_text|>", "<|endoftext|>"),
    ("<eos>", "</s>", "<|end_of_text|>", "<|endoftext|>"),
    ("<unk>", "[UNK]"),
    ("<mask>", "[MASK]"),
)
_EVERY_CHARACTER = r"[\s\S]"
_MAX_CODE_POINT = 0x10FFFF
_SCORE_DECIMALS = 6


class Tokenizer:
    """Encodes text as int32 ids and decodes it; a special token written out in a text is text like any other.

    `pad_id`, `bos_id`, `eos_id`, `unk_id` and `mask_id` are None where a published tokenizer has no such token.
    Byte-level ones (`byte`, `bpe`, `unigram`, GPT-2's) give back every text exactly, `char` every text of characters
    it has seen; another becomes `unk_id`, which `decode` leaves out with the other special tokens.
    """

    def __init__(self, library: tokenizers.Tokenizer):
        library.no_padding()  # a published file may ask for either
        library.no_truncation()
        library.encode_special_tokens = True
        self._library = library
        self._ids = library.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._ids.values()) + 1
        special = [id for id, token in library.get_added_tokens_decoder().items() if token.special]
        self.special_ids = np.array(sorted(special), np.int32)
        self.pad_id, self.bos_id, self.eos_id, self.unk_id, self.mask_id = (
            next((self._ids[name] for name in names if name in self._ids), None) for names in SPECIAL_NAMES
        )

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """Return the tokenizer that `to_json`, or any tokenizer.json of the library, describes."""
        try:
            return cls(tokenizers.Tokenizer.from_str(text))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"this is no tokenizer of the library `tokenizers`: {_one_line(error)}") from error

    @classmethod
    def from_file(cls, path: str | pathlib.Path) -> "Tokenizer":
        """Return the tokenizer of a tokenizer.json; UserError where the file is missing or no tokenizer."""
        path = pathlib.Path(path).expanduser()
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from error
        except ValueError as error:  # what from_json raises, or no UTF-8
            raise UserError(f"{path} is no tokenizer: {_one_line(error)}") from error

    def to_json(self) -> str:
        """Return all of it in the library's format."""
        return self._library.to_str()

    def encode(self, text: str) -> np.ndarray:
        """Return the ids int32 `[N]` of a text, no special token added; UserError where it is not UTF-8."""
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids int32 `[N]` of each text, as `encode` does, faster than one by one."""
        encoded = [_utf8(text) for text in texts]
        if self._byte_ids is not None:
            return [self._byte_ids[np.frombuffer(text, np.uint8)] for text in encoded]
        if self._code_point_ids is not None:
            return [self._code_point_ids[np.frombuffer(text.encode("utf-32-le"), np.uint32)] for text in texts]
        encodings = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids `[N]`, special tokens left out; UserError for an id outside of the vocabulary."""
        ids = np.asarray(ids)
        outside = ids[(ids < 0) | (ids >= self.vocab_size)]
        if outside.size:
            raise UserError(f"token id {outside[0]} is outside of the vocabulary, 0 to {self.vocab_size - 1}")
        return self._library.decode(ids.tolist(), skip_special_tokens=True)

    def token_texts(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return how each token reads by itself, special ones as well; a part of a character is `<C3>`, its bytes."""
        ids = [int(id) for id in ids]
        texts = [self._library.decode([id], skip_special_tokens=False) for id in ids]
        return [self._bytes_of(id) if "\ufffd" in text else text for id, text in zip(ids, texts, strict=True)]

    def _bytes_of(self, id: int) -> str:
        characters = self._library.id_to_token(id)
        return (
            "".join(f"<{_BYTE_OF[character]:02X}>" for character in characters if character in _BYTE_OF) or characters
        )

    @functools.cached_property
    def token_characters(self) -> np.ndarray:
        """How many characters of text each token stands for, int32 `[vocab_size]`, 0 for special tokens but unknown.

        Of byte-level tokens these are the characters that begin in them, so that the sum over a text is exactly its
        length: what bits per character are counted by. An unknown token stands for one.
        """
        counts = np.zeros(self.vocab_size, np.int32)
        for token, id in self._ids.items():
            if self._is_byte_level:
                # A byte 10xxxxxx goes on with a character that another byte began.
                counts[id] = sum(_BYTE_OF[character] & 0xC0 != 0x80 for character in token if character in _BYTE_OF)
            else:
                counts[id] = len(token)
        counts[self.special_ids] = 0
        if self.unk_id is not None:
            counts[self.unk_id] = 1
        return counts

    @functools.cached_property
    def _format(self) -> dict:
        return json.loads(self.to_json())

    @property
    def _is_byte_level(self) -> bool:
        return (self._format.get("decoder") or {}).get("type") == "ByteLevel"

    @functools.cached_property
    def _byte_ids(self) -> np.ndarray | None:
        """The id of each byte, int32 `[256]`, if that is all there is to this tokenizer."""
        if not (self._is_byte_level and self._format["model"].get("merges") == [] and self._is_as_trained):
            return None
        return np.array([self._ids[character] for character in _CHARACTER_OF], np.int32)

    @functools.cached_property
    def _code_point_ids(self) -> np.ndarray | None:
        """The id of each code point, int32 `[0x110000]`, if that is all there is to this tokenizer."""
        if not (self._format["model"]["type"] == "WordLevel" and self._is_as_trained):
            return None
        table = np.full(_MAX_CODE_POINT + 1, UNK_ID, np.int32)
        for token, id in self._ids.items():
            if len(token) == 1:
                table[ord(token)] = id
        return table

    @property
    def _is_as_trained(self) -> bool:
        """Whether nothing but the vocabulary tells this tokenizer from one of its kind trained here."""
        kind = "char" if self._format["model"]["type"] == "WordLevel" else "byte"
        ours = json.loads(train_tokenizer(kind, ["a"]).to_json())
        return all(self._format.get(part) == ours[part] for part in ours if part != "model")


def train_tokenizer(kind: str, texts: Iterable[str], *, vocab_size: int = 0) -> Tokenizer:
    """Train a tokenizer on texts; the same texts give the same tokenizer.

    Args:
      kind: `byte` (UTF-8 bytes, nothing to learn), `char` (code points), `bpe` (merged pairs of bytes, Sennrich et al.
        2016, arXiv 1508.07909, on bytes as GPT-2 has it) or `unigram` (a unigram language model of pieces, Kudo 2018,
        arXiv 1804.10959, on bytes too).
      texts: what to learn from.
      vocab_size: with the five special tokens; needed by `bpe` and `unigram`, which may end smaller on little text, and
        for `char` the most it may have (0: every character seen), the most frequent ones.

    Raises UserError for an unknown kind, a vocabulary that is too small, and empty texts.
    """
    if kind not in KINDS:
        raise UserError(f"unknown tokenizer {kind!r}, known: {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    smallest = {"byte": 0, "char": 0, "bpe": 261, "unigram": 262}[kind]
    if vocab_size < smallest or (vocab_size and vocab_size <= len(SPECIAL_TOKENS)):
        raise UserError(f"vocab_size={vocab_size} of a {kind} tokenizer must be at least {max(smallest, 6)}")
    if kind == "byte" and vocab_size not in (0, 261):
        raise UserError(f"vocab_size={vocab_size} of a byte tokenizer must be 261 (or 0): 256 bytes, 5 special tokens")
    library = {"byte": _bytes, "char": _characters, "bpe": _pairs, "unigram": _pieces}[kind](texts, vocab_size)
    library.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return Tokenizer(library)


def _bytes(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    return _byte_level(models.BPE(_vocabulary(_CHARACTER_OF), []))


def _characters(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    counts = Counter()
    for text in texts:
        counts.update(text)
    if not counts:
        raise UserError("there is no text to train a tokenizer on")
    most = vocab_size - len(SPECIAL_TOKENS) if vocab_size else None
    # Frequent ones are chosen, ties by code point; then all in the order of code points.
    chosen = sorted(sorted(counts), key=counts.__getitem__, reverse=True)[:most]
    library = tokenizers.Tokenizer(models.WordLevel(_vocabulary(sorted(chosen)), unk_token=SPECIAL_TOKENS[UNK_ID]))
    library.pre_tokenizer = pre_tokenizers.Split(Regex(_EVERY_CHARACTER), "isolated")
    library.decoder = decoders.Fuse()
    return library


def _pairs(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library = _byte_level(models.BPE())
    library.train_from_iterator(_non_empty(texts), trainer)
    return library


def _pieces(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        unk_token=SPECIAL_TOKENS[UNK_ID],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library = _byte_level(models.Unigram())
    library.train_from_iterator(_non_empty(texts), trainer)
    learned = json.loads(library.to_str())["model"]["vocab"][len(SPECIAL_TOKENS) :]
    # The trainer sums in the order of a hash table, another one in every run: scores differ in their last digits, and
    # bytes that it only keeps because it must come in any order. So scores are rounded, and those bytes made equal.
    lowest = min((score for piece, score in learned if len(piece) > 1), default=0.0)
    scores = {
        piece: round(score if len(piece) > 1 or score >= lowest else math.floor(lowest) - 1.0, _SCORE_DECIMALS)
        for piece, score in learned
    }
    vocabulary = [(token, 0.0) for token in SPECIAL_TOKENS]
    vocabulary += sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return _byte_level(models.Unigram(vocabulary, unk_id=UNK_ID))


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return library


def _vocabulary(tokens: Iterable[str]) -> dict[str, int]:
    return {token: id for id, token in enumerate([*SPECIAL_TOKENS, *tokens])}


def _non_empty(texts: Iterable[str]) -> Iterable[str]:
    is_empty = True
    for text in texts:
        is_empty = is_empty and not text
        yield text
    if is_empty:
        raise UserError("there is no text to train a tokenizer on")


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary, GPT-2's table."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(0x100 + hidden.index(byte)) for byte in range(256)]


_CHARACTER_OF = _byte_characters()
_BYTE_OF = {character: byte for byte, character in enumerate(_CHARACTER_OF)}


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # Python marks so what was no UTF-8, in a command's arguments for example
        raise UserError(f"the text to encode is not UTF-8, at its character {error.start}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

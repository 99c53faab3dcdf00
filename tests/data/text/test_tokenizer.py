"""Tokenizers: round trips, the promised ids, the library's own reading of what is written, one line for a mistake."""

import time

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

from swin_jax.data.text.sequences import tokenize, tokenize_pairs
from swin_jax.data.text.tokenizer import KINDS, Tokenizer, train_tokenizer
from swin_jax.errors import UserError

TEXTS = [
    "It is a truth universally acknowledged, that a single man in possession\nof a good fortune,\n\n",
    "  must be in want of a wife.\tÜber größere Häuser — «größer» 𝄞 €5 <pad> ▁\r\n" * 3,
]
VOCAB_SIZES = {"byte": 0, "char": 0, "bpe": 320, "unigram": 320}


@pytest.fixture(scope="module")
def trained():
    return {kind: train_tokenizer(kind, TEXTS, vocab_size=VOCAB_SIZES[kind]) for kind in KINDS}


def library(tokenizer):
    """The tokenizer as the library alone reads it, its fast paths unknown to it."""
    read = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    read.encode_special_tokens = True
    return read


@pytest.mark.parametrize("kind", KINDS)
def test_special_ids_and_the_same_ids_from_the_library(trained, kind):
    tokenizer = trained[kind]
    names = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.mask_id)
    assert names == (0, 1, 2, 3, 4)
    assert tokenizer.special_ids.tolist() == [0, 1, 2, 3, 4]
    reader = library(tokenizer)
    for text in [*TEXTS, "", "<pad><mask>", "unseen: ß7ж"]:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert ids.tolist() == reader.encode(text, add_special_tokens=False).ids
        np.testing.assert_array_equal(Tokenizer.from_json(tokenizer.to_json()).encode(text), ids)
        assert kind == "char" or not np.isin(ids, tokenizer.special_ids).any()
    assert tokenizer.vocab_size == reader.get_vocab_size()


@pytest.mark.parametrize("kind", ["byte", "bpe", "unigram"])
@given(text=st.text())
@settings(max_examples=40, deadline=None)
def test_every_text_comes_back(trained, kind, text):
    ids = trained[kind].encode(text)
    assert trained[kind].decode(ids) == text
    assert trained[kind].token_characters[ids].sum() == len(text)


@given(text=st.text(alphabet=sorted(set("".join(TEXTS)))))
@settings(max_examples=40, deadline=None)
def test_seen_characters_come_back(trained, text):
    ids = trained["char"].encode(text)
    assert len(ids) == len(text)
    assert trained["char"].decode(ids) == text


def test_unseen_characters_are_unknown_and_still_counted(trained):
    ids = trained["char"].encode("aжb")
    assert ids[1] == trained["char"].unk_id
    assert trained["char"].decode(ids) == "ab"
    assert trained["char"].token_characters[ids].tolist() == [1, 1, 1]
    assert trained["char"].token_characters[[0, 1, 2, 4]].tolist() == [0, 0, 0, 0]


def test_decode_leaves_special_tokens_out(trained):
    for tokenizer in trained.values():
        ids = [tokenizer.bos_id, *tokenizer.encode("a good"), tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id]
        assert tokenizer.decode(ids) == "a good"


def test_tokens_read_by_themselves(trained):
    byte, character = trained["byte"], trained["char"]
    text = byte.token_texts([1, *byte.encode("aé "), 2])
    assert text == ["<bos>", "a", "<C3>", "<A9>", " ", "<eos>"]
    assert character.token_texts(np.array([0, 3, 4])) == ["<pad>", "<unk>", "<mask>"]
    assert train_tokenizer("char", ["\ufffd"]).token_texts([5]) == ["\ufffd"]
    for kind in ("bpe", "unigram"):
        assert "".join(trained[kind].token_texts(trained[kind].encode("the end"))) == "the end"


def test_characters_are_numbered_by_code_point_and_chosen_by_frequency():
    tokenizer = train_tokenizer("char", ["caab", "bd"])
    assert tokenizer.encode("abcd").tolist() == [5, 6, 7, 8]
    two = train_tokenizer("char", ["caab", "bd"], vocab_size=7)  # a and b twice, c and d once
    assert two.encode("abcd").tolist() == [5, 6, 3, 3]
    assert two.vocab_size == 7
    tie = train_tokenizer("char", ["dcba"], vocab_size=6)
    assert tie.encode("abcd").tolist() == [5, 3, 3, 3]


def test_bytes_are_numbered_as_they_are():
    assert train_tokenizer("byte", []).encode("\x00Aé").tolist() == [5, 5 + 0x41, 5 + 0xC3, 5 + 0xA9]


def test_bpe_merges_the_most_frequent_pair_first():
    tokenizer = train_tokenizer("bpe", ["abab abab"], vocab_size=262)  # (a, b) four times, (b, a) twice
    assert tokenizer.vocab_size == 262
    assert tokenizer.encode("ab").tolist() == [261]
    assert len(tokenizer.encode("ba")) == 2


def test_unigram_prefers_the_frequent_piece():
    tokenizer = train_tokenizer("unigram", ["table tables stable " * 20], vocab_size=300)
    pieces = [tokenizer.decode([id]) for id in tokenizer.encode("stable")]
    assert len(pieces) < 6
    assert max(pieces, key=len) in ("table", "stable", "able", "tabl")


@pytest.mark.parametrize("kind", KINDS)
def test_training_again_gives_the_same(kind):
    words = ["now", "the", "house", "of", "lords", "and", "the", "garden"] * 9
    texts = [f"{word} {word}{i % 7}ing" for i, word in enumerate(words)]
    first, second = (train_tokenizer(kind, texts, vocab_size=VOCAB_SIZES[kind]).to_json() for _ in range(2))
    assert first == second


def test_long_texts_of_characters_take_seconds(trained):
    text = "".join(TEXTS)
    text *= 4_000_000 // len(text)
    start = time.monotonic()
    assert len(trained["char"].encode(text)) == len(text)
    assert time.monotonic() - start < 3


def test_ids_outside_of_the_vocabulary_are_told(trained):
    size = trained["bpe"].vocab_size
    for bad in (-1, size):
        with pytest.raises(UserError, match=f"token id {bad} is outside of the vocabulary, 0 to {size - 1}"):
            trained["bpe"].decode([5, bad])


def test_what_is_no_utf8_is_told(trained):
    for tokenizer in trained.values():
        with pytest.raises(UserError, match="not UTF-8, at its character 2"):
            tokenizer.encode("ab\udc80")


@pytest.mark.parametrize(
    ("kind", "texts", "vocab_size", "message"),
    [
        ("chars", ["a"], 0, "unknown tokenizer 'chars'.*did you mean 'char'"),
        ("bpe", ["a"], 0, "vocab_size=0 of a bpe tokenizer must be at least 261"),
        ("unigram", ["a"], 261, "at least 262"),
        ("char", ["a"], 5, "at least 6"),
        ("byte", ["a"], 300, "must be 261"),
        ("char", [""], 0, "no text"),
        ("bpe", [], 300, "no text"),
        ("unigram", ["", ""], 300, "no text"),
    ],
)
def test_impossible_training_is_told(kind, texts, vocab_size, message):
    with pytest.raises(UserError, match=message):
        train_tokenizer(kind, texts, vocab_size=vocab_size)


def published(tokens, path):
    """A tokenizer as one finds them: words, a length limit, and special tokens put around every text."""
    made = tokenizers.Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=tokens[0]))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([token for token in tokens if not token.isalpha()])
    made.post_processor = processors.TemplateProcessing(
        single=f"{tokens[1]} $A {tokens[1]}", special_tokens=[(tokens[1], 1)]
    )
    made.enable_truncation(3)
    made.enable_padding(length=9)
    made.save(str(path))


def test_published_files_say_their_own_ids_and_nothing_is_added(tmp_path):
    published(["[UNK]", "[MASK]", "[PAD]", "one", "two"], tmp_path / "bert.json")
    bert = Tokenizer.from_file(tmp_path / "bert.json")
    assert (bert.pad_id, bert.bos_id, bert.eos_id, bert.unk_id, bert.mask_id) == (2, None, None, 0, 1)
    assert bert.encode("one two one two x").tolist() == [3, 4, 3, 4, 0]
    published(["<unk>", "<|endoftext|>", "one"], tmp_path / "gpt2.json")
    gpt2 = Tokenizer.from_file(str(tmp_path / "gpt2.json"))
    assert (gpt2.pad_id, gpt2.bos_id, gpt2.eos_id, gpt2.unk_id) == (None, 1, 1, 0)
    assert gpt2.token_characters.tolist() == [1, 0, 3]


@pytest.mark.parametrize("content", [b"{", b'{"model": 1}', b"\xff\xfe", None])
def test_files_that_are_no_tokenizer_are_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)) as caught:
        Tokenizer.from_file(path)
    assert "\n" not in str(caught.value)


def test_tokenize_puts_ends_around_every_text(trained):
    texts = [str(i) for i in range(5000)]  # more than are encoded at once
    sequences = tokenize(texts, trained["byte"], bos_id=1, eos_id=2)
    assert len(sequences) == 5000
    assert sequences.tokens.dtype == np.uint16
    for i in (0, 4095, 4096, -1):
        assert sequences[i].tolist() == [1, *trained["byte"].encode(texts[i]), 2]
    assert sequences.lengths.tolist() == [len(text) + 2 for text in texts]
    assert len(tokenize([], trained["byte"])) == 0
    with pytest.raises(IndexError):
        sequences[5000]


def test_pairs_end_and_targets_begin(trained, tmp_path):
    pairs = tokenize_pairs([("a", "xy"), ("bc", "")], trained["byte"])
    assert [s.tolist() for s in pairs.source] == [[102, 2], [103, 104, 2]]
    assert [s.tolist() for s in pairs.target] == [[1, 125, 126, 2], [1, 2]]
    assert tokenize_pairs([("a", "")], trained["byte"], bos_id=0).target[0].tolist() == [0, 2]
    published(["<unk>", "</s>", "<pad>", "one"], tmp_path / "marian.json")
    marian = Tokenizer.from_file(tmp_path / "marian.json")
    with pytest.raises(UserError, match="no bos token"):
        tokenize_pairs([("one", "one")], marian)
    both = tokenize_pairs([("a", "one")], trained["byte"], target_tokenizer=marian, bos_id=marian.pad_id)
    assert (both.source[0].tolist(), both.target[0].tolist()) == ([102, 2], [2, 3, 1])

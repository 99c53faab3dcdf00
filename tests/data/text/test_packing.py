"""Packing: nothing lost, nothing doubled, segments one behind the other, both sides of a pair under one number."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swin_jax.data.text.packing import NUM_OPEN_ROWS, pack_documents, pack_pairs
from swin_jax.data.text.sequences import TokenPairs, TokenSequences
from swin_jax.errors import UserError


def sequences(lengths, first=1):
    """Sequences of so many tokens, no token twice."""
    numbers = np.arange(first, first + sum(lengths))
    return TokenSequences.of(np.split(numbers, np.cumsum(lengths)[:-1]))


def unpack(tokens, segments):
    """The sequences of one row, checked to stand one behind the other as 1, 2, ... with nothing but zeros behind."""
    num_tokens = int((segments > 0).sum())
    assert not tokens[num_tokens:].any()
    assert not segments[num_tokens:].any()
    steps = np.diff(np.concatenate([[0], segments[:num_tokens]]))
    assert set(steps) <= {0, 1}
    return [tuple(tokens[segments == k]) for k in range(1, int(segments.max()) + 1)]


def everything(packed):
    return packed.gather(np.arange(len(packed)))


lengths_of_pairs = st.lists(st.tuples(st.integers(1, 12), st.integers(2, 14)), min_size=1, max_size=60)


@given(lengths_of_pairs, st.integers(1, 15), st.integers(1, 15), st.none() | st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_pair_that_fits_is_in_one_row_under_one_number(lengths, source_length, target_length, seed):
    pairs = TokenPairs(source=sequences([s for s, _ in lengths]), target=sequences([t for _, t in lengths], 1000))
    fitting = {
        (tuple(source), tuple(target))
        for source, target in zip(pairs.source, pairs.target, strict=True)
        if len(source) <= source_length and len(target) <= target_length + 1
    }
    if not fitting:
        with pytest.raises(UserError, match=f"none of {len(lengths)} pairs fits in {source_length} source"):
            pack_pairs(pairs, source_length=source_length, target_length=target_length, seed=seed)
        return
    packed = pack_pairs(pairs, source_length=source_length, target_length=target_length, seed=seed)
    assert (packed.num_packed, packed.num_dropped) == (len(fitting), len(lengths) - len(fitting))
    batch = everything(packed)
    assert batch["source"].shape == batch["source_segments"].shape == (len(packed), source_length)
    assert batch["target"].shape == batch["target_segments"].shape == (len(packed), target_length + 1)
    assert {value.dtype for value in batch.values()} == {np.dtype(np.int32)}
    found = []
    for source, source_segments, target, target_segments in zip(*batch.values(), strict=True):
        row = list(zip(unpack(source, source_segments), unpack(target, target_segments), strict=True))
        assert row
        found += row
    assert len(found) == len(fitting)
    assert set(found) == fitting


@given(st.lists(st.integers(0, 25), min_size=1, max_size=40), st.integers(1, 9), st.none() | st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_documents_are_cut_and_no_token_is_lost(lengths, sequence_length, seed):
    documents = sequences(lengths)
    if not sum(lengths):
        with pytest.raises(UserError, match="nothing to pack"):
            pack_documents(documents, sequence_length, seed=seed)
        return
    packed = pack_documents(documents, sequence_length, seed=seed, scored=True)
    assert packed.num_dropped == 0
    pieces = []
    batch = everything(packed)
    for tokens, segments, scored in zip(batch["tokens"], batch["segments"], batch["scored"], strict=True):
        row = unpack(tokens, segments)
        assert [k for piece in row for k in [False] + [True] * (len(piece) - 1)] == scored[segments > 0].tolist()
        assert not scored[segments == 0].any()
        pieces += row
    expected = [
        tuple(document[start : start + sequence_length + 1])
        for document in documents
        for start in range(0, len(document), sequence_length + 1)
    ]
    assert sorted(pieces) == expected


def test_long_documents_can_be_dropped_instead():
    packed = pack_documents(sequences([3, 9, 4, 0]), 4, too_long="drop")
    assert (packed.num_packed, packed.num_dropped) == (2, 2)
    assert "scored" not in everything(packed)
    assert np.unique(everything(packed)["tokens"]).tolist() == [0, 1, 2, 3, 13, 14, 15, 16]


def test_the_first_open_row_with_room_is_taken():
    packed = pack_documents(sequences([4, 3, 2, 2, 1]), 4)  # rows of five
    rows = [unpack(*row) for row in zip(*everything(packed).values(), strict=True)]
    assert rows == [[(1, 2, 3, 4), (12,)], [(5, 6, 7), (8, 9)], [(10, 11)]]
    assert packed.rows.fill == pytest.approx(12 / 15)


def test_the_fullest_row_closes_when_too_many_are_open():
    packed = pack_documents(sequences([6] * (NUM_OPEN_ROWS - 1) + [7, 6, 3, 4]), 9)  # rows of ten: no two sixes in one
    rows = [unpack(*row) for row in zip(*everything(packed).values(), strict=True)]
    # The row of seven is closed by the six behind it: the three goes into the first row of six.
    assert [len(piece) for piece in rows[NUM_OPEN_ROWS - 1]] == [7]
    assert [len(piece) for piece in rows[0]] == [6, 3]
    assert [len(piece) for piece in rows[1]] == [6, 4]


def test_the_seed_decides_the_order():
    documents = sequences([2, 3, 4] * 20)
    first, again, other = (everything(pack_documents(documents, 8, seed=seed))["tokens"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or (first != other).any()


def test_rows_are_nearly_full():
    lengths = np.random.default_rng(0).integers(3, 40, 2000)
    packed = pack_documents(sequences(lengths), 127, seed=0)
    assert packed.rows.fill > 0.97
    assert len(packed) >= np.ceil(lengths.sum() / 128)


@pytest.mark.parametrize(
    ("options", "message"), [({"sequence_length": 0}, "sequence_length=0"), ({"too_long": "keep"}, "too_long='keep'")]
)
def test_impossible_choices_are_told(options, message):
    with pytest.raises(UserError, match=message):
        pack_documents(sequences([3]), **({"sequence_length": 4} | options))

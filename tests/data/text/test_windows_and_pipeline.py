"""Windows of documents, and batches of them: their places, what is scored, one stream from the seed, exact resume."""

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swin_jax.data.text.packing import pack_documents, pack_pairs
from swin_jax.data.text.pipeline import eval_batches, train_iterator
from swin_jax.data.text.sequences import TokenPairs, TokenSequences
from swin_jax.data.text.windows import eval_windows, train_windows
from swin_jax.errors import UserError


def documents(*lengths):
    """Documents whose tokens are 1, 2, ... through all of them: a token tells its place."""
    return TokenSequences.of(np.split(np.arange(1, sum(lengths) + 1), np.cumsum(lengths)[:-1]))


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def joined(parts):
    """The batches of several processes, each step put together."""
    return [{key: np.concatenate([part[key] for part in step]) for key in step[0]} for step in zip(*parts, strict=True)]


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])
            assert batch[key].dtype == other[key].dtype


ROWS = {
    "windows": lambda: train_windows(documents(50, 3, 30), 8),
    "packed documents": lambda: pack_documents(documents(*range(1, 20)), 9, seed=3),
    "packed pairs": lambda: pack_pairs(
        TokenPairs(source=documents(*range(1, 20)), target=documents(*range(19, 0, -1))),
        source_length=20,
        target_length=22,
        seed=3,
    ),
}
lengths_of_documents = st.lists(st.integers(0, 40), min_size=1, max_size=8)


@given(lengths_of_documents, st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_training_windows_may_begin_anywhere_and_share_the_places_out(lengths, length):
    if max(lengths) < 2:
        with pytest.raises(UserError, match="nothing to predict"):
            train_windows(documents(*lengths), length)
        return
    windows = train_windows(documents(*lengths), length)
    assert len(windows) == sum(int(np.ceil((n - 1) / length)) for n in lengths if n >= 2)
    places = [place for a, b in zip(windows.first, windows.last, strict=True) for place in range(a, b + 1)]
    expected, start = [], 0
    for n in lengths:
        expected += [start + place for place in range(max(n - length, 1))] if n >= 2 else []
        start += n
    assert places == expected
    batch = windows.gather(np.array(places))
    stops = np.cumsum(lengths)
    for place, tokens, segments in zip(places, batch["tokens"], batch["segments"], strict=True):
        stop = stops[stops > place][0]  # the end of the document that the place is in
        inside = np.arange(place, min(place + length + 1, stop)) + 1
        np.testing.assert_array_equal(tokens, np.pad(inside, (0, length + 1 - len(inside))))
        np.testing.assert_array_equal(segments, tokens > 0)


@given(lengths_of_documents, st.integers(1, 10), st.data())
@settings(max_examples=60, deadline=None)
def test_evaluation_scores_each_token_once_but_the_first_context(lengths, length, data):
    stride = data.draw(st.integers(1, length))
    context = length + 1 - stride
    if max(lengths) <= context:
        with pytest.raises(UserError, match=f"more than {context} tokens"):
            eval_windows(documents(*lengths), length, stride=stride)
        return
    windows = eval_windows(documents(*lengths), length, stride=stride)
    batch = windows.gather(np.arange(len(windows)))
    expected, scored, start = [], [], 1
    for n in lengths:
        ids = np.arange(start, start + n)
        scored += ids[context:].tolist()
        for first in range(0, n, stride):
            if n > first + context:  # something of this window is scored
                window = ids[first : first + length + 1]
                expected.append(np.pad(window, (0, length + 1 - len(window))))
        start += n
    np.testing.assert_array_equal(batch["tokens"], expected)
    np.testing.assert_array_equal(batch["segments"], batch["tokens"] > 0)
    assert batch["scored"].dtype == bool
    assert batch["tokens"][batch["scored"]].tolist() == scored
    assert not batch["scored"][:, 0].any()  # it is never predicted
    assert windows.num_scored == len(scored)


def test_windows_are_at_new_places_in_every_epoch():
    windows = train_windows(documents(200), 10)
    starts = np.concatenate([b["tokens"][:, 0] for b in take(train_iterator(windows, batch_size=4, seed=0), 60)]) - 1
    epochs = starts.reshape(12, 20)
    shares = np.searchsorted(windows.first, np.sort(epochs), side="right") - 1
    np.testing.assert_array_equal(shares, np.tile(np.arange(20), (12, 1)))  # each share of the document once an epoch
    assert len({tuple(np.sort(epoch)) for epoch in epochs}) == 12
    assert len(np.unique(starts)) > 100  # of 190, with 240 draws


def test_packed_rows_come_once_an_epoch_in_a_new_order():
    rows = ROWS["packed documents"]()
    size = len(rows)
    stream = [tuple(b["tokens"][0]) for b in take(train_iterator(rows, batch_size=1, seed=0), 2 * size)]
    assert sorted(stream[:size]) == sorted(stream[size:]) == sorted(map(tuple, rows.rows.tokens))
    assert stream[:size] != stream[size:]


@pytest.mark.parametrize("kind", ROWS)
def test_one_stream_on_any_number_of_threads_and_processes(kind):
    rows = ROWS[kind]()
    whole = take(train_iterator(rows, batch_size=4, seed=5), 9)
    assert_same(take(train_iterator(rows, batch_size=4, seed=5, num_threads=5), 9), whole)
    halves = [take(train_iterator(rows, batch_size=2, seed=5, process_index=i, process_count=2), 9) for i in range(2)]
    assert_same(joined(halves), whole)
    other = take(train_iterator(rows, batch_size=4, seed=6), 9)
    assert any((a[key] != b[key]).any() for a, b in zip(whole, other, strict=True) for key in a)


@pytest.mark.parametrize("kind", ROWS)
def test_resume_goes_on_exactly(kind):
    rows = ROWS[kind]()
    through = train_iterator(rows, batch_size=3, seed=0)
    assert isinstance(through, grain.DatasetIterator)
    take(through, 7)
    state = through.get_state()
    expected = take(through, 8)
    assert state == {"next_index": 7}
    resumed = train_iterator(rows, batch_size=3, seed=0, num_threads=3)
    take(resumed, 2)
    resumed.set_state(state)
    assert_same(take(resumed, 8), expected)


@pytest.mark.parametrize(("process_count", "steps"), [(1, 7), (2, 3)])
def test_finite_epochs_drop_only_what_fills_no_global_batch(process_count, steps):
    rows = train_windows(documents(121), 8)
    assert len(rows) == 15
    for index in range(process_count):
        options = {"process_index": index, "process_count": process_count}
        assert len(list(train_iterator(rows, batch_size=4, seed=0, num_epochs=2, **options))) == steps


@given(st.integers(12, 90), st.integers(1, 4), st.integers(1, 7))
@settings(max_examples=20, deadline=None)
def test_evaluation_counts_every_window_once_on_any_number_of_processes(length, process_count, batch_size):
    windows = eval_windows(documents(length, length // 2), 5, stride=3)
    parts = [
        eval_batches(windows, batch_size=batch_size, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]
    produced = [list(part) for part in parts]
    assert {len(batches) for batches in produced} == {len(parts[0])}
    valid = {key: [] for key in ("tokens", "segments", "scored")}
    for batch in (batch for batches in produced for batch in batches):
        assert batch["tokens"].shape == (batch_size, 6)
        for key, rows in valid.items():
            assert not batch[key][~batch["valid"]].any()
            rows.extend(batch[key][batch["valid"]])
    for key, expected in windows.gather(np.arange(len(windows))).items():
        np.testing.assert_array_equal(valid[key], expected)
    assert_same(list(parts[0]), produced[0])  # and again


def test_evaluation_of_pairs_is_in_order_and_padded():
    pairs = TokenPairs(source=documents(3, 3, 3, 3, 3), target=documents(4, 4, 4, 4, 4))
    (batch,) = eval_batches(pack_pairs(pairs, source_length=6, target_length=7), batch_size=4)
    assert batch["valid"].tolist() == [True, True, True, False]
    assert batch["source"].tolist() == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12], [13, 14, 15, 0, 0, 0], [0] * 6]
    assert batch["target_segments"].tolist() == [[1] * 4 + [2] * 4, [1] * 4 + [2] * 4, [1] * 4 + [0] * 4, [0] * 8]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train_iterator(ROWS["windows"](), batch_size=0, seed=0), "batch_size=0"),
        (lambda: train_iterator(ROWS["windows"](), batch_size=1, seed=-1), "seed=-1"),
        (
            lambda: train_iterator(ROWS["windows"](), batch_size=10, seed=0, num_epochs=1, process_count=2),
            "the text makes 12 rows, too few for a batch of 20",
        ),
        (lambda: eval_batches(ROWS["windows"](), batch_size=2), "use eval_windows"),
        (lambda: eval_windows(documents(9), 4, stride=5), "stride=5 must be from 1 to sequence_length=4"),
        (lambda: train_windows(documents(9), 0), "sequence_length=0"),
    ],
)
def test_impossible_choices_are_told(call, message):
    with pytest.raises(UserError, match=message):
        call()

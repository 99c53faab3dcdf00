"""Beam search against all sequences there are, against a search written with lists, and against greedy decoding."""

import itertools

import numpy as np
import pytest

from swin_jax.decoding import LengthPenalty, TokenRules, beam_search, generate
from swin_jax.errors import UserError
from tests.decoding import tiny

PROMPTS = [[3, 1, 4], [9], [2, 6]]
SOURCES = [[8, 9], [5, 1, 2, 6], [3, 3]]
NEW, EOS = 6, 7


def ranked(sequences: dict[tuple[int, ...], float], penalty) -> list[tuple[tuple[int, ...], float]]:
    scores = {sequence: total / float(penalty(len(sequence))) for sequence, total in sequences.items()}
    return sorted(scores.items(), key=lambda pair: -pair[1])


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
@pytest.mark.parametrize("kind", ["causal rotary", "translation sinusoidal"])
def test_a_wide_beam_finds_the_best_of_all_sequences(kind, alpha):
    vocab_size, new, eos_id, prompt = 5, 4, 2, [3, 1]
    model = tiny.make(kind, vocab_size=vocab_size, seed=3)
    source = [4, 0, 1] if model.has_encoder else None
    every = list(itertools.product(range(vocab_size), repeat=new))
    whole = tiny.Recomputed(model, length=len(prompt) + new)
    prefixes = [
        [*prompt, *sequence[:length]] for length in range(new) for sequence in every[:: vocab_size ** (new - length)]
    ]
    log_probs = {
        tuple(prefix[2:]): row for prefix, row in zip(prefixes, whole.log_probs(prefixes, source), strict=True)
    }
    totals = {}
    for sequence in every:
        end = sequence.index(eos_id) + 1 if eos_id in sequence else new
        sequence = sequence[:end]
        totals[sequence] = sum(float(log_probs[sequence[:place]][sequence[place]]) for place in range(end))
    assert len(totals) == 1 + 4 + 16 + 64 + 256
    np.testing.assert_allclose(np.exp(list(totals.values())).sum(), 1.0, atol=1e-5)

    penalty = LengthPenalty(alpha)
    best = ranked(totals, penalty)
    # As many beams as prefixes there are to extend at the end, with all their extensions.
    found = beam_search(
        model,
        [prompt],
        source=source and [source],
        max_new_tokens=new,
        beams=64 * vocab_size,
        length_penalty=penalty,
        rules=TokenRules(eos_id=eos_id),
    )
    np.testing.assert_allclose(found.scores[0], [score for _, score in best[:320]], atol=1e-4)
    for row, (sequence, _) in enumerate(best[:10]):
        assert found.tokens[0, row].tolist() == [*sequence, *[0] * (new - len(sequence))]
        assert found.lengths[0, row] == len(sequence)


def search_with_lists(recomputed, prompt, source, *, beams, penalty, stop):
    """Return finished hypotheses, best first: the search as `beam_search` describes it, one prompt, without a cache."""
    live, finished = [((), 0.0)], []
    for length in range(1, NEW + 1):
        log_probs = recomputed.log_probs([[*prompt, *tokens] for tokens, _ in live], source)
        extended = [
            ((*tokens, token), total + float(row[token]))
            for (tokens, total), row in zip(live, log_probs, strict=True)
            for token in range(tiny.VOCAB_SIZE)
        ]
        extended = sorted(extended, key=lambda pair: -pair[1])[: 2 * beams]
        ends = [tokens[-1] == EOS or length == NEW for tokens, _ in extended]
        divisor = float(penalty(length))
        finished += [(extended[place][0], extended[place][1] / divisor) for place in range(beams) if ends[place]]
        finished = sorted(finished, key=lambda pair: -pair[1])[:beams]
        live = [pair for pair, end in zip(extended, ends, strict=True) if not end][:beams]
        if len(finished) < beams or not live:
            continue
        ahead = {"exact": max(float(penalty(later)) for later in range(length, NEW + 1)), "heuristic": divisor}
        if stop == "full" or live[0][1] / ahead[stop] <= finished[-1][1]:
            break
    return finished


@pytest.fixture(scope="module", params=["causal learned", "translation rotary"])
def case(request):
    model = tiny.make(request.param, seed=2)
    model.logits_bias[...] = model.logits_bias[...].at[EOS].add(4.0)  # so that some end before they have to
    return model, tiny.Recomputed(model, length=10), SOURCES if model.has_encoder else None


def list_search(case, **options):
    _, recomputed, source = case
    return [
        search_with_lists(recomputed, prompt, source and source[row], **options) for row, prompt in enumerate(PROMPTS)
    ]


@pytest.mark.parametrize(
    ("beams", "penalty", "stop"),
    [
        (4, LengthPenalty(), "exact"),
        (4, LengthPenalty(-1.0), "exact"),
        (3, LengthPenalty(0.8, "power"), "heuristic"),
        (2, LengthPenalty(1.0, "power"), "full"),
    ],
)
def test_a_narrow_beam_equals_a_search_with_lists(case, beams, penalty, stop):
    model, _, source = case
    found = beam_search(
        model,
        PROMPTS,
        source=source,
        max_new_tokens=NEW,
        beams=beams,
        length_penalty=penalty,
        stop=stop,
        rules=TokenRules(eos_id=EOS),
    )
    lengths = set()
    for row, hypotheses in enumerate(list_search(case, beams=beams, penalty=penalty, stop=stop)):
        assert len(hypotheses) == beams
        lengths |= {len(tokens) for tokens, _ in hypotheses}
        np.testing.assert_allclose(found.scores[row], [score for _, score in hypotheses], atol=1e-4)
        for place, (tokens, _) in enumerate(hypotheses):
            assert found.tokens[row, place].tolist() == [*tokens, *[0] * (NEW - len(tokens))]
            assert found.lengths[row, place] == len(tokens)
    assert len(lengths) > 1


def test_one_beam_is_greedy(case):
    model, _, source = case
    rules = TokenRules(eos_id=EOS)
    options = dict(source=source, max_new_tokens=NEW, rules=rules)
    greedy = generate(model, PROMPTS, temperature=0, **options)
    found = beam_search(model, PROMPTS, beams=1, length_penalty=LengthPenalty(0.0), **options)
    np.testing.assert_array_equal(found.tokens[:, 0], greedy.tokens)
    np.testing.assert_array_equal(found.lengths[:, 0], greedy.lengths)
    np.testing.assert_allclose(found.scores[:, 0], greedy.log_probs, atol=1e-5)


def test_length_penalties():
    # arXiv 1609.08144, eq. 14, by hand.
    np.testing.assert_allclose(LengthPenalty()(1), 1.0)
    np.testing.assert_allclose(LengthPenalty(0.6)(7), 2.0**0.6, rtol=1e-6)
    np.testing.assert_allclose(LengthPenalty(2.0, "power")(7), 49.0, rtol=1e-6)
    np.testing.assert_allclose(LengthPenalty(0.0)(np.array([1, 50])), 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams=0 must be at least 1"),
        ({"stop": "fulll"}, "stop='fulll' is none of 'exact', 'heuristic', 'full'; did you mean 'full'?"),
        ({"prompts": [[]]}, "prompt 0 is empty"),
        ({"prompts": [[11]]}, "token id 11 in prompt 0 is out of range"),
        ({"max_new_tokens": 24}, "a prompt of 1 tokens and 24 new ones are more than the model's context of 24"),
        ({"rules": TokenRules(pad_id=-1)}, "pad_id=-1 is out of range"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError) as caught:
        beam_search(tiny.make("causal learned"), **{"prompts": [[1]], "max_new_tokens": 2, **options})
    assert message in str(caught.value)


def test_unknown_penalties_are_named():
    with pytest.raises(UserError, match="length penalty 'gmnt' is none of 'gnmt', 'power'"):
        LengthPenalty(1.0, "gmnt")

"""Greedy decoding against recomputing from scratch, and what is drawn against the model's probabilities."""

import jax
import numpy as np
import pytest
from flax import nnx

from swin_jax.decoding import TokenRules, generate, sampling, token_lists
from swin_jax.errors import UserError
from tests.decoding import tiny

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5], [7, 7, 7, 8, 9, 10, 3]]
SOURCES = [[8, 9, 7], [5, 1, 2, 6, 4, 2], [3, 3, 0], [10, 2, 2, 2, 9, 1]]
NEW = 9


@pytest.fixture(scope="module", params=tiny.KINDS)
def case(request):
    model = tiny.make(request.param)
    source = SOURCES if model.has_encoder else None
    return model, tiny.Recomputed(model), source


def expected(case, **options):
    _, recomputed, source = case
    return [
        recomputed.greedy(prompt, NEW, source=source and source[row], **options) for row, prompt in enumerate(PROMPTS)
    ]


def test_greedy_equals_recomputing_from_scratch(case):
    model, _, source = case
    lengths = dict(prompt_length=11, source_length=source and 9)  # more padding than there need be
    result = generate(model, PROMPTS, source=source, max_new_tokens=NEW, temperature=0, **lengths)
    tokens, log_probs = zip(*expected(case), strict=True)
    assert result.tokens.tolist() == list(tokens)
    assert result.lengths.tolist() == [NEW] * len(PROMPTS)
    np.testing.assert_allclose(result.log_probs, log_probs, atol=1e-4)
    assert len({tuple(row) for row in tokens}) >= 3  # or the prompts would not matter
    assert max(len(set(row)) for row in tokens) >= 3


def test_logits_with_the_cache_equal_those_without(case):
    model, recomputed, source = case
    sequence = [1, 5, 2, 8, 8, 3, 0, 4, 9, 10, 6, 7]
    graphdef, arrays = nnx.split(model)
    decode = jax.jit(lambda arrays, tokens, cache: nnx.merge(graphdef, arrays).decode(tokens, cache))
    begin = (np.array([source[1]]),) if source else (1,)
    cache = model.init_cache(*begin, len(sequence))
    found = []
    for tokens in (sequence[:5], sequence[5:10], sequence[10:11], sequence[11:]):  # several, and one at a time
        logits, cache = decode(arrays, np.array([tokens], np.int32), cache)
        found.extend(np.asarray(logits[0]))
    prefixes = [sequence[: end + 1] for end in range(len(sequence))]
    np.testing.assert_allclose(found, recomputed.logits(prefixes, source and source[1]), atol=1e-5)


def test_a_row_ends_with_eos_and_pads_follow(case):
    model, _, source = case
    usual = [tokens for tokens, _ in expected(case)]
    # A token that some rows say in the middle and not all at once.
    eos_id = max(range(tiny.VOCAB_SIZE), key=lambda token: len({row.index(token) for row in usual if token in row}))
    rules = TokenRules(eos_id=eos_id, pad_id=7)
    result = generate(model, PROMPTS, source=source, max_new_tokens=NEW, temperature=0, rules=rules)
    ends = expected(case, eos_id=eos_id)
    lengths = [len(tokens) for tokens, _ in ends]
    assert len(set(lengths)) > 1
    assert result.lengths.tolist() == lengths
    assert result.tokens.tolist() == [tokens + [7] * (NEW - len(tokens)) for tokens, _ in ends]
    np.testing.assert_allclose(result.log_probs, [log_prob for _, log_prob in ends], atol=1e-4)
    without = [[token for token in tokens if token != eos_id] for tokens, _ in ends]
    assert token_lists(result.tokens, result.lengths, eos_id=eos_id) == without


@pytest.fixture(scope="module")
def look_up():
    return tiny.LookUp(np.random.default_rng(0).standard_normal((6, 8, 8)).astype(np.float32) * 1.5)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def kept_by(probabilities, top_k, top_p):
    """Return the kept tokens' probabilities, token by token as the papers define them."""
    order = np.argsort(-probabilities)[: top_k or None]
    among = probabilities[order] / probabilities[order].sum()
    count = 1
    while count < len(among) and among[:count].sum() < top_p:
        count += 1
    kept = np.zeros_like(probabilities)
    kept[order[:count]] = among[:count]
    return kept / kept.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.5, 3, 1.0), (1.0, 0, 0.7), (1.3, 5, 0.8)]
)
def test_two_tokens_are_drawn_as_probable_as_they_should_be(look_up, temperature, top_k, top_p):
    draws = 4000
    result = generate(
        look_up,
        [[3]] * draws,
        max_new_tokens=2,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        key=jax.random.key(5),
    )
    table = np.asarray(look_up.table[...], np.float64) / temperature
    first = kept_by(softmax(table[0, 3]), top_k, top_p)
    both = np.stack([first[token] * kept_by(softmax(table[1, token]), top_k, top_p) for token in range(8)])
    counts = np.zeros((8, 8))
    np.add.at(counts, tuple(np.asarray(result.tokens).T), 1)
    assert not counts[both == 0].any()
    # Six standard deviations and a half count, for 64 numbers.
    assert (np.abs(counts - draws * both) <= 6 * np.sqrt(draws * both * (1 - both)) + 0.5).all()
    untempered = np.log(softmax(table * temperature))
    one, two = np.asarray(result.tokens).T
    np.testing.assert_allclose(result.log_probs, untempered[0, 3, one] + untempered[1, one, two], atol=1e-5)


def test_a_key_reproduces_whatever_the_size_of_the_batch(look_up):
    def draw(seed, rows):
        return generate(look_up, [[3]] * rows, max_new_tokens=6, key=jax.random.key(seed)).tokens

    first = draw(1, 40)
    np.testing.assert_array_equal(first, draw(1, 40))
    np.testing.assert_array_equal(first[:7], draw(1, 7))
    assert (first != draw(2, 40)).any()
    assert len(np.unique(first, axis=0)) > 30  # rows are drawn apart


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_what_leaves_one_token_is_greedy(look_up, narrow):
    prompts = [[token] for token in range(8)]
    greedy = generate(look_up, prompts, max_new_tokens=6, temperature=0)
    drawn = generate(look_up, prompts, max_new_tokens=6, key=jax.random.key(0), **narrow)
    np.testing.assert_array_equal(drawn.tokens, greedy.tokens)


def test_rules(look_up):
    table = np.asarray(look_up.table[...]).copy()
    rules = TokenRules(eos_id=2, suppressed_ids=(1, 5), force_eos=True)
    drawn = generate(look_up, [[3]] * 200, max_new_tokens=4, key=jax.random.key(0), rules=rules, temperature=2.0)
    assert not np.isin(drawn.tokens, [1, 5]).any()
    last = np.asarray(drawn.tokens)[np.arange(200), np.asarray(drawn.lengths) - 1]
    assert (last == 2).all()
    row = next(row for row in range(200) if drawn.lengths[row] == 4)
    one, two, three, _ = np.asarray(drawn.tokens)[row]
    log_probs = np.log(softmax(table))
    free = log_probs[0, 3, one] + log_probs[1, one, two] + log_probs[2, two, three]  # and the forced one costs nothing
    np.testing.assert_allclose(drawn.log_probs[row], free, atol=1e-5)


def test_compiles_once_for_a_shape():
    model = tiny.make("causal rotary", seed=1)
    options = dict(max_new_tokens=3, temperature=0, prompt_length=4)
    generate(model, [[1, 2], [3]], **options)
    compiled = sampling._generate._cache_size()
    again = nnx.merge(*nnx.split(model))
    for prompts in ([[4], [5, 6]], [[1], [2]]):
        generate(again, prompts, **options)
    assert sampling._generate._cache_size() == compiled


CAUSAL = {"prompts": [[1, 2]], "max_new_tokens": 3, "temperature": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": []}, "there is no prompt"),
        ({"prompts": [[1, 11]]}, "token id 11 in prompt 0 is out of range for vocab_size=11"),
        ({"prompts": [[1], [-1, 2]]}, "token id -1 in prompt 1 is out of range for vocab_size=11"),
        ({"prompts": [[0.5]]}, "prompt 0 is no sequence of token ids"),
        ({"prompts": [[1] * 25]}, "prompt 0 has 25 tokens, more than the model's context of 24"),
        ({"prompts": [[1] * 22]}, "a prompt of 22 tokens and 3 new ones are more than the model's context of 24"),
        ({"prompt_length": 1}, "prompt 0 has 2 tokens, more than prompt_length=1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"temperature": -0.5}, "temperature=-0.5 must not be negative"),
        ({"temperature": float("nan")}, "temperature=nan must not be negative"),
        ({"temperature": 1.0}, "needs key="),
        ({"top_k": -1}, "top_k=-1 must not be negative"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1"),
        ({"source": [[1]]}, "CausalTransformer takes no source"),
        ({"rules": TokenRules(eos_id=11)}, "eos_id=11 is out of range for vocab_size=11"),
        ({"rules": TokenRules(suppressed_ids=tuple(range(11)))}, "leave none of the 11 tokens"),
        ({"rules": TokenRules(force_eos=True)}, "force_eos needs an eos_id"),
    ],
)
def test_mistakes_are_named(options, message):
    model = tiny.make("causal learned")
    with pytest.raises(UserError, match=message) as caught:
        generate(model, **{**CAUSAL, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Transformer needs a source"),
        ({"source": [[1], [2]]}, "1 prompts do not belong to 2 sources"),
        ({"source": [[]]}, "source 0 is empty"),
        ({"source": [[3] * 25]}, "source 0 has 25 tokens, more than the model's context of 24"),
        ({"source": [[12]]}, "token id 12 in source 0 is out of range"),
    ],
)
def test_mistakes_with_sources_are_named(options, message):
    with pytest.raises(UserError, match=message):
        generate(tiny.make("translation sinusoidal"), **{**CAUSAL, **options})


def test_rotary_positions_have_no_longest_context():
    model = tiny.make("causal rotary")
    result = generate(model, [[1] * 30], max_new_tokens=2, temperature=0)
    assert result.tokens.shape == (1, 2)


def test_a_model_without_decoder_is_told():
    from swin_jax.models import MaskedTransformer

    model = MaskedTransformer(vocab_size=5, embed_dim=8, num_heads=2, depth=1, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="MaskedTransformer does not generate"):
        generate(model, [[1]], max_new_tokens=1, temperature=0)

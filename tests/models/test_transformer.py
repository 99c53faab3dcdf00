"""Transformers for text: nothing is seen that must not be, and the ways of computing the same agree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from swin_jax.models import create_model
from swin_jax.nn.attention import recorded_attention

VOCAB, LENGTH = 11, 8
TINY = dict(vocab_size=VOCAB, embed_dim=16, depth=2, num_heads=2, max_length=LENGTH)
VARIANTS = {
    "paper": {},
    "gpt": dict(positions="learned", post_norm=False, scale_embedding=False, activation="gelu_tanh"),
    "rotary": dict(positions="rotary", post_norm=False, tie_embeddings=False, logits_bias=True),
}


class Jitted:
    """A model whose methods are compiled: eager calls cost seconds."""

    def __init__(self, family, **options):
        self.model = create_model(family, **{**TINY, **options}, rngs=nnx.Rngs(0))
        graphdef, state = nnx.split(self.model)

        def method(name):
            return jax.jit(lambda *arrays, **named: getattr(nnx.merge(graphdef, state), name)(*arrays, **named))

        self.call, self.decode = method("__call__"), method("decode")

    def __call__(self, *arrays, **named):
        return self.call(*arrays, **named)


@pytest.fixture(scope="module", params=VARIANTS)
def causal(request):
    return Jitted("causal_transformer", **VARIANTS[request.param])


@pytest.fixture(scope="module", params=["paper", "rotary"])
def translator(request):
    return Jitted("transformer", **VARIANTS[request.param])


def draw_tokens(seed, *shape):
    return np.random.default_rng(seed).integers(0, VOCAB, shape).astype(np.int32)


def change_each_place(tokens, seed):
    """Return `[N, N]` rows of the same tokens `[N]`, and the same with another token at place r of row r."""
    rows = np.tile(tokens, (len(tokens), 1))
    shift = np.random.default_rng(seed).integers(1, VOCAB, len(tokens)).astype(np.int32)
    return rows, (rows + np.diag(shift)) % VOCAB


def assert_unseen(call, rows, changed, may_see, **inputs):
    """Check, bit for bit, that the logits at place q of row r change only if q may see r."""
    before, after = call(rows, **inputs), call(changed, **inputs)
    differs = np.asarray((before != after).any(-1))  # [row, place]
    np.testing.assert_array_equal(differs & ~may_see.T, False)
    assert differs[np.diag_indices(len(rows))].all(), "a token's own logits depend on it"


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_later_tokens_are_not_seen(causal, seed):
    rows, changed = change_each_place(draw_tokens(seed, LENGTH), seed)
    assert_unseen(causal, rows, changed, np.tri(LENGTH, dtype=bool))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 1), min_size=LENGTH - 1, max_size=LENGTH - 1), st.integers(0, 3))
def test_packed_texts_and_padding_are_not_seen(causal, seed, breaks, num_padding):
    segments = 1 + np.cumsum([0, *breaks])
    segments[LENGTH - num_padding :] = 0
    rows, changed = change_each_place(draw_tokens(seed, LENGTH), seed)
    may_see = (segments[:, None] == segments) & np.tri(LENGTH, dtype=bool) | np.eye(LENGTH, dtype=bool)
    assert_unseen(causal, rows, changed, may_see, segments=np.tile(segments, (LENGTH, 1)))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, LENGTH))
def test_a_prefix_sees_itself_and_nothing_behind(causal, seed, prefix):
    rows, changed = change_each_place(draw_tokens(seed, LENGTH), seed)
    may_see = np.tri(LENGTH, dtype=bool) | (np.arange(LENGTH) < prefix)
    lengths = np.full(LENGTH, prefix, np.int32)
    assert_unseen(causal, rows, changed, may_see, prefix_lengths=lengths)
    if prefix > 1:
        differs = np.asarray(causal(rows, prefix_lengths=lengths) != causal(changed, prefix_lengths=lengths))
        assert differs[prefix - 1, 0].any(), "the first token of a prefix sees its last"


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, LENGTH - 1))
def test_a_target_sees_its_source_but_no_padding_and_nothing_later(translator, seed, length):
    call = translator
    source, target = draw_tokens(seed, LENGTH), draw_tokens(seed + 1, LENGTH)
    segments = np.tile((np.arange(LENGTH) < length).astype(np.int32), (LENGTH, 1))
    rows, changed = change_each_place(target, seed)
    sources = np.tile(source, (LENGTH, 1))
    inputs = {"source_segments": segments, "target_segments": np.ones_like(segments)}
    assert_unseen(lambda t, **i: call(sources, t, **i), rows, changed, np.tri(LENGTH, dtype=bool), **inputs)
    _, changed_source = change_each_place(source, seed)
    before, after = call(sources, rows, **inputs), call(changed_source, rows, **inputs)
    differs = np.asarray((before != after).any((-1, -2)))
    np.testing.assert_array_equal(differs, np.arange(LENGTH) < length)


def test_packed_texts_give_what_each_gives_alone(causal, translator):
    tokens = draw_tokens(0, 1, LENGTH)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 0]])
    packed = causal(tokens, segments=segments)
    for places in (slice(0, 3), slice(3, 7)):
        np.testing.assert_allclose(packed[:, places], causal(tokens[:, places]), atol=2e-6)
    source, source_segments = draw_tokens(1, 1, LENGTH), np.array([[1, 1, 2, 2, 2, 2, 0, 0]])
    packed = translator(source, tokens, source_segments=source_segments, target_segments=segments)
    for target, of in ((slice(0, 3), slice(0, 2)), (slice(3, 7), slice(2, 6))):
        alone = translator(source[:, of], tokens[:, target])
        np.testing.assert_allclose(packed[:, target], alone, atol=2e-6)


@pytest.mark.parametrize("steps", [(1,) * 8, (4, 1, 3)])
def test_decoding_with_a_cache_is_recomputing(causal, steps):
    tokens = draw_tokens(2, 2, LENGTH)
    cache, found, place = causal.model.init_cache(2, LENGTH), [], 0
    for step in steps:
        logits, cache = causal.decode(tokens[:, place : place + step], cache)
        found.append(logits)
        place += step
    np.testing.assert_allclose(np.concatenate(found, axis=1), causal(tokens), atol=1e-5)
    with pytest.raises(ValueError, match="do not fit a cache of 8"):
        causal.model.decode(tokens[:, :1], cache)


def test_decoding_beside_padding_on_the_left(causal):
    tokens = draw_tokens(3, 2, LENGTH)
    cache = dataclasses.replace(causal.model.init_cache(2, LENGTH), start=jnp.array([0, 3], jnp.int32))
    first, cache = causal.decode(tokens[:, :4], cache)
    second, cache = causal.decode(tokens[:, 4:5], cache)
    third, _ = causal.decode(tokens[:, 5:], cache)
    logits = np.concatenate([first, second, third], axis=1)
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[0], causal(tokens)[0], atol=1e-5)
    np.testing.assert_allclose(logits[1, 3:], causal(tokens[1:, 3:])[0], atol=1e-5)


def test_decoding_a_translation_is_recomputing_and_beams_can_be_reordered(translator):
    call, model = translator, translator.model
    source, target = draw_tokens(4, 3, LENGTH), draw_tokens(5, 3, LENGTH)
    segments = np.arange(LENGTH) < np.array([[8], [5], [1]])
    full = call(source, target, source_segments=segments.astype(np.int32), target_segments=np.ones((3, 8), np.int32))
    cache = model.init_cache(source, LENGTH, source_segments=segments.astype(np.int32))
    first, cache = call.decode(target[:, :4], cache)
    rows = jnp.array([2, 0, 0])
    second, _ = call.decode(target[rows, 4:], cache.take(rows))
    np.testing.assert_allclose(first, full[:, :4], atol=1e-5)
    np.testing.assert_allclose(second, full[rows, 4:], atol=1e-5)


def test_a_masked_transformer_sees_both_ways_and_remat_changes_nothing():
    call = Jitted("masked_transformer", depth=1)
    rows, changed = change_each_place(draw_tokens(6, LENGTH), 6)
    assert np.asarray((call(rows) != call(changed)).any(-1)).all()
    segments = np.tile([1, 1, 1, 1, 1, 1, 0, 0], (LENGTH, 1))
    differs = np.asarray((call(rows, segments=segments) != call(changed, segments=segments)).any(-1))
    assert differs[:6, :6].all()
    assert not differs[6:, :6].any()

    def gradient(remat):
        options = {**TINY, **VARIANTS["gpt"], "depth": 1}
        model = create_model("causal_transformer", **options, remat=remat, rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(model)
        return jax.jit(jax.grad(lambda params: nnx.merge(graphdef, params)(rows).max(-1).sum()))(params)

    plain, recomputed = (jax.tree.leaves(gradient(remat)) for remat in (False, True))
    for one, other in zip(plain, recomputed, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_rotary_attention_depends_on_distances_alone():
    options = {**TINY, **VARIANTS["rotary"], "depth": 1}
    layer = create_model("causal_transformer", **options, rngs=nnx.Rngs(0)).decoder[0].attention
    x = np.random.default_rng(0).normal(size=(1, 5, 16)).astype(np.float32)
    near, far = (layer(x, positions=jnp.arange(5) + offset) for offset in (0, 1000))
    np.testing.assert_allclose(near, far, atol=1e-4)
    assert np.abs(near - layer(x, positions=jnp.zeros(5, jnp.int32))).max() > 1e-3


def test_dropout_is_a_function_of_its_key():
    options = {**TINY, "depth": 1, "dropout_rate": 0.5, "attention_dropout_rate": 0.5}
    graphdef, state = nnx.split(create_model("transformer", **options, rngs=nnx.Rngs(0)))
    source, target = draw_tokens(7, 1, LENGTH), draw_tokens(8, 1, LENGTH)
    call = jax.jit(lambda key: nnx.merge(graphdef, state)(source, target, rngs=nnx.Rngs(dropout=key)))
    one, same, other = (call(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-2


def test_recorded_attention_is_a_distribution_over_what_may_be_seen(causal):
    with recorded_attention() as maps:
        causal.model(draw_tokens(9, 1, LENGTH), segments=np.array([[1, 1, 1, 2, 2, 2, 0, 0]]))
    assert [m.shape for m in maps] == [(1, 2, LENGTH, LENGTH)] * 2
    for m in maps:
        np.testing.assert_allclose(m.sum(-1), [[[1.0] * 6 + [0.0] * 2] * 2], atol=1e-6)
        assert (np.asarray(m)[0, :, 3:6, :3] == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "embed_dim=16 must be divisible by num_heads=3"),
        ({"positions": "rotray"}, "positions='rotray' is none of"),
        ({"positions": "rotary", "num_heads": 16}, "even head_dim"),
        ({"activation": "swish"}, "activation='swish'"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"vocab": 7}, "did you mean 'vocab_size'"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("causal_transformer", **{**TINY, **options}, rngs=nnx.Rngs(0))


def test_wrong_tokens_are_named(causal):
    call, model = causal, causal.model
    with pytest.raises(ValueError, match="token id 11 is out of range for vocab_size=11"):
        model(np.array([[1, 11]], np.int32))
    with pytest.raises(ValueError, match="token id -1"):
        model(np.array([[-1, 3]], np.int32))
    assert np.isnan(call(np.full((1, LENGTH), VOCAB, np.int32))).all(), "no silent clamp inside jit"
    if not model.is_rotary:
        with pytest.raises(ValueError, match="9 tokens are more than the model's max_length=8"):
            model(np.zeros((1, 9), np.int32))
        with pytest.raises(ValueError, match="max_length=8"):
            model.init_cache(1, 9)

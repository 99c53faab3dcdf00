"""The language tasks against sums written out token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swin_jax.errors import UserError
from swin_jax.models import create_model
from swin_jax.tasks import create_task, task_arguments

VOCAB = 7
LOGITS = np.random.default_rng(0).normal(size=(3, 5, VOCAB)).astype(np.float32)
LOG_PROBABILITIES = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
TOKENS = np.random.default_rng(1).integers(5, VOCAB, (3, 6)).astype(np.int32)
SEGMENTS = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 2, 0], [1, 1, 1, 0, 0, 0]], np.int32)


class Recorder:
    """A model that returns fixed logits and keeps what it was given."""

    def __init__(self, logits=LOGITS):
        self.logits = jnp.asarray(logits)

    def __call__(self, *arrays, rngs=None, **named):
        self.arrays, self.named = arrays, named
        return self.logits


def rngs(seed=0):
    return nnx.Rngs(dropout=0, augment=seed)


def predicted():
    """The (row, place) of each token that has one of its own text before it."""
    return [(b, n) for b in range(3) for n in range(5) if SEGMENTS[b, n] == SEGMENTS[b, n + 1] != 0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_next_token_loss_is_the_mean_over_tokens_of_the_same_text(smoothing):
    task = create_task("language_modeling", vocab_size=VOCAB, label_smoothing=smoothing)
    model = Recorder()
    loss, metrics = task.loss(model, {"tokens": jnp.array(TOKENS), "segments": jnp.array(SEGMENTS)}, rngs())
    expected = [
        -(1 - smoothing) * LOG_PROBABILITIES[b, n, TOKENS[b, n + 1]] - smoothing * LOG_PROBABILITIES[b, n].mean()
        for b, n in predicted()
    ]
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-6)
    hits = [LOGITS[b, n].argmax() == TOKENS[b, n + 1] for b, n in predicted()]
    np.testing.assert_allclose(metrics["accuracy"], np.mean(hits), rtol=1e-6)
    np.testing.assert_array_equal(model.arrays[0], TOKENS[:, :-1])
    np.testing.assert_array_equal(model.named["segments"], SEGMENTS[:, :-1])


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_a_text_alone_in_its_row_needs_no_segments(positions):
    """A causal model gives the same loss and the same gradients whether or not it is told where the texts end."""
    options = {"vocab_size": VOCAB, "max_length": 5, "embed_dim": 8, "depth": 2, "num_heads": 2, "positions": positions}
    graphdef, params = nnx.split(create_model("causal_transformer", **options, rngs=nnx.Rngs(0)))
    tokens, lengths = jnp.array(TOKENS), np.array([6, 4, 2])
    batch = {"tokens": tokens, "segments": jnp.array(np.arange(6) < lengths[:, None], jnp.int32)}

    def loss_of(params, packed):
        task = create_task("language_modeling", vocab_size=VOCAB, packed=packed)
        return task.loss(nnx.merge(graphdef, params), batch, rngs())[0]

    (told, told_gradients), (untold, gradients) = (
        jax.jit(jax.value_and_grad(loss_of), static_argnums=1)(params, packed) for packed in (True, False)
    )
    np.testing.assert_allclose(untold, told, rtol=1e-6)
    for gradient, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(told_gradients), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_evaluation_counts_scored_tokens_of_valid_rows_and_their_characters():
    characters = np.array([0, 0, 0, 0, 0, 1, 3], np.int32)
    task = create_task("language_modeling", vocab_size=VOCAB, token_characters=characters)
    scored = np.random.default_rng(2).random((3, 6)) < 0.7
    valid = np.array([True, True, False])
    batch = {"tokens": TOKENS, "segments": SEGMENTS, "scored": scored, "valid": valid}
    sums = task.evaluate(Recorder(), jax.tree.map(jnp.asarray, batch))
    counted = [(b, n) for b, n in predicted() if valid[b] and scored[b, n + 1]]
    losses = [-LOG_PROBABILITIES[b, n, TOKENS[b, n + 1]] for b, n in counted]
    assert sums["count"] == len(counted) > 2
    np.testing.assert_allclose(sums["loss"], sum(losses), rtol=1e-6)
    assert sums["characters"] == sum(characters[TOKENS[b, n + 1]] for b, n in counted)
    figures = task.summarize({name: float(value) for name, value in sums.items()})
    np.testing.assert_allclose(figures["perplexity"], np.exp(np.mean(losses)), rtol=1e-5)
    np.testing.assert_allclose(
        figures["bits_per_character"], sum(losses) / np.log(2) / float(sums["characters"]), rtol=1e-5
    )


def test_a_prefix_is_part_of_the_first_text_and_not_predicted():
    task = create_task("language_modeling", vocab_size=VOCAB, objective="prefix")
    seen = set()
    for seed in range(20):
        model = Recorder()
        loss, _ = task.loss(model, {"tokens": jnp.array(TOKENS), "segments": jnp.array(SEGMENTS)}, rngs(seed))
        lengths = np.asarray(model.named["prefix_lengths"])
        seen.add(int(lengths[0]))
        assert (lengths >= 1).all()
        assert (lengths <= [4, 1, 2]).all(), "a token of the first text is left to be predicted"
        expected = [-LOG_PROBABILITIES[b, n, TOKENS[b, n + 1]] for b, n in predicted() if n + 1 >= lengths[b]]
        np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-6)
    assert seen == {1, 2, 3, 4}


def test_masking_hides_its_share_as_bert_does():
    task = create_task("language_modeling", vocab_size=1000, mask_id=4, objective="masked", mask_rate=0.3)
    tokens = np.random.default_rng(0).integers(5, 1000, (64, 257)).astype(np.int32)
    segments = np.ones_like(tokens)
    segments[:, 200:] = 0
    model = Recorder(np.zeros((64, 256, 1000), np.float32))
    loss, _ = task.loss(model, {"tokens": jnp.array(tokens), "segments": jnp.array(segments)}, rngs())
    np.testing.assert_allclose(loss, np.log(1000), rtol=1e-5)
    inputs = np.asarray(model.arrays[0])
    changed = inputs != tokens[:, :-1]
    assert not changed[:, 200:].any()
    num_tokens = 64 * 200
    # 80% of the chosen become the mask, 10% another token (which is the same by chance once in a thousand).
    for share, expected in (((inputs == 4).sum() / num_tokens, 0.24), (changed.sum() / num_tokens, 0.27)):
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / num_tokens)


def test_what_an_evaluation_masks_depends_on_the_text_alone():
    task = create_task("language_modeling", vocab_size=VOCAB, mask_id=4, objective="masked", mask_rate=0.5)

    def inputs_of(rows):
        model = Recorder(np.zeros((len(rows), 5, VOCAB), np.float32))
        batch = {"tokens": TOKENS[rows], "segments": SEGMENTS[rows], "valid": np.ones(len(rows), bool)}
        task.evaluate(model, jax.tree.map(jnp.asarray, batch))
        return np.asarray(model.arrays[0])

    whole = inputs_of([0, 1, 2])
    assert (whole != TOKENS[:, :-1]).any()
    np.testing.assert_array_equal(inputs_of([2, 0]), whole[[2, 0]])


def test_translation_loss_and_its_evaluation():
    target, segments = TOKENS, SEGMENTS
    source = {"source": TOKENS[:, :4], "source_segments": SEGMENTS[:, :4]}
    batch = jax.tree.map(jnp.asarray, {**source, "target": target, "target_segments": segments})
    task = create_task("sequence_to_sequence", vocab_size=VOCAB, label_smoothing=0.1)
    model = Recorder()
    loss, _ = task.loss(model, batch, rngs())
    expected = [
        -0.9 * LOG_PROBABILITIES[b, n, target[b, n + 1]] - 0.1 * LOG_PROBABILITIES[b, n].mean() for b, n in predicted()
    ]
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-6)
    np.testing.assert_array_equal(model.arrays[1], target[:, :-1])
    sums = task.evaluate(Recorder(), {**batch, "valid": jnp.array([True, False, True])})
    plain = [-LOG_PROBABILITIES[b, n, target[b, n + 1]] for b, n in predicted() if b != 1]
    np.testing.assert_allclose(sums["loss"], sum(plain), rtol=1e-6)
    assert task.summarize({name: float(value) for name, value in sums.items()})["count"] == len(plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "mask"}, "did you mean 'masked'"),
        ({"objective": "masked"}, "mask token"),
        ({"mask_rate": 1.0}, "mask_rate must be in"),
        ({"label_smoothing": -0.1}, "label_smoothing must be in"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        create_task("language_modeling", vocab_size=VOCAB, **options)
    assert "objective" in task_arguments("language_modeling")

"""GPT-2 and Marian give HF's numbers with HF's weights loaded from a file, and go back to HF as they came."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swin_jax.convert import hf_state_dict, load_pretrained
from swin_jax.convert.load import parameters_of
from tests.convert import goldens

NAMES = list(goldens.TEXT_MODELS)


@pytest.fixture(scope="module", params=NAMES)
def outcome(request, tmp_path_factory):
    """The golden's name, the model and the report on it, and the logits and gradients, of one compilation."""
    name = request.param
    model, report = goldens.load(name, tmp_path_factory.mktemp(name))
    inputs, segments, _ = goldens.text_inputs(name)
    labels = goldens.read(name)["labels"]
    graph, state = nnx.split(model)

    def loss(state):
        logits = nnx.merge(graph, state)(*inputs, **segments)
        rows, places = np.nonzero(labels >= 0)
        return -jax.nn.log_softmax(logits)[rows, places, labels[rows, places]].mean(), logits

    differentiate = jax.jit(jax.grad(loss, has_aux=True), compiler_options=goldens.COMPILE_FAST)
    gradients, logits = differentiate(state)
    return name, model, report, logits, gradients


def test_the_report_accounts_for_everything(outcome):
    name, model, report, *_ = outcome
    assert report.layout == goldens.TEXT_MODELS[name]
    assert sorted(report.loaded) == sorted(parameters_of(model))
    assert not report.ignored
    assert not report.fresh


def test_logits_equal_hfs_with_padding_in_the_batch(outcome):
    name, _, _, logits, _ = outcome
    _, _, is_token = goldens.text_inputs(name)
    assert 0 < is_token.mean() < 1
    np.testing.assert_allclose(logits[is_token], goldens.read(name)["logits"][is_token], atol=1e-5, rtol=1e-5)


def test_gradients_of_every_parameter_equal_hfs(outcome, tmp_path):
    name, *_, gradients = outcome
    expected = goldens.build(name)
    load_pretrained(expected, goldens.write_weights(goldens.part(name, "gradients"), tmp_path))
    found = {".".join(map(str, path)): value[...] for path, value in nnx.to_flat_state(gradients)}
    expected = parameters_of(expected)
    assert found.keys() == expected.keys()
    for path, gradient in expected.items():
        scale = np.abs(gradient[...]).max()
        assert scale > 1e-6, path
        np.testing.assert_allclose(found[path], gradient[...], rtol=1e-3, atol=1e-4 * scale, err_msg=path)


def test_prompts_padded_on_the_left_get_the_logits_that_they_have_alone(tmp_path):
    """HF's logits for rows padded on the right are the rows' own, so they serve for those padded on the left."""
    model, _ = goldens.load("hf_gpt2", tmp_path)
    entries = goldens.read("hf_gpt2")
    length = entries["tokens"].shape[1]
    shifted = [np.roll(row, length - n) for row, n in zip(entries["tokens"], entries["lengths"], strict=True)]
    segments = (np.arange(length) >= length - entries["lengths"][:, None]).astype(np.int32)
    graph, state = nnx.split(model)
    run = jax.jit(
        lambda state: nnx.merge(graph, state)(jnp.asarray(shifted), segments=jnp.asarray(segments)),
        compiler_options=goldens.COMPILE_FAST,
    )
    logits = run(state)
    for row, expected, n in zip(logits, entries["logits"], entries["lengths"], strict=True):
        np.testing.assert_allclose(row[length - n :], expected[:n], atol=1e-5, rtol=1e-5)


def test_exported_tensors_are_hfs_own_to_the_bit(outcome):
    name, model, *_ = outcome
    exported, expected = hf_state_dict(model), goldens.part(name, "weights")
    assert exported.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(exported[key], tensor, err_msg=key)

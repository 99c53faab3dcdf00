"""Text weights load strictly: the variants of HF's files, what does not fit, and what goes back."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swin_jax.convert import hf_state_dict, load_pretrained, published_state_dict, save_hf
from swin_jax.convert.load import parameters_of
from swin_jax.errors import UserError
from swin_jax.models import create_model
from swin_jax.nn.positions import sinusoidal_positions
from tests.convert import goldens
from tests.convert.test_load import assert_same_parameters, fails, renamed, weights

WTE, LM_HEAD = "transformer.wte.weight", "lm_head.weight"
SHARED, ENCODER_TOKENS = "model.shared.weight", "model.encoder.embed_tokens.weight"
POSITIONS = "model.decoder.embed_positions.weight"


def loads_the_same(name: str, tensors: dict[str, np.ndarray], folder) -> dict[str, str]:
    """Return what was ignored."""
    model = goldens.build(name)
    report = load_pretrained(model, goldens.write_weights(tensors, folder))
    assert_same_parameters(model, goldens.load(name, folder)[0])
    return report.ignored


def test_gpt2_as_on_the_hub_with_its_buffers_loads(tmp_path):
    tensors = renamed(weights("hf_gpt2"), (r"^transformer\.", ""))
    assert "h.0.attn.c_attn.weight" in tensors
    for index in range(2):
        tensors[f"h.{index}.attn.bias"] = np.tril(np.ones((1, 1, 40, 40), np.float32))
        tensors[f"h.{index}.attn.masked_bias"] = np.float32(-1e4)
    assert loads_the_same("hf_gpt2", tensors, tmp_path) == {
        f"transformer.h.{index}.attn.{name}": "a buffer of the causal mask"
        for index in range(2)
        for name in ("bias", "masked_bias")
    }


def test_repeated_tables_and_sinusoids_are_told_as_such(tmp_path):
    tensors = weights("hf_gpt2")
    again = "the embedding table again"
    assert loads_the_same("hf_gpt2", tensors | {LM_HEAD: tensors[WTE]}, tmp_path) == {LM_HEAD: again}

    tensors = weights("hf_marian")
    copies = [LM_HEAD, ENCODER_TOKENS, "model.decoder.embed_tokens.weight"]
    sinusoids = np.array(sinusoidal_positions(512, 16, interleaved=False))
    tables = dict.fromkeys((POSITIONS, POSITIONS.replace("decoder", "encoder")), sinusoids)
    ignored = loads_the_same("hf_marian", tensors | dict.fromkeys(copies, tensors[SHARED]) | tables, tmp_path)
    assert ignored == dict.fromkeys(copies, again) | dict.fromkeys(tables, "sinusoids, which are computed")
    tensors[ENCODER_TOKENS] = tensors.pop(SHARED)
    assert not loads_the_same("hf_marian", tensors, tmp_path)


def test_tables_that_are_not_the_models_are_not_ignored(tmp_path):
    tensors = weights("hf_gpt2")
    error = fails(goldens.build("hf_gpt2"), tensors | {LM_HEAD: tensors[WTE] + 1}, tmp_path, fresh_head=True)
    assert (error.unexpected, error.missing, error.misshapen) == ([LM_HEAD], [], {})

    tensors = weights("hf_marian")
    others = {
        ENCODER_TOKENS: tensors[SHARED][::-1],
        POSITIONS: np.array(sinusoidal_positions(40, 16)),  # in another order
        "model.encoder.layernorm_embedding.weight": np.ones(16, np.float32),  # BART has one
    }
    error = fails(goldens.build("hf_marian"), tensors | others, tmp_path)
    assert sorted(error.unexpected) == sorted(others)


@pytest.mark.parametrize(("name", "table"), [("hf_gpt2", WTE), ("hf_marian", SHARED)])
def test_a_model_that_is_not_tied_takes_the_files_head_or_else_its_table(name, table, tmp_path):
    tensors = weights(name)
    untied = tensors | {LM_HEAD: tensors[table] + 1}
    for file, expected in ((tensors, tensors[table]), (untied, untied[LM_HEAD])):
        model = goldens.build(name, tie_embeddings=False)
        report = load_pretrained(model, goldens.write_weights(file, tmp_path))
        assert sorted(report.loaded) == sorted(parameters_of(model))
        np.testing.assert_array_equal(model.head.kernel[...], expected.T)
        np.testing.assert_array_equal(model.embed.embedding[...], tensors[table])
        assert hf_state_dict(model).keys() == untied.keys()
        np.testing.assert_array_equal(hf_state_dict(model)[LM_HEAD], expected)

    model = goldens.build(name, tie_embeddings=False)
    report = load_pretrained(model, goldens.write_weights(untied, tmp_path), fresh_head=True)
    assert report.fresh == {"head.kernel": "fresh_head=True"}
    assert report.ignored == {LM_HEAD: "of the file's head, where the model keeps its own"}


@pytest.mark.parametrize("change", [{"depth": 1}, {"depth": 3}, {"encoder_depth": 2}])
def test_another_depth_is_told_as_such(change, tmp_path):
    for name in ("hf_marian",) if "encoder_depth" in change else goldens.TEXT_MODELS:
        error = fails(goldens.build(name, **change), weights(name), tmp_path)
        assert str(error).endswith("the file's model is " + ("deeper" if change == {"depth": 1} else "less deep"))


def test_other_sizes_are_told_with_both(tmp_path):
    error = fails(goldens.build("hf_gpt2", max_length=64), weights("hf_gpt2"), tmp_path, resize="bicubic")
    assert error.misshapen == {"embed.pos_embed": "(40, 16) in the file, (64, 16) in the model"}
    assert str(error).endswith("(embed.pos_embed: (40, 16) in the file, (64, 16) in the model)")
    error = fails(goldens.build("hf_marian", vocab_size=58), weights("hf_marian"), tmp_path)
    assert error.misshapen == {
        "embed.embedding": "(53, 16) in the file, (58, 16) in the model",
        "logits_bias": "(53,) in the file, (58,) in the model",
    }
    for name in goldens.TEXT_MODELS:
        error = fails(goldens.build(name, embed_dim=32), weights(name), tmp_path)
        assert not error.missing
        assert not error.unexpected
        assert error.misshapen.keys() == parameters_of(goldens.build(name)).keys() - {"logits_bias"}


def test_a_base_model_lacks_the_bias_of_the_logits(tmp_path):
    tensors = renamed(weights("hf_marian"), (r"^model\.", ""))
    del tensors["final_logits_bias"]
    assert fails(goldens.build("hf_marian"), tensors, tmp_path).missing == ["logits_bias"]
    report = load_pretrained(goldens.build("hf_marian", logits_bias=False), tmp_path / "weights.safetensors")
    assert not report.ignored


def test_a_model_that_computes_something_else_is_refused(tmp_path):
    changes = {
        "hf_gpt2": {"positions": "sinusoidal", "post_norm": True, "scale_embedding": True},
        "hf_marian": {"positions": "sinusoidal", "post_norm": False},
    }
    native = {
        "hf_gpt2": {"positions": "'learned'", "post_norm": False, "scale_embedding": False},
        "hf_marian": {"positions": "'sinusoidal_halves'", "post_norm": True},
    }
    for name, options in changes.items():
        file = goldens.write_weights(weights(name), tmp_path)
        for key, value in options.items():
            message = f"{goldens.TEXT_MODELS[name]}, which has {key}={native[name][key]}"
            model = goldens.build(name, **{key: value})
            with pytest.raises(UserError, match=re.escape(message) + "$"):
                load_pretrained(model, file)
            with pytest.raises(UserError, match=re.escape(message) + "$"):
                hf_state_dict(model)


def test_a_file_of_another_family_is_told(tmp_path):
    file = goldens.write_weights(weights("hf_gpt2"), tmp_path)
    with pytest.raises(UserError, match="holds a HF GPT-2, which a CausalTransformer takes, not a Transformer"):
        load_pretrained(goldens.build("hf_marian"), file)
    with pytest.raises(UserError, match="holds a HF GPT-2, which a CausalTransformer takes, not a VisionTransformer"):
        load_pretrained(goldens.build("timm_vit"), file)
    with pytest.raises(UserError, match="holds a timm ViT, which a VisionTransformer takes, not a CausalTransformer"):
        load_pretrained(goldens.build("hf_gpt2"), goldens.write_weights(weights("timm_vit"), tmp_path))


@pytest.mark.parametrize("name", goldens.TEXT_MODELS)
def test_a_saved_model_loads_as_it_was(name, tmp_path):
    model, _ = goldens.load(name, tmp_path)
    save_hf(model, tmp_path / "model.safetensors")
    again = goldens.build(name)
    assert not load_pretrained(again, tmp_path / "model.safetensors").ignored
    assert_same_parameters(again, model)
    assert published_state_dict(model).keys() == hf_state_dict(model).keys()


def test_what_hf_has_no_place_for_is_refused(tmp_path):
    def refused(message: str, model: nnx.Module) -> None:
        with pytest.raises(UserError, match=message):
            hf_state_dict(model)

    refused("HF GPT-2, which has a bias in decoder.0.attention.qkv", goldens.build("hf_gpt2", qkv_bias=False))
    with_bias, _ = goldens.load("hf_gpt2", tmp_path)
    with_bias.logits_bias = nnx.data(nnx.Param(jnp.zeros(61)))
    refused("HF GPT-2 has no place for the parameter logits_bias", with_bias)
    masked = nnx.eval_shape(lambda: create_model("masked_transformer", vocab_size=9, depth=1, rngs=nnx.Rngs(0)))
    refused("only CausalTransformer and Transformer can be written for HF transformers", masked)
    with pytest.raises(UserError, match="a MaskedTransformer has no published layout to be written in"):
        published_state_dict(masked)

"""Written for timm and read in again, a model is the same; and timm's own names come out."""

import numpy as np
import pytest
from flax import nnx

from swin_jax.convert import load_pretrained, save_timm, timm_state_dict
from swin_jax.errors import UserError
from tests.convert import goldens

TIMM = [name for name in goldens.MODELS if name.startswith("timm")]


@pytest.mark.parametrize("name", TIMM)
def test_exported_tensors_are_timms_own_to_the_bit(name, tmp_path):
    model, _ = goldens.load(name, tmp_path)
    exported, expected = timm_state_dict(model), goldens.part(name, "weights")
    assert exported.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(exported[key], tensor, err_msg=key)


@pytest.mark.parametrize("name", ["official_swin", "hf_deit", "google_big_vision_map"])
def test_a_model_from_elsewhere_goes_out_for_timm_and_comes_in_the_same(name, tmp_path):
    model, _ = goldens.load(name, tmp_path)
    save_timm(model, tmp_path / "exported.safetensors")
    again = goldens.build(name)
    report = load_pretrained(again, tmp_path / "exported.safetensors")
    assert report.layout.startswith("timm")
    assert not report.ignored
    for (path, a), (_, b) in zip(nnx.to_flat_state(nnx.state(model)), nnx.to_flat_state(nnx.state(again)), strict=True):
        np.testing.assert_array_equal(a[...], b[...], err_msg=str(path))
    assert list(tmp_path.glob(".*")) == []


def test_fixed_positions_are_written_as_learned_ones(tmp_path):
    weights = goldens.part("google_big_vision_gap", "weights")
    weights = {name: tensor for name, tensor in weights.items() if "pos_embedding" not in name}
    model = goldens.build("google_big_vision_gap", pos_embed="sincos2d")
    load_pretrained(model, goldens.write_weights(weights, tmp_path))
    save_timm(model, tmp_path / "exported.safetensors")
    learned = goldens.build("google_big_vision_gap")
    load_pretrained(learned, tmp_path / "exported.safetensors")
    images = goldens.part("google_big_vision_gap", "images")["16x16"]
    np.testing.assert_allclose(goldens.run(learned, images)[0], goldens.run(model, images)[0], atol=1e-6)


def test_what_timm_has_no_names_for_is_refused():
    with pytest.raises(UserError, match="SwinTransformer and VisionTransformer"):
        timm_state_dict(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))

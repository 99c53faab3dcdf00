"""Loading is strict: every tensor and parameter is accounted for, and what does not fit is told in one line."""

import re

import numpy as np
import pytest
from flax import nnx

from swin_jax.convert import LoadError, load_pretrained, timm_state_dict
from swin_jax.convert.load import parameters_of
from swin_jax.errors import UserError
from tests.convert import goldens


def weights(name: str) -> dict[str, np.ndarray]:
    return dict(goldens.part(name, "weights"))


def fails(model: nnx.Module, tensors: dict[str, np.ndarray], folder, **options) -> LoadError:
    with pytest.raises(LoadError) as failure:
        load_pretrained(model, goldens.write_weights(tensors, folder), **options)
    assert "\n" not in str(failure.value)
    return failure.value


@pytest.mark.parametrize("name", ["official_swin", "hf_swin", "timm_vit", "google_augreg"])
def test_the_report_accounts_for_everything(name, tmp_path):
    tensors = weights(name)
    model, report = goldens.load(name, tmp_path)
    assert sorted(report.loaded) == sorted(parameters_of(model))
    buffers = {key for key in tensors if key.endswith(("relative_position_index", "attn_mask"))}
    assert report.ignored.keys() == buffers
    assert bool(buffers) == (name == "official_swin")
    assert f"{len(report.loaded)} parameters loaded" in str(report)


def test_missing_unexpected_and_misshapen_are_all_listed(tmp_path):
    tensors = weights("timm_vit")
    del tensors["blocks.1.mlp.fc2.bias"]
    tensors["blocks.1.mlp.fc3.bias"] = np.zeros(3, np.float32)
    tensors["norm.weight"] = np.zeros(17, np.float32)
    tensors["patch_embed.proj.weight"] = np.zeros((16, 48), np.float32)
    error = fails(goldens.build("timm_vit"), tensors, tmp_path)
    assert error.missing == ["blocks.1.mlp.fc2.bias"]
    assert error.unexpected == ["blocks.1.mlp.fc3.bias"]
    assert error.misshapen.keys() == {"norm.scale", "patch_embed.proj.kernel"}
    assert "(17,) in the file, (16,) in the model" in error.misshapen["norm.scale"]
    for name in (*error.missing, *error.unexpected, *error.misshapen):
        assert name in str(error)


def test_a_model_that_a_file_does_not_fit_stays_as_it_was(tmp_path):
    model, _ = goldens.load("timm_vit", tmp_path)
    before = timm_state_dict(model)
    tensors = {**before, "head.bias": np.ones(7, np.float32), "norm.weight": np.full(16, 5, np.float32)}
    fails(model, tensors, tmp_path)
    for name, tensor in timm_state_dict(model).items():
        np.testing.assert_array_equal(tensor, before[name])


@pytest.mark.parametrize("depth", [1, 3])
def test_another_depth_is_told_as_such(depth, tmp_path):
    error = fails(goldens.build("timm_vit", depth=depth), weights("timm_vit"), tmp_path)
    assert str(error).endswith("the file's model is deeper" if depth == 1 else "the file's model is less deep")
    error = fails(goldens.build("google_augreg", depth=depth), weights("google_augreg"), tmp_path)
    assert str(error).endswith("the file's model is deeper" if depth == 1 else "the file's model is less deep")


@pytest.mark.parametrize("name", ["timm_swin_gradients", "hf_vit", "timm_deit_distilled", "google_augreg"])
def test_another_number_of_classes_takes_a_fresh_head_only_when_asked(name, tmp_path):
    error = fails(goldens.build(name, num_classes=7), weights(name), tmp_path)
    assert str(error).endswith("for another number of classes pass fresh_head=True")

    model = goldens.build(name, num_classes=7)
    heads = {name for name in parameters_of(model) if name.startswith("head")}
    report = load_pretrained(model, tmp_path / goldens.write_weights(weights(name), tmp_path).name, fresh_head=True)
    assert report.fresh == dict.fromkeys(heads, "fresh_head=True")
    assert len(report.ignored) == len(heads)
    assert set(report.loaded) == parameters_of(model).keys() - heads


def test_a_backbone_takes_a_file_with_a_head_and_the_reverse_only_when_asked(tmp_path):
    backbone = goldens.build("timm_vit", num_classes=0)
    report = load_pretrained(backbone, goldens.write_weights(weights("timm_vit"), tmp_path))
    assert report.ignored.keys() == {"head.weight", "head.bias"}
    headless = {name: tensor for name, tensor in weights("timm_vit").items() if not name.startswith("head")}
    error = fails(goldens.build("timm_vit"), headless, tmp_path)
    assert error.missing == ["head.bias", "head.kernel"]
    assert str(error).endswith("the file has no such head, for the model's own pass fresh_head=True")
    load_pretrained(goldens.build("timm_vit"), goldens.write_weights(headless, tmp_path), fresh_head=True)


def test_a_distilled_file_does_not_pass_for_a_plain_one(tmp_path):
    error = fails(goldens.build("timm_vit"), weights("timm_deit_distilled"), tmp_path)
    assert set(error.unexpected) == {"dist_token", "head_dist.weight", "head_dist.bias"}


def test_a_representation_layer_before_the_head_is_not_dropped_in_silence(tmp_path):
    tensors = {**weights("google_augreg"), "pre_logits/kernel": np.ones((16, 16)), "pre_logits/bias": np.ones(16)}
    error = fails(goldens.build("google_augreg"), tensors, tmp_path)
    assert set(error.unexpected) == {"pre_logits/kernel", "pre_logits/bias"}
    report = load_pretrained(goldens.build("google_augreg"), goldens.write_weights(tensors, tmp_path), fresh_head=True)
    assert {"pre_logits/kernel", "head/kernel"} <= report.ignored.keys()


def test_a_representation_layer_is_read_where_the_model_has_one_and_written_for_nobody(tmp_path):
    kernel = np.arange(256, dtype=np.float32).reshape(16, 16)
    tensors = {**weights("google_augreg"), "pre_logits/kernel": kernel, "pre_logits/bias": np.ones(16, np.float32)}
    model = goldens.build("google_augreg", pre_logits=True)
    load_pretrained(model, goldens.write_weights(tensors, tmp_path))
    np.testing.assert_array_equal(model.pre_logits.kernel[...], kernel)
    with pytest.raises(UserError, match=r"timm ViT has no place for the parameter pre_logits\."):
        timm_state_dict(model)


def test_a_file_of_the_other_family_is_told(tmp_path):
    with pytest.raises(UserError, match="holds a timm Swin, which a SwinTransformer takes, not a VisionTransformer"):
        load_pretrained(goldens.build("timm_vit"), goldens.write_weights(weights("timm_swin"), tmp_path))


def test_an_architecture_that_is_none_of_ours_is_named(tmp_path):
    tensors = weights("timm_vit") | {"reg_token": np.zeros((1, 4, 16), np.float32)}
    error = fails(goldens.build("timm_vit", num_classes=7), tensors, tmp_path)
    assert str(error).endswith("holds a ViT with register tokens (reg_token), which no model here is")
    assert error.unexpected == ["reg_token"]
    assert error.misshapen.keys() == {"head.kernel", "head.bias"}


def test_timms_swin_v2_has_no_layout_here_but_a_name(tmp_path):
    tensors = renamed(weights("timm_swin_gradients"), (r"relative_position_bias_table", "cpb_mlp.0.weight"))
    with pytest.raises(UserError, match=r"holds a Swin v2 \(layers.0.blocks.0.attn.cpb_mlp.0.weight\)"):
        load_pretrained(goldens.build("timm_vit"), goldens.write_weights(tensors, tmp_path))


def test_no_resize_is_advised_where_it_would_not_help(tmp_path):
    model = goldens.build("timm_swin_gradients", window_size=3, num_heads=(4, 4))
    error = fails(model, weights("timm_swin_gradients"), tmp_path)
    assert "(49, 2) in the file, (25, 4) in the model" in str(error)
    assert "pass resize" not in str(error)


def test_keys_of_no_layout_are_told(tmp_path):
    file = goldens.write_weights({"conv1.weight": np.zeros(3, np.float32)}, tmp_path)
    with pytest.raises(UserError, match=r"no layout known here \(conv1.weight"):
        load_pretrained(goldens.build("timm_vit"), file)


def renamed(tensors: dict[str, np.ndarray], *rules: tuple[str, str]) -> dict[str, np.ndarray]:
    for pattern, replacement in rules:
        tensors = {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}
    return tensors


def assert_same_parameters(model: nnx.Module, expected: nnx.Module) -> None:
    parameters = parameters_of(model)
    assert parameters.keys() == parameters_of(expected).keys()
    for key, variable in parameters_of(expected).items():
        np.testing.assert_array_equal(parameters[key][...], variable[...], err_msg=key)


def assert_loads_the_same(name: str, tensors: dict[str, np.ndarray], folder) -> None:
    expected, _ = goldens.load(name, folder)
    model = goldens.build(name)
    report = load_pretrained(model, goldens.write_weights(tensors, folder))
    assert report.layout == goldens.MODELS[name]
    assert_same_parameters(model, expected)


def test_hf_names_of_transformers_5_load_too(tmp_path):
    assert_loads_the_same(
        "hf_swin",
        renamed(
            weights("hf_swin"),
            (r"attention\.self\.(query|key|value)", lambda match: f"attention.{match[1][0]}_proj"),
            (r"attention\.self\.relative", "attention.relative_position_bias.relative"),
            (r"attention\.output\.dense", "attention.o_proj"),
            (r"intermediate\.dense", "mlp.fc1"),
            (r"output\.dense", "mlp.fc2"),
        ),
        tmp_path,
    )
    assert_loads_the_same(
        "hf_deit",
        renamed(
            weights("hf_deit"),
            (r"encoder\.layer\.", "layers."),
            (r"attention\.attention\.(query|key|value)", lambda match: f"attention.{match[1][0]}_proj"),
            (r"attention\.output\.dense", "attention.o_proj"),
            (r"intermediate\.dense", "mlp.fc1"),
            (r"output\.dense", "mlp.fc2"),
        ),
        tmp_path,
    )


def test_hf_base_models_and_wrapped_models_load(tmp_path):
    tensors = renamed(weights("hf_vit"), (r"^vit\.", ""))
    tensors |= {"pooler.dense.weight": np.zeros((16, 16), np.float32), "pooler.dense.bias": np.zeros(16, np.float32)}
    assert_loads_the_same("hf_vit", tensors, tmp_path)
    assert_loads_the_same("official_swin", renamed(weights("official_swin"), (r"^", "module.")), tmp_path)


def test_deit3s_own_names_load(tmp_path):
    tensors = renamed(weights("timm_deit3"), (r"ls([12])\.gamma", r"gamma_\1"))
    assert any("gamma_1" in name for name in tensors)
    assert_loads_the_same("timm_deit3", tensors, tmp_path)


@pytest.mark.parametrize(
    ("name", "rules", "mask_token"),
    [
        ("official_swin", ((r"^", "encoder."),), "encoder.mask_token"),  # SimMIM's checkpoints
        ("hf_vit", (), "vit.embeddings.mask_token"),
    ],
)
def test_encoders_of_masked_pre_training_load_without_the_decoder(name, rules, mask_token, tmp_path):
    tensors = {key: value for key, value in weights(name).items() if not key.startswith(("head.", "classifier."))}
    extra = {mask_token: np.zeros(3, np.float32), "decoder.0.weight": np.zeros(3, np.float32)}
    model = goldens.build(name, num_classes=0)
    report = load_pretrained(model, goldens.write_weights(renamed(tensors, *rules) | extra, tmp_path))
    assert set(report.loaded) == parameters_of(model).keys()
    left_out = {key: why for key, why in report.ignored.items() if key.endswith(("mask_token", "decoder.0.weight"))}
    assert len(left_out) == 2
    assert set(left_out.values()) == {"of masked pre-training"}


def test_scanned_blocks_of_big_vision_load(tmp_path):
    tensors = weights("google_big_vision_map")
    stacked = {name: value for name, value in tensors.items() if "encoderblock_" not in name}
    for name in [name for name in tensors if "encoderblock_0" in name]:
        parts = [tensors[name.replace("encoderblock_0", f"encoderblock_{index}")] for index in range(2)]
        stacked[name.replace("encoderblock_0", "encoderblock")] = np.stack(parts)
    assert_loads_the_same("google_big_vision_map", stacked, tmp_path)


def test_training_state_and_text_towers_beside_the_weights_are_left_out(tmp_path):
    tensors = weights("google_big_vision_gap") | {"opt/state/step": np.zeros(()), "params/txt/head/kernel": np.ones(2)}
    model = goldens.build("google_big_vision_gap")
    report = load_pretrained(model, goldens.write_weights(tensors, tmp_path))
    assert report.ignored == dict.fromkeys(("opt/state/step", "params/txt/head/kernel"), "not of the image model")


def test_bfloat16_of_numpy_loads(tmp_path):
    import ml_dtypes

    tensors = {name: value.astype(ml_dtypes.bfloat16) for name, value in weights("google_augreg").items()}
    model = goldens.build("google_augreg")
    load_pretrained(model, goldens.write_weights(tensors, tmp_path))
    kernel = np.asarray(model.head.kernel[...])
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, tensors["head/kernel"].astype(np.float32))


@pytest.mark.parametrize("prefix", [True, False])
def test_the_class_tokens_position_may_lie_in_the_token(prefix, tmp_path):
    """big_vision adds positions before the class token joins, the original ViT after: the same sum."""
    tensors = weights("google_augreg")
    positions = tensors["Transformer/posembed_input/pos_embedding"]
    if prefix:
        tensors["cls"] = tensors["cls"] + positions[:, :1]
        tensors["Transformer/posembed_input/pos_embedding"] = positions[:, 1:]
    model = goldens.build("google_augreg", pos_embed_prefix=prefix)
    report = load_pretrained(model, goldens.write_weights(tensors, tmp_path))
    assert "pos_embed" in report.reshaped
    size, images = next(iter(goldens.part("google_augreg", "images").items()))
    logits, _ = goldens.run(model, images)
    np.testing.assert_allclose(logits, goldens.part("google_augreg", "logits")[size], atol=1e-5)

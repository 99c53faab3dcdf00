"""What is said of a file that does not fit: the architecture it is of, or how to make it fit."""

import pytest

from swin_jax.convert.misfit import misfit


def message(missing=(), unexpected=(), misshapen=None, resizable=()) -> str:
    error = misfit("FILE", "Model", list(missing), list(unexpected), misshapen or {}, resizable=resizable)
    assert (error.missing, error.unexpected, error.misshapen) == (list(missing), list(unexpected), misshapen or {})
    return str(error)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ("reg_token", "ViT with register tokens"),
        ("embeddings.register_tokens", "ViT with register tokens"),
        ("norm_pre.weight", "ViT with a norm before its blocks, as CLIP has"),
        ("blocks.0.attn.q_bias", "BEiT or a ViT like it"),
        ("beit.embeddings.cls_token", "BEiT or a ViT like it"),
        ("blocks.3.attn.rel_pos.mlp.fc1.weight", "ViT with relative positions"),
        ("blocks_token_only.0.norm1.weight", "CaiT"),
        ("layers.0.blocks.0.attn.logit_scale", "Swin v2"),
        ("layers.0.blocks.0.attn.cpb_mlp.0.weight", "Swin v2"),
        ("swinv2.encoder.layers.0.blocks.0.attention.self.logit_scale", "Swin v2"),
        ("layers.0.blocks.1.spatial_mlp.weight", "Swin-MLP"),
        ("absolute_pos_embed", "Swin with absolute positions"),
    ],
)
def test_architectures_like_ours_are_named_by_the_tensor_that_tells(tensor, kind):
    expected = f"FILE holds a {kind} ({tensor}), which no model here is"
    assert message(unexpected=["head.extra", tensor], missing=["norm.scale"]) == expected


def test_a_deeper_swin_is_not_taken_for_another_architecture():
    unexpected = ["layers.1.blocks.1.attn.relative_position_bias_table", "layers.1.blocks.1.attn.qkv.bias"]
    assert message(unexpected=unexpected).endswith("; the file's model is deeper")


@pytest.mark.parametrize(
    ("found", "advice"),
    [
        ({"misshapen": {"head.kernel": "x"}}, "for another number of classes pass fresh_head=True"),
        ({"missing": ["head_dist.bias"]}, "the file has no such head, for the model's own pass fresh_head=True"),
        ({"misshapen": {"pos_embed": "x"}, "resizable": {"pos_embed"}}, "or window pass resize='bicubic'"),
    ],
)
def test_advice_is_given_where_nothing_else_is_wrong(found, advice):
    assert message(**found).endswith(advice)
    assert "pass" not in message(**found, unexpected=["fc.weight"])
    assert "pass" not in message(**{**found, "missing": [*found.get("missing", []), "norm.bias"]})


def test_a_table_that_no_resize_mends_takes_no_advice():
    assert "pass" not in message(misshapen={"pos_embed": "x", "head.bias": "x"})

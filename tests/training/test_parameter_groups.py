"""Which parameters decay and how fast each learns, against tables written by hand."""

import json
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from swin_jax.errors import UserError
from swin_jax.models import create_model
from swin_jax.training.parameter_groups import decay_factors, decay_mask, layer_factors, learning_rate_factors
from swin_jax.training.sharding import path_name
from swin_jax.training.state import split_model
from tests.convert import goldens


def test_decay_mask_spares_biases_tokens_and_tables():
    shapes = {
        "patch_embed": {"proj": {"kernel": (4, 4, 3, 8), "bias": (8,)}, "norm": {"scale": (8,)}},
        "cls_token": (1, 1, 8),
        "dist_token": (1, 1, 8),
        "pos_embed": (1, 17, 8),
        "blocks": {
            "0": {
                "attention": {
                    "qkv": {"kernel": (8, 3, 2, 4), "bias": (3, 2, 4)},
                    "relative_position_bias_table": (9, 2),
                    "proj": {"kernel": (8, 8), "bias": (8,)},
                },
                "layer_scale1": {"gamma": (8,)},
            }
        },
    }
    params = jax.tree.map(jnp.zeros, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    mask = decay_mask(params)
    decayed = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in jax.tree_util.tree_leaves_with_path(mask)
        if leaf
    }
    assert decayed == {
        "patch_embed.proj.kernel",
        "blocks.0.attention.qkv.kernel",
        "blocks.0.attention.proj.kernel",
    }


SWIN = {
    "depths": (1, 2, 1),
    "num_heads": (1, 1, 1),
    "embed_dim": 4,
    "image_size": 16,
    "patch_size": 2,
    "window_size": 2,
}
VIT = {"depth": 3, "num_heads": 1, "embed_dim": 4, "image_size": 8, "patch_size": 4}


def parameters(family, **options):
    options = {"num_classes": 3, **options}
    return jax.eval_shape(lambda: split_model(create_model(family, **options, rngs=nnx.Rngs(0)))[1:])[0]


def by_prefix(tree, prefixes):
    """Return the values below each prefix; every parameter must have one."""
    values = {prefix: set() for prefix in prefixes}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        (prefix,) = [prefix for prefix in prefixes if path_name(path).startswith(prefix)]
        values[prefix].add(round(leaf, 9))
    return values


def test_layer_decay_of_swin_is_that_of_simmim():
    factors = layer_factors(parameters("swin", **SWIN), 0.8)
    exponents = {  # 4 blocks: the top is layer 5, at the full rate
        "patch_embed.": 5,
        "stages.0.blocks.0.": 4,
        "stages.1.downsample.": 4,  # the official layers.0.downsample
        "stages.1.blocks.0.": 3,
        "stages.1.blocks.1.": 2,
        "stages.2.downsample.": 2,
        "stages.2.blocks.0.": 1,
        "norm.": 0,
        "head.": 0,
    }
    assert by_prefix(factors, exponents) == {prefix: {round(0.8**n, 9)} for prefix, n in exponents.items()}


@pytest.mark.parametrize(
    ("options", "below", "above"),
    [
        ({}, ("pos_embed", "cls_token"), ("norm.", "head.")),
        ({"distilled": True}, ("pos_embed", "cls_token", "dist_token"), ("norm.", "head.", "head_dist.")),
        ({"pool": "gap", "fc_norm": True, "pos_embed": "sincos2d"}, (), ("fc_norm.", "head.")),
        ({"pool": "map"}, ("pos_embed",), ("norm.", "attn_pool.", "head.")),
    ],
)
def test_layer_decay_of_vit_is_that_of_beit_and_mae(options, below, above):
    factors = layer_factors(parameters("vit", **VIT, **options), 0.65)
    exponents = {"patch_embed.": 4, "blocks.0.": 3, "blocks.1.": 2, "blocks.2.": 1}
    exponents |= dict.fromkeys(below, 4) | dict.fromkeys(above, 0)
    assert by_prefix(factors, exponents) == {prefix: {round(0.65**n, 9)} for prefix, n in exponents.items()}


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_layer_decay_with_two_multipliers_is_timms(family):
    """timm counts the last norm to the last block, and a patch merging to the block above it."""
    golden = goldens.read("layer_decay_scales")
    decay = float(golden["decay"])
    options = json.loads(str(golden["about"]))["model"][family]
    multipliers = {"vit": ((r"^norm\.", decay),), "swin": ((r"^norm\.", decay), (r"\.downsample\.", 1 / decay))}
    layer = r"^(?:(?:stages\.\d+\.)?blocks\.\d+|stages\.\d+\.\w+|\w+)"

    def of_layers(factors):
        found = {}
        for path, factor in factors:
            found.setdefault(re.match(layer, path)[0], set()).add(round(factor, 9))
        return found

    factors = learning_rate_factors(
        parameters(options.pop("name"), **options), multipliers=multipliers[family], layer_decay=decay
    )
    ours = ((path_name(path), factor) for path, factor in jax.tree_util.tree_leaves_with_path(factors))
    theirs = json.loads(str(golden["scales"]))[family].items()
    theirs = of_layers((name.replace("layers.", "stages."), scale) for name, scale in theirs)
    assert of_layers(ours) == theirs
    assert len(theirs) == {"vit": 2 + 3 + 2, "swin": 1 + 6 + 2 + 2}[family]


def test_multipliers_and_layer_decay_multiply():
    factors = learning_rate_factors(
        parameters("vit", **VIT), multipliers=((r"^head\.", 10.0), (r"\.bias$", 2.0)), layer_decay=0.5
    )
    assert factors["head"] == {"kernel": 10.0, "bias": 10.0}
    assert factors["blocks"]["2"]["mlp"]["fc1"] == {"kernel": 0.5, "bias": 1.0}
    assert factors["cls_token"] == 0.5**4


def test_weight_decay_multipliers_stand_in_for_the_default():
    factors = decay_factors(parameters("vit", **VIT), ((r"^pos_embed$", 0.5), (r"blocks\.0\.mlp", 0.0)))
    assert factors["pos_embed"] == 0.5
    assert factors["cls_token"] == 0.0
    assert factors["blocks"]["0"]["mlp"]["fc1"] == {"kernel": 0.0, "bias": 0.0}
    assert factors["blocks"]["1"]["mlp"]["fc1"] == {"kernel": 1.0, "bias": 0.0}


@pytest.mark.parametrize(
    ("multipliers", "message"),
    [
        ((("haed", 2.0),), "'haed' matches no parameter"),
        ((("head", 2.0), ("^head.bias$", 1.0)), "'.head.bias.' matches only parameters that an earlier pattern takes"),
        ((("head(", 2.0),), "no regular expression"),
        ((("head", -1.0),), "-1.0 of 'head' must be a number of at least 0"),
        ((("head", float("nan")),), "nan of 'head'"),
        ((("head", True),), "True of 'head'"),
        (("head", 2.0), "takes pairs"),
        ((("head",),), "takes pairs"),
    ],
)
def test_multipliers_that_do_not_fit(multipliers, message):
    params = {"head": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}
    with pytest.raises(UserError, match=f"optimizer.learning_rate_multipliers.*{message}"):
        learning_rate_factors(params, multipliers=multipliers)
    with pytest.raises(UserError, match=f"optimizer.weight_decay_multipliers.*{message}"):
        decay_factors(params, multipliers)


def test_layer_decay_that_does_not_fit():
    params = {"conv": {"kernel": jnp.zeros((2, 2))}}
    with pytest.raises(UserError, match="layer_decay needs a model with `blocks` or `stages`"):
        learning_rate_factors(params, multipliers=(), layer_decay=0.9)
    for value in (0.0, 1.1, float("nan")):
        with pytest.raises(UserError, match="layer_decay="):
            learning_rate_factors(params, multipliers=(), layer_decay=value)

"""create_model: names, overrides, and layers swapped by name."""

import difflib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swin_jax.models import create_model, list_models
from swin_jax.nn.attention import MultiHeadAttention

SWIN = dict(image_size=16, patch_size=2, embed_dim=8, depths=(1, 2), num_heads=(1, 2), window_size=4, num_classes=5)
VIT = dict(image_size=16, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=5)


class MeanAttention(nnx.Module):
    """Every token receives the mean of its window or sequence; takes as many random draws as it likes."""

    def __init__(self, embed_dim, num_heads, *, qkv_bias, dropout_rate, dense, rngs, window_size=None):
        self.value = dense(embed_dim, embed_dim, rngs=rngs)
        rngs.params()

    def __call__(self, x, *, window_size=None, mask=None, rngs=None):
        return jnp.broadcast_to(self.value(x.mean(axis=1, keepdims=True)), x.shape)


def parameters(model):
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): np.asarray(value[...]) for path, value in flat}


def test_every_published_name_is_listed_and_a_near_miss_is_recognised():
    assert "swin_tiny_patch4_window7_224" in list_models()
    assert {"gpt2", "gpt2_medium", "gpt2_large", "gpt2_xl"} == set(list_models("causal_transformer"))
    images = {name for name in list_models() if name.startswith(("swin", "vit", "deit"))}
    assert images == set(list_models("swin", "vit"))
    with pytest.raises(ValueError, match="did you mean 'swin'"):
        list_models("swim")
    with pytest.raises(ValueError, match="did you mean 'swin_tiny_patch4_window7_224'"):
        create_model("swin_tiny_patch4_window7", rngs=nnx.Rngs(0))
    assert difflib.get_close_matches("vit_base_patch16", list_models())


@pytest.mark.parametrize(
    ("family", "overrides", "message"),
    [
        ("swin", {"embed_dims": 8}, "no argument 'embed_dims'; did you mean 'embed_dim'"),
        ("swin", {"image_size": 18, "patch_size": 4}, r"image_size=\(18, 18\) must be divisible by patch_size"),
        ("swin", {"num_heads": (3, 6)}, "embed_dim=8 must be divisible by num_heads=3"),
        ("swin", {"depths": (1, 1, 1)}, "same number of stages"),
        ("swin", {"window_padding": "reflect"}, "roll_pad"),
        ("swin", {"window_size": 0}, "window_size must be a positive"),
        ("swin", {"drop_path_rate": 1.0}, "drop path"),
        ("swin", {"init": "zeros"}, "fan_in"),
        ("swin", {"dtype": "float17"}, "float17"),
        ("swin", {"attention": "no_such_module:Attention"}, "no_such_module"),
        ("swin", {"attention": "swin_jax.nn.windows:Attention"}, "not importable"),
        ("vit", {"image_size": (16, 18)}, "divisible"),
        ("vit", {"drop_path_schedule": "cosine"}, "drop_path_schedule='cosine' is none of"),
        ("vit", {"pool": "mean"}, "'gap'"),
        ("vit", {"pool": "gap", "distilled": True}, "distilled"),
        ("vit", {"pos_embed": "rotary"}, "sincos2d"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(family, overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        create_model(family, **{**(SWIN if family == "swin" else VIT), **overrides}, rngs=nnx.Rngs(0))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("family", "options"), [("swin", SWIN), ("vit", VIT)])
def test_swapping_one_layer_leaves_the_others_as_they_started(family, options):
    ours = parameters(create_model(family, **options, rngs=nnx.Rngs(7)))
    name = f"{MeanAttention.__module__}:MeanAttention"
    swapped_model = create_model(family, **options, attention=name, rngs=nnx.Rngs(7))
    swapped = parameters(swapped_model)
    shared = [path for path in ours if ".attention." not in path]
    assert len(shared) > 10
    assert {path for path in swapped if ".attention." not in path} == set(shared)
    for path in shared:
        np.testing.assert_array_equal(ours[path], swapped[path], err_msg=path)
    assert jnp.isfinite(swapped_model(jnp.ones((2, 16, 16, 3)))).all()


def test_more_blocks_leave_the_first_ones_as_they_started():
    shallow, deep = (parameters(create_model("vit", **{**VIT, "depth": d}, rngs=nnx.Rngs(0))) for d in (1, 3))
    assert set(shallow) < set(deep)
    for path, value in shallow.items():
        np.testing.assert_array_equal(value, deep[path], err_msg=path)


def test_other_seeds_and_other_layers_start_differently():
    first, second = (parameters(create_model("swin", **SWIN, rngs=nnx.Rngs(seed))) for seed in (0, 1))
    path = "stages.1.blocks.0.mlp.fc1.kernel"
    assert (first[path] != second[path]).any()
    assert (first[path] != first["stages.1.blocks.1.mlp.fc1.kernel"]).any()


def test_norm_can_be_any_of_flax():
    model = create_model("vit", **VIT, norm="flax.nnx:RMSNorm", rngs=nnx.Rngs(0))
    assert not [path for path in parameters(model) if "norm" in path and path.endswith("bias")]


@pytest.mark.parametrize("family", ["swin", "vit"])
def test_rngs_turn_dropout_on_and_remat_changes_nothing(family):
    options = dict(SWIN if family == "swin" else VIT, drop_path_rate=0.5, dropout_rate=0.1, attention_dropout_rate=0.1)
    if family == "vit":
        options["zero_head"] = False
    model = create_model(family, **options, rngs=nnx.Rngs(0))
    remat = create_model(family, **options, remat=True, rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))

    @jax.jit
    def logits(key):
        return model(images, rngs=nnx.Rngs(dropout=key)), remat(images, rngs=nnx.Rngs(dropout=key))

    plain = model(images)
    first, first_remat = logits(jax.random.key(0))
    second, _ = logits(jax.random.key(1))
    np.testing.assert_array_equal(plain, model(images))
    np.testing.assert_allclose(first, first_remat, atol=1e-5)
    assert (first != plain).any()
    assert (first != second).any()


def test_bfloat16_computes_near_float32_and_returns_float32():
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    for family, options in (("swin", SWIN), ("vit", dict(VIT, zero_head=False))):
        exact = create_model(family, **options, rngs=nnx.Rngs(0))
        half = create_model(family, **options, dtype="bfloat16", rngs=nnx.Rngs(0))
        logits = half(images)
        assert logits.dtype == jnp.float32
        assert half.features(images)[0].dtype == jnp.bfloat16
        assert all(value.dtype == np.float32 for value in parameters(half).values())
        np.testing.assert_allclose(logits, exact(images), atol=0.1)


def test_attention_pooling_and_gap_equal_their_definitions():
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    gap = create_model("vit", **VIT, pool="gap", zero_head=False, rngs=nnx.Rngs(0))
    features = gap.features(images)[0]
    assert features.shape == (2, 4, 4, 8)
    np.testing.assert_allclose(gap(images), gap.head(features.mean(axis=(1, 2))), atol=1e-5)
    pooled = create_model("vit", **VIT, pool="map", zero_head=False, rngs=nnx.Rngs(0))
    tokens = pooled.features(images)[0].reshape(2, 16, 8)
    pool = pooled.attn_pool
    assert isinstance(pool.attention, MultiHeadAttention)
    attended = pool.attention(jnp.repeat(pool.probe[...], 2, 0), context=tokens)
    np.testing.assert_allclose(pooled(images), pooled.head((attended + pool.mlp(pool.norm(attended)))[:, 0]), atol=1e-5)


def test_other_image_sizes_and_rectangles():
    swin = create_model("swin", **SWIN, rngs=nnx.Rngs(0))
    vit = create_model("vit", **VIT, rngs=nnx.Rngs(0))
    for height, width in ((16, 24), (9, 31), (3, 3)):
        pyramid, logits = nnx.jit(lambda model, x: (model.features(x), model(x)))(swin, jnp.ones((1, height, width, 3)))
        rows, columns = -(-height // 2), -(-width // 2)
        assert pyramid[0].shape == (1, rows, columns, 8)
        assert pyramid[1].shape == (1, -(-rows // 2), -(-columns // 2), 16)
        assert jnp.isfinite(logits).all()
    assert vit.features(jnp.ones((1, 8, 24, 3)))[0].shape == (1, 2, 6, 8)
    with pytest.raises(ValueError, match="16x18 must be divisible"):
        vit(jnp.ones((1, 16, 18, 3)))


def test_masked_padding_sees_only_the_image():
    """A Swin with masked padding gives a map of 5 × 6 windows the same answer whatever the window grid leaves over."""
    model = create_model(
        "swin", **{**SWIN, "depths": (2,), "num_heads": (2,)}, window_padding="masked", rngs=nnx.Rngs(0)
    )
    images = jax.random.normal(jax.random.key(0), (1, 10, 12, 3))
    whole = model.features(images)[0]
    assert whole.shape == (1, 5, 6, 8)
    changed = model.features(images.at[:, :2, :2].add(1.0))[0]
    touched = np.abs(np.asarray(changed - whole)).max(axis=(0, 3)) > 0
    # One plain and one shifted block reach from the first window to the rows and columns of its neighbours, no further.
    assert touched[0, 0]
    assert not touched[:, 6:].any()
    assert (np.argwhere(touched).max(axis=0) <= [4, 5]).all()


def test_pre_logits_is_a_layer_with_tanh_between_the_pooling_and_the_head():
    options = VIT | dict(pool="gap", zero_head=False)
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    pooled = np.asarray(create_model("vit", **options | {"num_classes": 0}, rngs=nnx.Rngs(0))(images))
    model = create_model("vit", **options, pre_logits=True, rngs=nnx.Rngs(0))
    values = parameters(model)
    hidden = np.tanh(pooled @ values["pre_logits.kernel"] + values["pre_logits.bias"])
    expected = hidden @ values["head.kernel"] + values["head.bias"]
    np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("schedule", "rates"), [("linear", [0.0, 0.15, 0.3]), ("constant", [0.3, 0.3, 0.3])])
def test_drop_path_grows_or_stays(schedule, rates):
    options = VIT | dict(depth=3, drop_path_rate=0.3, drop_path_schedule=schedule)
    model = nnx.eval_shape(lambda: create_model("vit", **options, rngs=nnx.Rngs(0)))
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx(rates)

"""Recorded attention against a softmax written down here, and against what masks allow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swin_jax.errors import UserError
from swin_jax.models import create_model
from swin_jax.visualization.recording import image_attention, image_rollout, text_attention

TEXT = {"vocab_size": 11, "embed_dim": 8, "num_heads": 2, "depth": 2, "mlp_ratio": 1.0}
VIT = {
    "image_size": 12,
    "patch_size": 4,
    "embed_dim": 8,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 1.0,
    "num_classes": 3,
}
SWIN = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": (2, 1),
    "num_heads": (2, 4),
    "window_size": 4,
    "num_classes": 3,
}


def randomized(model):
    """Return the model with parameters large enough that attention is uneven."""
    for path, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Param):
            rng = np.random.default_rng(sum(map(ord, str(path))))
            variable[...] = jnp.asarray(rng.normal(0, 0.7, variable.shape), jnp.float32)
    return model


@pytest.fixture(scope="module")
def swin():
    return randomized(create_model("swin", **SWIN, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def vit():
    return randomized(create_model("vit", **VIT, rngs=nnx.Rngs(0)))


def image(side):
    return jnp.asarray(np.random.default_rng(0).normal(size=(side, side, 3)), jnp.float32)


def softmax_by_hand(attention, x, allowed=None, bias=0.0):
    """Return `[heads, N, N]` of tokens `[N, C]`, in double precision."""
    kernel, offset = (np.asarray(each[...], np.float64) for each in (attention.qkv.kernel, attention.qkv.bias))
    query, key, _ = (np.einsum("nc,chd->nhd", np.asarray(x, np.float64), kernel[:, i]) + offset[i] for i in range(3))
    scores = np.einsum("qhd,khd->hqk", query, key) * kernel.shape[-1] ** -0.5 + bias
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    unnormalized = np.exp(scores - scores.max(-1, keepdims=True))
    return unnormalized / unnormalized.sum(-1, keepdims=True)


def test_causal_attention_is_that_of_the_model():
    model = randomized(create_model("causal_transformer", **TEXT, post_norm=False, rngs=nnx.Rngs(0)))
    tokens = jnp.array([[1, 5, 2, 7, 3]])
    layers = text_attention(model, tokens)
    assert [(layer.name, layer.of_source) for layer in layers] == [
        ("decoder.0", (False, False)),
        ("decoder.1", (False, False)),
    ]
    block = model.decoder[0]
    x = block.norm1(model.embed(tokens, jnp.arange(5)))[0]
    np.testing.assert_allclose(
        layers[0].probabilities[0], softmax_by_hand(block.attention, x, np.tri(5, dtype=bool)), atol=1e-5
    )
    for layer in layers:
        assert (np.triu(layer.probabilities, 1) == 0).all()
        np.testing.assert_allclose(layer.probabilities.sum(-1), 1, atol=1e-6)


def test_encoder_decoder_layers_and_padding():
    model = create_model("transformer", **TEXT, encoder_depth=1, rngs=nnx.Rngs(0))
    source, target = jnp.ones((1, 6), jnp.int32), jnp.ones((1, 4), jnp.int32)
    source_segments, target_segments = jnp.array([[1, 1, 1, 2, 2, 0]]), jnp.array([[1, 2, 2, 0]])
    layers = text_attention(model, source, target, source_segments=source_segments, target_segments=target_segments)
    assert {layer.name: (layer.of_source, layer.probabilities.shape[2:]) for layer in layers} == {
        "encoder.0": ((True, True), (6, 6)),
        "decoder.0": ((False, False), (4, 4)),
        "decoder.0.cross": ((False, True), (4, 6)),
        "decoder.1": ((False, False), (4, 4)),
        "decoder.1.cross": ((False, True), (4, 6)),
    }
    by_name = {layer.name: layer.probabilities[0] for layer in layers}
    for name, probabilities in by_name.items():
        real = 5 if name.startswith("encoder") else 3
        np.testing.assert_allclose(probabilities[:, :real].sum(-1), 1, atol=1e-6)
        assert (probabilities[:, real:] == 0).all(), name  # padding attends to nothing
    cross = by_name["decoder.1.cross"]
    assert (cross[:, 0, :3] > 0).all()
    assert (cross[:, 0, 3:] == 0).all()
    assert (cross[:, 1:3, :3] == 0).all()


def test_masked_transformer_sees_both_sides():
    (layer,) = text_attention(
        create_model("masked_transformer", **{**TEXT, "depth": 1}, rngs=nnx.Rngs(0)), jnp.array([[1, 2, 3]])
    )
    assert (layer.name, layer.of_source) == ("encoder.0", (False, False))
    assert (layer.probabilities > 0).all()


def test_vit_attention_is_that_of_the_model(vit):
    layers, output = image_attention(vit, image(12))
    assert [layer.name for layer in layers] == ["blocks.0", "blocks.1"]
    np.testing.assert_array_equal(output, vit(image(12)[None])[0])
    x, _ = vit._embed(image(12)[None])
    block = vit.blocks[0]
    by_hand = softmax_by_hand(block.attention, block.norm1(x)[0])
    np.testing.assert_allclose(layers[0].probabilities[0], by_hand, atol=1e-5)
    np.testing.assert_allclose(layers[0].heat(), by_hand[:, 0, 1:].reshape(2, 3, 3), atol=1e-5)
    position = (0.5, 0.99)  # of the patch in row 1, column 2
    np.testing.assert_allclose(layers[0].heat(position), by_hand[:, 1 + 5, 1:].reshape(2, 3, 3), atol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "gap", "map"])
def test_rollout_reads_what_the_head_reads(pool):
    model = randomized(create_model("vit", **VIT, pool=pool, rngs=nnx.Rngs(0)))
    layers, _ = image_attention(model, image(12))
    mixed = np.eye(9 + (pool == "cls"))
    for layer in layers[:2]:
        mixed = (0.5 * layer.probabilities[0].mean(0) + 0.5 * np.eye(len(mixed))) @ mixed
    if pool == "cls":
        expected = mixed[0, 1:]
    elif pool == "gap":
        expected = mixed.mean(0)
        assert layers[0].reader is None
        np.testing.assert_allclose(layers[0].heat(), layers[0].probabilities[0].sum(1).reshape(2, 3, 3), rtol=1e-6)
    else:
        assert layers[2].name == "attn_pool"
        expected = layers[2].probabilities[0, :, 0].mean(0) @ mixed
        np.testing.assert_allclose(layers[2].heat().sum((1, 2)), 1, atol=1e-6)
    np.testing.assert_allclose(image_rollout(layers), expected.reshape(3, 3), atol=1e-6)
    np.testing.assert_allclose(
        image_rollout(layers, (0.0, 0.4)), mixed[-8, -9:].reshape(3, 3), atol=1e-6
    )  # of the second patch


def test_swin_attention_is_that_of_the_model(swin):
    """The shifted block over the whole 8x8 map at once, with the pairs that may see each other found by coordinates."""
    layers, output = image_attention(swin, image(16))
    assert [layer.name for layer in layers] == ["stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.0"]
    assert [layer.map_size for layer in layers] == [(8, 8), (8, 8), (4, 4)]
    np.testing.assert_array_equal(output, swin(image(16)[None])[0])
    plain, block = swin.stages[0].blocks
    x = block.norm1(plain(swin.patch_embed(image(16)[None])))[0].reshape(64, -1)
    places = np.stack(np.divmod(np.arange(64), 8), -1)
    groups = (places - 2) // 4  # of four, after a shift by two; -1 are those at the upper and left edge
    allowed = (groups[:, None] == groups[None]).all(-1)
    offsets = np.clip(places[:, None] - places[None], -3, 3) + 3
    table = np.asarray(block.attention.relative_position_bias_table[...])
    bias = table[offsets[..., 0] * 7 + offsets[..., 1]].transpose(2, 0, 1)
    by_hand = softmax_by_hand(block.attention, x, allowed, bias)
    for row, column in [(0, 0), (1, 5), (4, 4), (7, 1)]:
        heat = layers[1].heat(((row + 0.5) / 8, (column + 0.5) / 8))
        np.testing.assert_allclose(heat, by_hand[:, row * 8 + column].reshape(2, 8, 8), atol=1e-5)
    np.testing.assert_allclose(layers[1].heat(), by_hand.sum(1).reshape(2, 8, 8), atol=1e-5)
    for layer in layers:
        np.testing.assert_allclose(layer.probabilities.sum(-1), 1, atol=1e-6)


def test_rematerialised_blocks_are_seen_as_well(swin):
    model = create_model("swin", **SWIN, remat=True, rngs=nnx.Rngs(0))
    nnx.update(model, nnx.state(swin))
    expected, _ = image_attention(swin, image(16))
    for found, layer in zip(image_attention(model, image(16))[0], expected, strict=True):
        np.testing.assert_array_equal(found.probabilities, layer.probabilities)
    assert all(stage.remat for stage in model.stages)


class MeanAttention(nnx.Module):
    def __init__(self, embed_dim, num_heads, *, window_size, qkv_bias, dropout_rate, dense, rngs):
        pass

    def __call__(self, windows, *, window_size, mask=None, rngs=None):
        return jnp.broadcast_to(windows.mean(1, keepdims=True), windows.shape)


def test_attention_that_cannot_be_seen():
    own = create_model("swin", **SWIN, attention=MeanAttention, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="0 attentions were seen in a SwinTransformer of 3"):
        image_attention(own, image(16))
    with pytest.raises(UserError, match="Linear is neither"):
        image_attention(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), image(16))
    with pytest.raises(UserError, match="SwinTransformer is no model for text"):
        text_attention(own, jnp.ones((1, 2), jnp.int32))


def test_rollout_is_not_for_windows(swin):
    with pytest.raises(ValueError, match="not for windows"):
        image_rollout(image_attention(swin, image(16))[0])


def test_jitted_attention_is_refused():
    model = create_model("causal_transformer", **TEXT, rngs=nnx.Rngs(0))
    model.decoder[1].attention = _Jitted(model.decoder[1].attention)
    with pytest.raises(UserError, match="inside of jit"):
        text_attention(model, jnp.ones((1, 2), jnp.int32))


class _Jitted(nnx.Module):
    def __init__(self, attention):
        self.attention = attention

    def __call__(self, x, **options):
        return jax.jit(lambda x: self.attention(x, **options))(x)

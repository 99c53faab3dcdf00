"""The other implementations of attention: what can be run without a GPU, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swin_jax.errors import UserError
from swin_jax.models import create_model
from swin_jax.nn import implementations
from swin_jax.nn.attention import MultiHeadAttention, dot_product_attention, recorded_attention
from swin_jax.nn.implementations import (
    MULTI_HEAD,
    choose_attention,
    cudnn_attention,
    cudnn_window_attention,
    pallas_attention,
)
from swin_jax.nn.masks import causal_mask, padding_mask, shifted_window_mask

VIT = dict(image_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=2)
# What cuDNN is called with, computed by XLA.
on_cpu = partial(cudnn_attention, attend=partial(jax.nn.dot_product_attention, implementation="xla"))


def random_parts(*shape, tokens):
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (*shape, tokens, 2, 8)) for key in keys]


def assert_same(core, inputs, mask=None):
    """Compare outcome and gradients with `dot_product_attention`; `inputs` are query, key, value and bias or None."""

    def run(attend, inputs):
        def call(query, key, value, bias):
            return attend(query, key, value, bias=bias, mask=mask)

        out, pull = jax.vjp(call, *inputs)
        return out, *pull(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    found, expected = (jax.jit(partial(run, attend))(inputs) for attend in (core, dot_product_attention))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.parametrize(
    "mask",
    [
        None,
        causal_mask(9),
        padding_mask(jnp.array([9, 4]), 9),
        causal_mask(9) & np.arange(9)[:, None].astype(bool),  # the first row sees nothing
    ],
    ids=["none", "causal", "lengths", "empty row"],
)
@pytest.mark.parametrize("has_bias", [False, True], ids=["", "bias"])
def test_padding_and_masks_for_cudnn_change_nothing(mask, has_bias):
    bias = jax.random.normal(jax.random.key(1), (1, 2, 9, 9)) if has_bias else None
    assert_same(on_cpu, (*random_parts(2, tokens=9), bias), mask)


def test_windows_with_equal_masks_go_to_cudnn_together(monkeypatch):
    calls = []

    def attend(query, key, value, **options):
        calls.append(query.shape)
        return on_cpu(query, key, value, **options)

    monkeypatch.setattr(implementations, "cudnn_attention", attend)
    mask = shifted_window_mask((9, 12), (3, 3), (1, 1))
    bias = jax.random.normal(jax.random.key(1), (2, 9, 9))
    assert_same(cudnn_window_attention, (*random_parts(2, 12, tokens=9), bias), mask)
    # Of 3 x 4 windows: inside, right edge, lower edge, corner; of a batch of 2.
    assert sorted(shape[0] for shape in calls[:4]) == [2 * 1, 2 * 2, 2 * 3, 2 * 6]
    assert_same(cudnn_window_attention, (*random_parts(24, tokens=9), bias))


@pytest.mark.parametrize("mask", [None, causal_mask(70)], ids=["none", "causal"])
def test_flash_attention_of_jax_with_padding(mask):
    query, key, value = random_parts(1, tokens=70)
    assert_same(partial(pallas_attention, interpret=True), (query, key, value, None), mask)


def test_what_flash_attention_cannot_take_is_refused():
    query, key, value = random_parts(1, tokens=6)
    for options in (
        {"bias": jnp.zeros((2, 6, 6))},
        {"mask": jnp.asarray(causal_mask(6))},  # an array, which could be any mask
        {"mask": padding_mask(jnp.array([4]), 6)},
    ):
        with pytest.raises(ValueError, match="use 'cudnn' or 'xla'"):
            pallas_attention(query, key, value, **options)
    with pytest.raises(ValueError, match="other number of queries"):
        pallas_attention(query[:, :3], key, value)
    for core in (pallas_attention, cudnn_attention):
        with pytest.raises(ValueError, match=r"dropout_rate=0\.1"):
            core(query, key, value, dropout_rate=0.1, rngs=nnx.Rngs(dropout=0))


@pytest.mark.parametrize("core", [cudnn_attention, pallas_attention])
def test_attention_that_is_recorded_is_the_plain_one(core):
    query, key, value = random_parts(1, tokens=6)
    with recorded_attention() as maps:
        out = core(query, key, value, mask=causal_mask(6))
    np.testing.assert_array_equal(out, dot_product_attention(query, key, value, mask=causal_mask(6)))
    assert len(maps) == 1


@pytest.mark.parametrize("family", ["swin", "vit", "causal_transformer"])
@pytest.mark.parametrize("name", ["cudnn", "pallas"])
def test_on_a_cpu_only_xla_is_available(family, name):
    options = dict(vocab_size=5) if family == "causal_transformer" else {}
    with pytest.raises(UserError, match=f"attention_implementation='{name}' is not available on cpu, which has xla"):
        create_model(family, **options, attention_implementation=name, rngs=nnx.Rngs(0))


def test_an_unknown_implementation_is_refused():
    with pytest.raises(UserError, match="attention_implementation='flash' is none of 'auto', 'xla', 'cudnn', 'pallas'"):
        create_model("vit", **VIT, attention_implementation="flash", rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cudnn", {"dtype": "float32"}, "needs dtype bfloat16 or float16, not float32"),
        ("cudnn", {"head_dim": 20}, "multiple of 8, up to 128, not 20"),
        ("pallas", {"attention_dropout_rate": 0.1}, "attention_dropout_rate=0.1"),
        ("pallas", {"attention": nnx.Linear}, "is for MultiHeadAttention, not for <class"),
    ],
)
def test_on_a_gpu_limits_are_named_and_auto_goes_around_them(monkeypatch, name, changes, message):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setitem(implementations.FASTEST, "gpu", name)
    options = dict(
        attention=MultiHeadAttention,
        default=MultiHeadAttention,
        others=MULTI_HEAD,
        dtype="bfloat16",
        head_dim=32,
        attention_dropout_rate=0.0,
    )
    assert choose_attention(name=name, **options) is choose_attention(name="auto", **options) is MULTI_HEAD[name]
    options |= changes
    with pytest.raises(ValueError, match=message):
        choose_attention(name=name, **options)
    assert choose_attention(name="auto", **options) is options["attention"]

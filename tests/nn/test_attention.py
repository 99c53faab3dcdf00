"""Attention against attention over fewer tokens, and where nothing may be attended to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from swin_jax.nn.attention import MultiHeadAttention, dot_product_attention
from swin_jax.nn.initializers import dense_factory


def random_qkv(seed, queries, keys, heads=2, head_dim=4, batch=()):
    rng = np.random.default_rng(seed)
    sizes = (queries, keys, keys)
    return [rng.standard_normal((*batch, size, heads, head_dim)).astype(np.float32) for size in sizes]


def multi_head_attention(embed_dim=8, num_heads=2, **options):
    dense = dense_factory(nnx.initializers.normal(0.5), dtype=jnp.float32, param_dtype=jnp.float32)
    layer = MultiHeadAttention(embed_dim, num_heads, dense=dense, rngs=nnx.Rngs(0), **options)
    if layer.qkv.bias is not None:
        layer.qkv.bias[...] = jax.random.normal(jax.random.key(1), layer.qkv.bias.shape)
    return layer


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.booleans(), min_size=1, max_size=7))
def test_masked_keys_might_as_well_not_be_there(seed, kept):
    query, key, value = random_qkv(seed, 3, len(kept))
    bias = np.random.default_rng(seed + 1).standard_normal((2, 3, len(kept))).astype(np.float32)
    kept = np.array(kept)
    masked = dot_product_attention(query, key, value, bias=bias, mask=kept[None, None])
    if kept.any():
        expected = dot_product_attention(query, key[kept], value[kept], bias=bias[:, :, kept])
    else:
        expected = np.zeros_like(query)
    np.testing.assert_allclose(masked, expected, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_any_mask_is_attention_row_by_row_over_the_kept_keys(seed):
    query, key, value = random_qkv(seed, 4, 5, batch=(2,))
    mask = np.random.default_rng(seed).random((2, 2, 4, 5)) < 0.5
    result = np.asarray(dot_product_attention(query, key, value, mask=mask))
    for b, h, q in np.ndindex(2, 2, 4):
        keep = mask[b, h, q]
        scores = key[b, keep, h] @ query[b, q, h] / 2.0
        weights = np.exp(scores - scores.max(initial=-np.inf))
        expected = weights @ value[b, keep, h] / weights.sum() if keep.any() else np.zeros(4)
        np.testing.assert_allclose(result[b, q, h], expected, atol=1e-5)


def test_equals_jax_nn_where_every_row_attends():
    query, key, value = random_qkv(0, 5, 6, batch=(2,))
    bias = np.random.default_rng(1).standard_normal((2, 2, 5, 6)).astype(np.float32)
    mask = np.tri(5, 6, 1, dtype=bool)[None, None]
    expected = jax.nn.dot_product_attention(query, key, value, bias=bias, mask=mask)
    np.testing.assert_allclose(dot_product_attention(query, key, value, bias=bias, mask=mask), expected, atol=1e-6)


@pytest.mark.parametrize("how", ["mask", "bias"])
def test_fully_masked_rows_give_zeros_and_finite_gradients(how):
    query, key, value = random_qkv(0, 3, 4)
    allowed = np.ones((1, 3, 4), bool)
    allowed[:, 1] = False

    def output(query, key, value, bias):
        if how == "mask":
            return dot_product_attention(query, key, value, bias=bias, mask=allowed)
        return dot_product_attention(query, key, value, bias=jnp.where(allowed, bias, -jnp.inf))

    bias = jnp.zeros((2, 3, 4))
    result = output(query, key, value, bias)
    assert (result[1] == 0).all()
    assert (jnp.abs(result[0]) > 0).any()
    gradients = jax.grad(lambda *args: (output(*args) ** 2).sum(), argnums=(0, 1, 2, 3))(query, key, value, bias)
    assert all(jnp.isfinite(gradient).all() for gradient in gradients)
    assert (gradients[0][1] == 0).all()
    assert (gradients[3][:, 1] == 0).all()


def test_large_scores_do_not_overflow():
    query, key, value = (1e4 * array for array in random_qkv(0, 3, 4))
    assert jnp.isfinite(dot_product_attention(query, key, value)).all()


def test_softmax_is_in_float32_under_bfloat16():
    query, key, value = (jnp.asarray(array, jnp.bfloat16) for array in random_qkv(0, 16, 256))
    result = dot_product_attention(query, key, value)
    exact = dot_product_attention(*(array.astype(jnp.float32) for array in (query, key, value)))
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(result.astype(jnp.float32), exact, atol=0.01)


def test_dropout_acts_only_with_rngs_and_keeps_the_mean():
    query, key, value = random_qkv(0, 64, 64, heads=4)
    plain = dot_product_attention(query, key, value, dropout_rate=0.5)
    np.testing.assert_array_equal(plain, dot_product_attention(query, key, value))
    dropped = dot_product_attention(query, key, np.ones_like(value), dropout_rate=0.5, rngs=nnx.Rngs(0))
    assert dropped.std() > 0.01
    assert abs(float(dropped.mean()) - 1.0) < 0.02


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mask": np.ones((1, 3, 5), bool)}, ValueError, r"mask of shape \(1, 3, 5\)"),
        ({"bias": np.ones((3, 3, 4))}, ValueError, r"bias of shape \(3, 3, 4\)"),
        ({"mask": np.ones((1, 3, 4))}, TypeError, "boolean"),
    ],
)
def test_a_mask_or_bias_that_does_not_fit_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        dot_product_attention(*random_qkv(0, 3, 4), **options)


def test_shapes_that_do_not_fit_are_named():
    query, key, value = random_qkv(0, 3, 4)
    with pytest.raises(ValueError, match=r"key \(4, 2, 3\)"):
        dot_product_attention(query, key[..., :3], value)


def test_cross_attention_to_itself_is_self_attention():
    layer = multi_head_attention()
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    np.testing.assert_allclose(layer(x, context=x), layer(x), rtol=1e-5, atol=1e-6)


def test_cross_attention_sees_the_context_and_its_mask():
    layer = multi_head_attention()
    x, context = (jax.random.normal(jax.random.key(i), (2, n, 8)) for i, n in ((0, 3), (1, 6)))
    mask = np.arange(6) < 4
    short = layer(x, context=context[:, :4])
    np.testing.assert_allclose(layer(x, context=context, mask=mask[None, None, None]), short, atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 4), st.integers(0, 2**31))
def test_padding_a_sequence_under_a_mask_changes_nothing(padding, seed):
    layer = multi_head_attention()
    x = np.random.default_rng(seed).standard_normal((1, 5 + padding, 8)).astype(np.float32)
    mask = (np.arange(5 + padding) < 5)[None, None, None]
    np.testing.assert_allclose(layer(x, mask=mask)[:, :5], layer(x[:, :5]), atol=1e-5)


def test_without_qkv_bias_and_with_a_wrong_number_of_heads():
    assert multi_head_attention(qkv_bias=False).qkv.bias is None
    with pytest.raises(ValueError, match="num_heads=3"):
        multi_head_attention(num_heads=3)


def test_no_gradient_sums_over_the_rows_of_a_first_factor():
    """XLA for CPU leaves such a product to its slower library, and that a batch of them to one core."""
    query, key, value = jax.random.normal(jax.random.key(0), (3, 8, 49, 3, 32))

    def loss(query, key, value):
        return jnp.sum(jnp.sin(dot_product_attention(query, key, value)))

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(query, key, value).compile().as_text()
    assert " dot(" in gradients
    assert "lhs_contracting_dims={2}" not in gradients

"""The kernel, interpreted, against the plain formulation: outcomes and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swin_jax.kernels import window_kernels
from swin_jax.kernels.window_attention import window_attention, window_attention_reference
from swin_jax.kernels.window_layout import WindowLayout

FAST_COMPILE = {"xla_backend_optimization_level": 0}
LAYOUTS = {
    "window 7": (WindowLayout((14, 7), (7, 7), (3, 3)), 2),
    "window 7, any shift": (WindowLayout((14, 14), (7, 7), (5, 1)), 1),
    "window 7, roll then pad": (WindowLayout((8, 10), (7, 7), (3, 3), roll_first=True), 1),
    "window 7, pad then roll": (WindowLayout((8, 10), (7, 7), (3, 3)), 1),
    "window 7, padding hidden": (WindowLayout((8, 10), (7, 7), (3, 3), attend_padding=False), 1),
    "window 8": (WindowLayout((16, 8), (8, 8), (4, 0)), 1),
    "window 12": (WindowLayout((24, 12), (12, 12), (6, 6)), 1),
    "window 12, padded": (WindowLayout((13, 12), (12, 12), (6, 0), roll_first=True), 1),
    "window 16": (WindowLayout((16, 16), (16, 16)), 2),
    "window 24": (WindowLayout((24, 48), (24, 24), (0, 12)), 1),
    "window 3x5": (WindowLayout((6, 10), (3, 5), (1, 2)), 1),
}


def random_inputs(layout, batch, *, heads=2, head_dim=8, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (batch, *layout.padded_size)
    qkv = jax.random.normal(keys[0], (*shape, 3, heads, head_dim), dtype)
    bias = jax.random.normal(keys[1], (heads, layout.tokens, layout.tokens))
    cotangent = jax.random.normal(keys[2], (*shape, heads, head_dim), dtype)
    return qkv, bias, jnp.linspace(0.3, 0.5, heads), cotangent


def outcome_and_gradients(attend, layout, inputs):
    """Return the outcome and the gradients of qkv, bias and scale."""

    def run(qkv, bias, scale, cotangent):
        out, pull = jax.vjp(lambda qkv, bias, scale: attend(qkv, bias, layout, scale=scale), qkv, bias, scale)
        return out, *pull(cotangent)

    return jax.jit(run, compiler_options=FAST_COMPILE)(*inputs)


def interpreted(*args, **options):
    return window_attention(*args, **options, interpret=True)


@pytest.mark.parametrize("case", LAYOUTS)
def test_kernel_computes_what_the_reference_does(case, monkeypatch):
    monkeypatch.setattr(window_kernels, "PROGRAMS", 4)  # several programs, several windows to each
    layout, batch = LAYOUTS[case]
    inputs = random_inputs(layout, batch)
    found = outcome_and_gradients(interpreted, layout, inputs)
    expected = outcome_and_gradients(window_attention_reference, layout, inputs)
    for name, one, other in zip(("out", "qkv", "bias", "scale"), found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5, err_msg=name)
    assert all(np.abs(array).max() > 0.1 for array in expected)


def test_bfloat16_is_as_near_to_float32_as_the_reference():
    layout = WindowLayout((14, 7), (7, 7), (3, 3))
    inputs = random_inputs(layout, 2, head_dim=24, dtype=jnp.bfloat16)
    exact_inputs = tuple(array.astype(jnp.float32) for array in inputs)
    exact = outcome_and_gradients(window_attention_reference, layout, exact_inputs)
    for attend in (interpreted, window_attention_reference):
        found = outcome_and_gradients(attend, layout, inputs)
        assert found[0].dtype == found[1].dtype == jnp.bfloat16
        for one, other in zip(found, exact, strict=True):
            error = np.linalg.norm(np.asarray(one, np.float32) - other) / np.linalg.norm(other)
            assert error < 1e-2, attend


def test_a_query_that_sees_nothing_gets_zero_and_no_gradient():
    # One window, 2 x 2 real tokens in it; rolled by 2 x 2, they are a region of their own, and padding is hidden.
    layout = WindowLayout((2, 2), (4, 4), (2, 2), attend_padding=False)
    inputs = random_inputs(layout, 1)
    out, d_qkv, d_bias, _ = outcome_and_gradients(interpreted, layout, inputs)
    real = np.zeros((4, 4), bool)
    real[:2, :2] = True
    assert np.all(np.asarray(out)[0, ~real] == 0)
    assert np.all(np.asarray(d_qkv)[0, ~real] == 0)
    for array in (out, d_qkv, d_bias):
        assert np.all(np.isfinite(array))
        assert np.abs(array).max() > 0.1


@pytest.mark.parametrize("window", [7, 12])
def test_forward_and_backward_lower_to_triton(window):
    layout = WindowLayout((2 * window, 2 * window), (window, window), (window // 2, window // 2))
    qkv = jax.ShapeDtypeStruct((2, *layout.padded_size, 3, 2, 32), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((2, layout.tokens, layout.tokens), jnp.float32)

    def loss(qkv, bias):
        return window_attention(qkv, bias, layout).astype(jnp.float32).sum()

    gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu)):
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(qkv, bias).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("__gpu$xla.gpu.triton") == (2 if window == 7 else 4)  # calls of kernels


@pytest.mark.parametrize(
    ("qkv", "bias", "scale", "message"),
    [
        ((1, 8, 8, 3, 2, 8), (2, 49, 49), 1.0, "need qkv"),
        ((1, 7, 7, 2, 2, 8), (2, 49, 49), 1.0, "need qkv"),
        ((1, 7, 7, 3, 2, 8), (1, 49, 49), 1.0, r"need a bias of shape \(2, 49, 49\)"),
        ((1, 7, 7, 3, 2, 8), (2, 49, 49), np.ones(3), "need one scale or 2"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(qkv, bias, scale, message):
    with pytest.raises(ValueError, match=message):
        window_attention(jnp.zeros(qkv), jnp.zeros(bias), WindowLayout((7, 7), (7, 7)), scale=scale)

"""A scan over layers against the loop: the same values, gradients and randomness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swin_jax.models import create_model
from swin_jax.nn.attention import recorded_attention
from swin_jax.nn.layers import run_layers
from swin_jax.training.state import split_model

RATES = dict(dropout_rate=0.1, attention_dropout_rate=0.1)
IMAGE = jax.random.normal(jax.random.key(1), (3, 16, 16, 3))
TOKENS = jax.random.randint(jax.random.key(2), (3, 8), 0, 11)
SEGMENTS = jnp.array([[1] * 4 + [2] * 3 + [0]] * 3)
IMAGES = dict(image_size=16, patch_size=2, num_classes=3, embed_dim=8, drop_path_rate=0.4, **RATES)
TEXT = dict(vocab_size=11, max_length=8, embed_dim=8, depth=2, num_heads=2, mlp_ratio=2.0, **RATES)
MODELS = {  # name, options, inputs
    # 5 blocks: two pairs and one that is left over
    "swin": ("swin", dict(IMAGES, depths=(5, 1), num_heads=(2, 2), window_size=4), (IMAGE,), {}),
    "vit": ("vit", dict(IMAGES, depth=3, num_heads=2, layer_scale_init=0.1, zero_head=False), (IMAGE,), {}),
    "causal, packed": ("causal_transformer", dict(TEXT, positions="rotary"), (TOKENS,), {"segments": SEGMENTS}),
    "encoder, decoder": ("transformer", TEXT, (TOKENS, TOKENS), {}),
}


def loss_and_gradient(name, options, inputs, named_inputs):
    graphdef, params = nnx.split(create_model(name, **options, rngs=nnx.Rngs(0)))

    def loss(params, key):
        out = nnx.merge(graphdef, params)(*inputs, **named_inputs, rngs=nnx.Rngs(dropout=key))
        return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum() / out.shape[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(params, jax.random.key(3))
    return value, nnx.to_pure_dict(gradient)


@pytest.mark.parametrize(("case", "remat"), [*((case, False) for case in MODELS), ("swin", True)])
def test_scan_is_the_loop(case, remat):
    name, options, inputs, named_inputs = MODELS[case]
    value, gradient = loss_and_gradient(name, options, inputs, named_inputs)
    scanned = loss_and_gradient(name, dict(options, scan=True, remat=remat), inputs, named_inputs)
    np.testing.assert_allclose(scanned[0], value, rtol=1e-6)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=3e-6), scanned[1], gradient)
    assert abs(value) > 1e-2


@pytest.mark.parametrize("case", MODELS)
def test_scan_changes_no_parameter_and_no_path(case):
    name, options, _, _ = MODELS[case]
    params, scanned = (split_model(create_model(name, **options, scan=s, rngs=nnx.Rngs(0)))[1] for s in (False, True))
    jax.tree.map(np.testing.assert_array_equal, params, scanned)


def test_the_program_does_not_grow_with_the_depth():
    def products(depth):
        options = dict(IMAGES, depth=depth, num_heads=2, scan=True)
        graphdef, params = nnx.split(create_model("vit", **options, rngs=nnx.Rngs(0)))
        jaxpr = jax.make_jaxpr(lambda params: nnx.merge(graphdef, params)(IMAGE))(params)
        return str(jaxpr).count("dot_general")

    assert products(2) == products(6) > 0


def test_gradients_of_scanned_kernels_stay_with_the_fast_library():
    """XLA for CPU leaves a sum over the rows of a first factor to its slower one, as in `test_attention.py`."""
    options = dict(IMAGES, embed_dim=32, depth=3, num_heads=2, scan=True)
    graphdef, params = nnx.split(create_model("vit", **options, rngs=nnx.Rngs(0)))

    def loss(params):
        return jnp.square(nnx.merge(graphdef, params)(IMAGE)).sum()

    compiled = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
    products = [line for line in compiled.splitlines() if " dot(" in line and "/while/body/" in line]
    assert products
    assert not [line for line in products if "lhs_contracting_dims={0}" in line]


def test_attention_is_recorded_of_a_model_that_scans():
    name, options, inputs, _ = MODELS["vit"]
    maps = []
    for scan in (False, True):
        with recorded_attention() as recorded:
            create_model(name, **options, scan=scan, rngs=nnx.Rngs(0))(*inputs)
        maps.append(recorded)
    assert len(maps[0]) == 3
    for one, other in zip(*maps, strict=True):
        np.testing.assert_array_equal(one, other)


class Scaled(nnx.Module):
    def __init__(self, factor, variable=nnx.Param):
        self.factor, self.weight = factor, variable(jnp.ones(2))

    def __call__(self, x, *, rngs=None):
        return x * self.weight[...] * self.factor


def test_layers_that_cannot_be_scanned_are_refused():
    x = jnp.ones(2)
    scan = dict(name="blocks", rngs=None, scan=True)
    np.testing.assert_allclose(run_layers([Scaled(2.0)] * 3, x, **scan), 8 * x)
    np.testing.assert_allclose(run_layers([Scaled(2.0), Scaled(3.0)] * 2, x, period=2, **scan), 36 * x)
    with pytest.raises(ValueError, match="layer 1 differs"):
        run_layers([Scaled(2.0), Scaled(3.0)] * 2, x, **scan)
    with pytest.raises(ValueError, match="Scaled has others"):
        run_layers([Scaled(2.0, nnx.BatchStat)] * 2, x, **scan)

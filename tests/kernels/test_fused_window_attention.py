"""The layer on the kernel inside Swin: the model as it is without, on one device and on several."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swin_jax.kernels.fused_window_attention import FusedWindowAttention
from swin_jax.models import create_model
from swin_jax.nn.attention import recorded_attention

# Maps of 9 x 6 and 5 x 3: windows shifted, padded, and shrunk to the map.
SWIN = dict(image_size=(18, 12), patch_size=2, embed_dim=8, depths=(2, 1), num_heads=(2, 2), window_size=4)
FUSED = partial(FusedWindowAttention, interpret=True)


def build(window_padding, **options):
    return create_model("swin", **SWIN, num_classes=3, window_padding=window_padding, **options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("window_padding", ["roll_pad", "pad_roll", "masked"])
def test_swin_is_the_same_with_the_kernel(window_padding):
    images = jax.random.normal(jax.random.key(0), (2, 18, 12, 3))
    results = []
    for options in ({}, {"attention": FUSED}):
        graphdef, params = nnx.split(build(window_padding, **options))

        def loss(params, graphdef=graphdef):
            logits = nnx.merge(graphdef, params)(images)
            return (logits * jnp.arange(1.0, 4.0)).sum()

        run = jax.jit(jax.value_and_grad(loss), compiler_options={"xla_backend_optimization_level": 0})
        value, gradient = run(params)
        results.append((value, nnx.to_pure_dict(gradient)))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-5)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), results[1][1], results[0][1]
    )


def test_attention_is_recorded_of_a_model_with_the_kernel():
    images = jax.random.normal(jax.random.key(0), (1, 18, 12, 3))
    maps = []
    for options in ({}, {"attention": FUSED}):
        with recorded_attention() as recorded:
            build("masked", **options)(images)
        maps.append(recorded)
    assert len(maps[0]) == 3
    for one, other in zip(*maps, strict=True):
        np.testing.assert_array_equal(one, other)


def test_dropout_of_probabilities_is_refused():
    with pytest.raises(ValueError, match=r"dropout_rate=0\.1"):
        build("masked", attention=FUSED, attention_dropout_rate=0.1)


ON_FOUR_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from swin_jax.kernels.fused_window_attention import attend_on_mesh
from swin_jax.kernels.window_attention import window_attention_reference
from swin_jax.kernels.window_layout import WindowLayout

layout = WindowLayout((6, 6), (3, 3), (1, 1))
qkv = jax.random.normal(jax.random.key(0), (2, 6, 6, 3, 4, 8))
bias = jax.random.normal(jax.random.key(1), (4, 9, 9))
mesh = jax.make_mesh((1, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
cut = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

def gradients(attend):
    return jax.jit(jax.grad(lambda qkv, bias: jnp.sin(attend(qkv, bias, layout)).sum(), argnums=(0, 1)))

expected = gradients(window_attention_reference)(qkv, bias)
with jax.set_mesh(mesh):
    run = gradients(lambda *args: attend_on_mesh(*args, interpret=True))
    found = run(jax.device_put(qkv, cut), bias)
    text = run.lower(jax.device_put(qkv, cut), bias).as_text()
for one, other in zip(found, expected):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
assert "1x6x6x3x2x8" in text, "each device has half of the batch and half of the heads"
"""


def test_each_device_computes_its_part():
    flags = "--xla_force_host_platform_device_count=4"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", ON_FOUR_DEVICES], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

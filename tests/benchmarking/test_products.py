"""The products of benchmarks/products.py: those of the models' blocks, in the sizes of their kernels."""

import jax
import pytest
from flax import nnx

from benchmarks import products
from swin_jax.models import create_model


@pytest.mark.parametrize(
    ("name", "model"), [("swin_tiny", "swin_tiny_patch4_window7_224"), ("vit_small", "vit_small_patch16_224")]
)
def test_they_are_those_of_the_blocks(name, model):
    params = nnx.state(nnx.eval_shape(lambda: create_model(model, rngs=nnx.Rngs(0))), nnx.Param)
    kernels = [
        (kernel.shape[0], kernel.size // kernel.shape[0])
        for path, kernel in jax.tree_util.tree_leaves_with_path(params)
        if "blocks" in str(path) and "kernel" in str(path)
    ]
    assert sorted(kernels) == sorted((inputs, outputs) for _, inputs, outputs in products.MODELS[name])


def test_a_worker_computes_them():
    products.start([[6, 4, 8], [6, 8, 4]])(2)

"""What stays float32 in a bfloat16 model, read from the traced update; what remat changes, and what it does not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swin_jax.models import create_model
from swin_jax.training.state import split_model
from tests.training.conftest import Setup

MODELS = {
    "vit": {"depth": 4, "embed_dim": 16, "num_heads": 2, "patch_size": 2, "image_size": 24, "layer_scale_init": 0.1},
    "swin": {
        "depths": (1, 3),
        "embed_dim": 16,
        "num_heads": (2, 4),
        "patch_size": 2,
        "image_size": 32,
        "window_size": 4,
    },
}
NUM_BLOCKS = {"vit": 4, "swin": 4}
NUM_NORMS = {"vit": 2 * 4 + 1, "swin": 2 * 4 + 3}  # Swin: after the patch embedding, in the merging, at the end
# Before it schedules for the CPU, XLA drops the barriers that hold recomputation back, and computes anew too early to
# save anything; without that pass it keeps the order that accelerators have.
OPTIONS = {"xla_disable_hlo_passes": "cse_barrier_expander", "xla_backend_optimization_level": 0}
SENSITIVE = ("exp", "log", "log1p", "rsqrt", "sqrt", "reduce_sum", "reduce_max", "logistic")


def build(name, **options):
    return create_model(
        name, num_classes=10, in_channels=1, drop_path_rate=0.2, **{**MODELS[name], **options}, rngs=nnx.Rngs(0)
    )


def batch_of(name, size=4):
    side = MODELS[name]["image_size"]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, side, side, 1), np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.asarray(rng.integers(0, 10, size), jnp.int32)}


def equations(jaxpr):
    """Yield every equation, those inside of calls too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for item in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def dtypes(variables):
    return {str(variable.aval.dtype) for variable in variables if jnp.issubdtype(variable.aval.dtype, jnp.floating)}


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_for_matrix_products_not_for_sums(name):
    setup = Setup(model=lambda rngs: build(name, dtype=jnp.bfloat16), ema_decay=0.9)
    batch = batch_of(name)

    def loss_of(params):
        rngs = nnx.Rngs(dropout=0, augment=1)
        return setup.task.loss(setup.model_def.merge(params, setup.target.model_state), batch, rngs)

    found = list(equations(jax.make_jaxpr(loss_of)(setup.target.params).jaxpr))
    count = dict.fromkeys(SENSITIVE, 0)
    for equation in found:
        if equation.primitive.name in SENSITIVE:
            assert dtypes(equation.invars) <= {"float32"}, equation
            count[equation.primitive.name] += bool(dtypes(equation.invars))
    assert count["rsqrt"] == NUM_NORMS[name]
    assert count["exp"] >= NUM_BLOCKS[name] + 1  # the attention's softmax and the loss's
    products = [equation for equation in found if equation.primitive.name == "dot_general"]
    assert all(dtypes(product.invars) == {"bfloat16"} for product in products)
    in_float32 = [product for product in products if dtypes(product.outvars) == {"float32"}]
    assert len(in_float32) == NUM_BLOCKS[name]  # the attention scores
    assert len(products) == 6 * NUM_BLOCKS[name] + 1 + (name == "swin")  # and head, and merging

    state, metrics = jax.eval_shape(setup.train_step, setup.target, batch, 0)
    arrays = [leaf for leaf in jax.tree.leaves((state, metrics)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {str(leaf.dtype) for leaf in arrays} == {"float32"}
    assert len(arrays) > 4 * len(jax.tree.leaves(state.params)) - 1  # params, two moments, average


def image_model_and_inputs(name):
    side = MODELS[name]["image_size"]
    images = np.random.default_rng(1).normal(size=(8, side, side, 1)).astype(np.float32)
    options = {"zero_head": False} if name == "vit" else {}
    return partial(build, name, init="fan_in", **options), (images,)


def text_model_and_inputs(name):
    tokens = np.random.default_rng(1).integers(0, 13, (2, 4, 64), np.int32)
    both = name == "transformer"
    options = {"vocab_size": 13, "max_length": 64, "embed_dim": 16, "num_heads": 2, "dropout_rate": 0.1}
    options["depth"] = 2 if both else 4
    return lambda **more: create_model(name, **options, **more, rngs=nnx.Rngs(0)), tuple(tokens) if both else tokens[:1]


@pytest.mark.parametrize("name", [*MODELS, "causal_transformer", "transformer"])
def test_remat_gives_the_same_loss_with_less_memory(name):
    model_of, inputs = (image_model_and_inputs if name in MODELS else text_model_and_inputs)(name)
    results = {}
    for remat in (False, True):
        model_def, params, model_state = split_model(model_of(remat=remat))

        def loss_of(params, model_def=model_def, model_state=model_state):
            logits = model_def.merge(params, model_state)(*inputs, rngs=nnx.Rngs(dropout=3))
            return -jax.nn.log_softmax(logits)[..., 0].mean()

        compiled = jax.jit(jax.value_and_grad(loss_of)).lower(params).compile(compiler_options=OPTIONS)
        results[remat] = compiled(params), compiled.memory_analysis().temp_size_in_bytes
    (loss, grads), memory = results[False]
    (remat_loss, remat_grads), remat_memory = results[True]
    assert float(remat_loss) == pytest.approx(float(loss), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), remat_grads, grads)
    assert sum(float(jnp.abs(leaf).max()) > 1e-3 for leaf in jax.tree.leaves(grads)) > 3
    assert remat_memory < 0.6 * memory

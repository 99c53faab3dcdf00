"""Muon against Newton–Schulz written out in NumPy, and which parameters of each family are its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from swin_jax.errors import UserError
from swin_jax.models import create_model
from swin_jax.training.muon import matrix_axes, muon_mask
from swin_jax.training.optimizer import create_optimizer
from swin_jax.training.sharding import path_name
from swin_jax.training.state import split_model
from tests.training.conftest import Setup

SHAPES = {
    "embed.embedding": (5, 4),
    "decoder.0.attention.qkv.kernel": (4, 3, 2, 2),
    "decoder.0.attention.qkv.bias": (3, 2, 2),
    "decoder.0.attention.out.kernel": (2, 2, 4),
    "decoder.0.mlp.fc1.kernel": (4, 6),
    "decoder.0.mlp.fc2.kernel": (6, 4),
    "decoder.0.norm1.scale": (4,),
    "head.kernel": (4, 5),
}
MATRICES = {  # as which matrix: rows are inputs
    "decoder.0.attention.qkv.kernel": (4, 12),
    "decoder.0.attention.out.kernel": (4, 4),
    "decoder.0.mlp.fc1.kernel": (4, 6),
    "decoder.0.mlp.fc2.kernel": (6, 4),
}
DECAYED = {*MATRICES, "embed.embedding", "head.kernel"}
RATES, SHARE, WEIGHT_DECAY = (0.02, 0.01, 0.005), 0.15, 0.05


def nested(flat):
    tree = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def flat(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def draw(seed):
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}


def orthogonalized(matrix):
    """Keller Jordan's quintic iteration, on the matrix as it is: transposing a tall one changes only the cost."""
    matrix = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = matrix @ matrix.T
        matrix = 3.4445 * matrix + (-4.7750 * gram + 2.0315 * gram @ gram) @ matrix
    return matrix


def optimizer(**changes):
    options = {
        "name": "muon",
        "schedule": lambda step: jnp.asarray(RATES)[step],
        "weight_decay": WEIGHT_DECAY,
        "b1": 0.9,
        "b2": 0.99,
        "eps": 1e-8,
        "momentum": 0.5,
        "nesterov": True,
        "grad_clip_norm": 0.0,
        "muon_momentum": 0.95,
        "adam_learning_rate_share": SHARE,
        **changes,
    }
    return create_optimizer(**options)


def run(optimizer, params, grads):
    params, state = nested(params), optimizer.init(nested(params))
    for grad in grads:
        updates, state = jax.jit(optimizer.update)(nested(grad), state, params)
        params = optax.apply_updates(params, updates)
    return flat(params)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_newton_schulz_for_matrices_and_adam_for_the_rest(nesterov):
    params, grads = draw(0), [draw(seed) for seed in (1, 2, 3)]
    result = run(optimizer(nesterov=nesterov), params, grads)
    beta = 0.95
    for path in SHAPES:
        value, first, second = params[path].astype(np.float64), 0.0, 0.0
        for number, (rate, grad) in enumerate(zip(RATES, grads, strict=True), start=1):
            grad = grad[path].astype(np.float64)
            if path in MATRICES:
                first = beta * first + (1 - beta) * grad
                direction = first  # its length does not matter
                if nesterov:  # optax looks ahead with each part's own correction of the start from zero, as NAdam does
                    ahead = beta * first / (1 - beta ** (number + 1))
                    direction = ahead + (1 - beta) * grad / (1 - beta**number)
                fan_in, fan_out = MATRICES[path]
                update = orthogonalized(direction.reshape(fan_in, fan_out)) * max(1, fan_out / fan_in) ** 0.5
                update = update.reshape(grad.shape)
            else:
                first, second = 0.9 * first + 0.1 * grad, 0.99 * second + 0.01 * grad**2
                update = first / (1 - 0.9**number) / (np.sqrt(second / (1 - 0.99**number)) + 1e-8)
                rate *= SHARE
            value = value - rate * (update + (WEIGHT_DECAY * value if path in DECAYED else 0.0))
        np.testing.assert_allclose(result[path], value, rtol=0, atol=2e-6, err_msg=path)
        assert np.abs(value - params[path]).max() > 1e-3


def test_independent_decay_and_factors_by_path_act_on_both_alike():
    """Decay is the schedule's share of its peak, the factor scales the rest; the share of Adam is its own."""
    params, grads = draw(0), [draw(1)]
    plain = run(optimizer(weight_decay=0.0), params, grads)
    changes = {"peak_learning_rate": 0.04, "learning_rate_multipliers": (("fc1|head", 0.5),)}
    result = run(optimizer(**changes), params, grads)
    for path in SHAPES:
        factor = 0.5 if "fc1" in path or "head" in path else 1.0
        decay = WEIGHT_DECAY * 0.02 / 0.04 if path in DECAYED else 0.0
        expected = params[path] * (1 - decay) + factor * (plain[path] - params[path])
        np.testing.assert_allclose(result[path], expected, rtol=0, atol=1e-6, err_msg=path)


def test_kernels_that_adam_takes_by_name():
    params, grads = draw(0), [draw(1)]
    result = run(optimizer(adam_parameters=(r"\.fc[12]\.",)), params, grads)
    muon = run(optimizer(), params, grads)
    fc1 = "decoder.0.mlp.fc1.kernel"
    first_step_of_adam = np.sign(grads[0][fc1]) + WEIGHT_DECAY * params[fc1]
    np.testing.assert_allclose(result[fc1], params[fc1] - 0.02 * SHARE * first_step_of_adam, rtol=0, atol=1e-6)
    unchanged = [path for path in SHAPES if np.array_equal(result[path], muon[path])]
    assert unchanged == [path for path in SHAPES if ".fc" not in path]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [(("fc3",), "'fc3' is found in no kernel"), (("head",), "'head' is found"), (("(",), "no reg")],
)
def test_patterns_that_do_not_fit(patterns, message):
    with pytest.raises(UserError, match=f"optimizer.adam_parameters: .*{message}"):
        muon_mask(nested(draw(0)), patterns)


@pytest.mark.parametrize(
    ("path", "ndim", "inputs", "outputs"),
    [
        ("blocks.0.mlp.fc1.kernel", 2, (0,), (1,)),
        ("blocks.0.attention.qkv.kernel", 4, (0,), (1, 2, 3)),
        ("attention.query.kernel", 3, (0,), (1, 2)),
        ("attention.out.kernel", 3, (0, 1), (2,)),
        ("conv.kernel", 4, (0, 1, 2), (3,)),
        ("kernel", 2, (0,), (1,)),
    ],
)
def test_axes_of_a_kernel(path, ndim, inputs, outputs):
    assert matrix_axes(path, ndim) == (inputs, outputs)


def test_muon_is_the_same_on_any_mesh():
    def params_of(num_devices, **axes):
        setup = Setup(num_devices, optimizer={"name": "muon", "weight_decay": 0.05, "b2": 0.99}, **axes)
        state, _ = setup.train_step(setup.init(), setup.batch(), 0)
        return setup, jax.device_get(state)

    _, expected = params_of(1)
    setup, state = params_of(8, fsdp=4)
    momenta = {path: leaf.sharding.spec for path, leaf in flat(setup.target.opt_state).items() if ".mu." in path}
    (kernel,) = [spec for path, spec in momenta.items() if path.endswith("blocks.0.kernel")]
    assert "fsdp" in kernel
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), state.params, expected.params)


TEXT = {"vocab_size": 11, "max_length": 8, "embed_dim": 8, "num_heads": 2, "depth": 1}
IMAGE = {"num_classes": 3, "embed_dim": 8}
BLOCK = ("attention.proj", "attention.qkv", "mlp.fc1", "mlp.fc2")


@pytest.mark.parametrize(
    ("name", "options", "prefixes", "more"),
    [
        ("causal_transformer", {**TEXT, "tie_embeddings": False, "positions": "learned"}, ("decoder.0",), ()),
        (
            "transformer",
            {**TEXT, "logits_bias": True},
            ("decoder.0", "encoder.0"),
            ("decoder.0.cross_attention.proj", "decoder.0.cross_attention.qkv"),
        ),
        (
            "vit",
            {**IMAGE, "num_heads": 2, "depth": 1, "patch_size": 4, "image_size": 8, "distilled": True},
            ("blocks.0",),
            (),
        ),
        (
            "swin",
            {**IMAGE, "num_heads": (1, 2), "depths": (1, 1), "patch_size": 2, "image_size": 16, "window_size": 2},
            ("stages.0.blocks.0", "stages.1.blocks.0"),
            ("stages.1.downsample.reduction",),
        ),
    ],
)
def test_muon_takes_the_kernels_between_embedding_and_head(name, options, prefixes, more):
    params = jax.eval_shape(lambda: split_model(create_model(name, **options, rngs=nnx.Rngs(0)))[1:])[0]
    taken = {path for path, is_matrix in flat(muon_mask(params)).items() if is_matrix}
    expected = {f"{prefix}.{layer}" for prefix in prefixes for layer in BLOCK} | set(more)
    assert taken == {f"{path}.kernel" for path in expected}

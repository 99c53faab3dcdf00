"""Tables and positions resized as PyTorch and BEiT do, in files, parameters and optimizer states."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from swin_jax.convert import LoadError, load_pretrained, resize_bias_table, resize_parameters, resize_positions
from swin_jax.convert.load import parameters_of
from swin_jax.errors import UserError
from tests.convert import goldens
from tests.convert.goldens import COMPILE_FAST

TABLES, POSITIONS = goldens.part("resized_tables", "table"), goldens.part("resized_tables", "positions")


def sizes_in(key: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, size.split("x"))) for size in key.split("/")]


@pytest.mark.parametrize("method", ["bicubic", "geometric"])
@pytest.mark.parametrize("key", TABLES)
def test_tables_equal_the_references(key, method):
    resized = resize_bias_table(TABLES[key], *sizes_in(key), method=method)
    np.testing.assert_allclose(resized, goldens.part("resized_tables", f"table_{method}")[key], atol=1e-5)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("key", POSITIONS)
def test_positions_equal_the_references_and_the_class_token_is_kept(key, antialias):
    resized = resize_positions(POSITIONS[key], *sizes_in(key), antialias=antialias)
    expected = goldens.part("resized_tables", f"positions_antialias_{antialias}")[key]
    np.testing.assert_allclose(resized, expected, atol=1e-5)
    np.testing.assert_array_equal(resized[:, 0], POSITIONS[key][:, 0])


sides = st.integers(2, 6)


@given(old=st.tuples(sides, sides), new=st.tuples(sides, sides), method=st.sampled_from(["bicubic", "geometric"]))
def test_a_constant_table_stays_constant_and_the_middle_stays_the_middle(old, new, method):
    rows, columns = 2 * old[0] - 1, 2 * old[1] - 1
    constant = np.full((rows * columns, 2), 0.7, np.float32)
    np.testing.assert_allclose(resize_bias_table(constant, old, new, method=method), 0.7, atol=1e-5)
    odd = np.arange(rows)[:, None] - (old[0] - 1) + 0.0 * np.arange(columns)  # odd in the row offset
    resized = resize_bias_table(odd.reshape(-1, 1).astype(np.float32), old, new, method=method)
    resized = resized.reshape(2 * new[0] - 1, 2 * new[1] - 1)
    np.testing.assert_allclose(resized, -resized[::-1], atol=1e-4)


def swin(**changes) -> nnx.Module:
    return goldens.build("timm_swin_gradients", **changes)


def test_a_file_for_another_window_and_resolution_loads_when_asked(tmp_path):
    file = goldens.write_weights(goldens.part("timm_swin_gradients", "weights"), tmp_path)
    with pytest.raises(LoadError, match="resize='bicubic'") as failure:
        load_pretrained(swin(image_size=(48, 40), window_size=(6, 5)), file)
    assert all(name.endswith("relative_position_bias_table") for name in failure.value.misshapen)
    assert len(failure.value.misshapen) == 4

    for method in ("bicubic", "geometric"):
        model = swin(image_size=(48, 40), window_size=(6, 5))
        report = load_pretrained(model, file, resize=method)
        assert set(report.reshaped.values()) == {"window 4x4 → 6x5"}
        name = "layers.1.blocks.1.attn.relative_position_bias_table"
        expected = resize_bias_table(
            goldens.part("timm_swin_gradients", "weights")[name], (4, 4), (6, 5), method=method
        )
        np.testing.assert_array_equal(model.stages[1].blocks[1].attention.relative_position_bias_table[...], expected)


def test_a_rectangle_in_the_file_must_be_told(tmp_path):
    file = goldens.write_weights(goldens.part("timm_swin_rectangles", "weights"), tmp_path)
    with pytest.raises(UserError, match="old_window_size"):
        load_pretrained(goldens.build("timm_swin_rectangles", window_size=5), file, resize="bicubic")
    model = goldens.build("timm_swin_rectangles", window_size=5)
    report = load_pretrained(model, file, resize="bicubic", old_window_size=(4, 3))
    assert set(report.reshaped.values()) == {"window 4x3 → 5x5"}


def test_loading_with_resized_positions_equals_timm_at_that_size(tmp_path):
    file = goldens.write_weights(goldens.part("timm_deit3", "weights"), tmp_path)
    model = goldens.build("timm_deit3", image_size=(24, 12))
    with pytest.raises(LoadError, match="resize='bicubic'"):
        load_pretrained(model, file)
    report = load_pretrained(model, file, resize="bicubic", antialias=True)
    assert report.reshaped == {"pos_embed": "grid 4x4 → 6x3"}
    logits, _ = goldens.run(model, goldens.part("timm_deit3", "images")["24x12"])
    np.testing.assert_allclose(logits, goldens.part("timm_deit3", "logits")["24x12"], atol=1e-5)


def test_an_unknown_method_is_named():
    with pytest.raises(UserError, match="'bicubic', 'geometric'"):
        load_pretrained(swin(), "weights.npz", resize="bilinear")


def test_parameters_moments_and_averages_are_resized_alike():
    old, new = swin(image_size=16, depths=(1, 1)), swin(image_size=24, window_size=6, depths=(1, 1))
    shapes = {name: variable.get_raw_value() for name, variable in parameters_of(old).items()}
    generator = np.random.default_rng(0)
    params = {name: jnp.asarray(generator.standard_normal(leaf.shape, np.float32)) for name, leaf in shapes.items()}
    nested = nnx.to_pure_dict(nnx.from_flat_state([(tuple(k.split(".")), v) for k, v in params.items()]))
    optimizer = optax.scale_by_adam()
    one_update = jax.jit(lambda grads: optimizer.update(grads, optimizer.init(grads)), compiler_options=COMPILE_FAST)
    _, opt_state = one_update(nested)
    state = {"params": nested, "ema_params": nested, "opt_state": opt_state}
    resized = resize_parameters(state, old, new)

    table = "stages.0.blocks.0.attention.relative_position_bias_table"
    expected = resize_bias_table(np.asarray(params[table]), (4, 4), (6, 6))

    def get(tree):
        for key in table.split("."):
            tree = tree[key]
        return tree

    np.testing.assert_allclose(get(resized["params"]), expected, atol=1e-6)
    np.testing.assert_allclose(get(resized["ema_params"]), expected, atol=1e-6)
    moments = resized["opt_state"]
    np.testing.assert_allclose(get(moments.mu), 0.1 * expected, atol=1e-6)
    assert get(moments.nu).shape == expected.shape
    assert np.min(get(moments.nu)) >= 0
    assert int(moments.count) == 1
    untouched = nested["stages"]["0"]["blocks"]["0"]["mlp"]["fc1"]["kernel"]
    assert resized["params"]["stages"]["0"]["blocks"]["0"]["mlp"]["fc1"]["kernel"] is untouched


def test_models_that_differ_otherwise_are_refused():
    deeper = dict(depths=(2, 3))
    with pytest.raises(ValueError, match=r"stages\.1\.blocks\.2"):
        resize_parameters({}, swin(), swin(**deeper))

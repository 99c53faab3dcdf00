import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from swin_jax.errors import UserError
from swin_jax.training import sharding
from swin_jax.training.sharding import partition_spec
from tests.training.conftest import Setup

SIZES = {"data": 1, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("params.stages.0.blocks.1.attention.qkv.kernel", (96, 3, 4, 24), P("fsdp", None, "tensor", None)),
        ("params.stages.0.blocks.1.attention.qkv.kernel", (96, 3, 3, 32), P("fsdp", None, None, None)),
        ("opt_state.1.0.mu.stages.0.blocks.1.attention.qkv.kernel", (96, 3, 4, 24), P("fsdp", None, "tensor", None)),
        ("params.blocks.0.attention.qkv.bias", (3, 4, 24), P(None, "tensor", None)),
        ("params.blocks.0.attention.proj.kernel", (96, 96), P("tensor", "fsdp")),
        ("ema_params.blocks.0.mlp.fc1.kernel", (96, 384), P("fsdp", "tensor")),
        ("params.blocks.0.mlp.fc1.bias", (384,), P("tensor")),
        ("params.blocks.0.mlp.fc2.kernel", (384, 96), P("tensor", "fsdp")),
        ("params.blocks.0.mlp.fc2.bias", (96,), P(None)),
        ("params.head.kernel", (97, 1000), P(None, "fsdp")),
        ("params.head.kernel", (97, 1001), P(None, None)),
        ("step", (), P()),
    ],
)
def test_partition_spec(path, shape, expected):
    assert partition_spec(path, shape, SIZES) == expected


def test_one_device_axes_cut_nothing():
    spec = partition_spec("params.blocks.0.mlp.fc1.kernel", (96, 384), {"data": 8, "fsdp": 1, "tensor": 1})
    assert spec == P(None, None)


def test_mesh_fills_the_data_axis():
    assert dict(sharding.make_mesh(fsdp=2).shape) == {"data": 4, "fsdp": 2, "tensor": 1}


@pytest.mark.parametrize("sizes", [{"data": 3}, {"fsdp": 3}, {"fsdp": 16}, {"tensor": 0}, {"data": 0}, {"data": -2}])
def test_mesh_that_does_not_fit(sizes):
    with pytest.raises(UserError, match="mesh"):
        sharding.make_mesh(**sizes)


def test_batch_size_must_be_divisible():
    mesh = sharding.make_mesh(fsdp=2, tensor=2)
    sharding.check_batch_size(12, mesh)
    with pytest.raises(UserError, match="batch_size=10 is not divisible by the 4 devices"):
        sharding.check_batch_size(10, mesh)
    with pytest.raises(UserError, match="at least 1"):
        sharding.check_batch_size(0, mesh)


def test_state_lives_where_the_rules_say():
    setup = Setup(4, fsdp=2, ema_decay=0.9)
    state = setup.init()
    for tree in (state.params, state.ema_params, state.opt_state[1][0].mu, state.opt_state[1][0].nu):
        kernel = tree["blocks"]["0"]["kernel"]
        assert kernel.sharding.spec == P(None, "fsdp")
        assert kernel.addressable_shards[0].data.shape == (16, 32)
    batch = setup.batch()
    assert [shard.data.shape[0] for shard in batch["image"].addressable_shards] == [4, 4, 4, 4]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), jax.device_get(Setup(1).init().params))


class Chip:
    """What a mesh asks of a TPU: where in the torus it is."""

    platform, device_kind, core_on_chip, process_index = "tpu", "TPU v5", 0, 0

    def __init__(self, number, slice_index=0):
        self.id, self.slice_index = number, slice_index
        self.coords = (number % 4, number // 4 % 8, number // 32)


@pytest.mark.parametrize("axes", [{}, {"fsdp": 8}, {"fsdp": 16}, {"fsdp": 32, "tensor": 4}])
def test_any_mesh_fits_a_torus(axes):
    """4 x 8 x 8 chips have no side, nor product of sides, of 16."""
    mesh = sharding.make_mesh(**axes, devices=[Chip(number) for number in range(256)])
    assert mesh.size == 256
    assert {name: size for name, size in mesh.shape.items() if name in axes} == axes


def test_several_slices_are_refused():
    with pytest.raises(UserError, match="slices"):
        sharding.make_mesh(devices=[Chip(number, slice_index=number // 4) for number in range(8)])

"""A plan on paper against what XLA says of the whole program."""

import copy
import json

import jax
import pytest

from swin_jax import plan
from swin_jax.commands import load_config
from swin_jax.errors import UserError

VIT = (
    "model.name=vit",
    "model.patch_size=4",
    "model.embed_dim=64",
    "model.depth=6",
    "model.num_heads=4",
    "model.remat=True",
    "data.image_size=16",
    "data.num_classes=10",
    "data.source=synthetic",
    "batch_size=16",
    "mesh.fsdp=4",
)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(
        "from swin_jax.training.default_config import default_config\ndef get_config():\n    return default_config()\n"
    )
    return load_config(str(path), VIT)


def test_the_line_from_few_layers_meets_the_whole_program(config):
    """Six layers, from two and three: what is extrapolated is as if all had been compiled."""
    found = plan.make_plan(config, jax.devices(), check=False)
    whole = plan.make_plan(config, jax.devices(), all_layers=True)
    assert (found.depths, whole.depths) == ((2, 3, 6), (6,))
    assert found.num_parameters == whole.num_parameters
    assert found.costs.state_bytes == whole.costs.state_bytes
    assert found.costs.flops == pytest.approx(whole.costs.flops, rel=0.02)
    assert found.costs.wire_bytes == pytest.approx(whole.costs.wire_bytes, rel=0.02)
    assert found.costs.temporary_bytes == pytest.approx(whole.costs.temporary_bytes, rel=0.1)
    assert found.model_flops == pytest.approx(whole.model_flops, rel=0.01)
    # What must be sent at least: each of the four gathers the other three quarters of the kernels once; what all
    # eight add up of the gradient.
    kernels = sum(12 * 64**2 for _ in range(6)) * 4
    gathered = sum(sent for (kind, group), sent in whole.costs.wire.items() if kind == "all-gather" and len(group) == 4)
    assert kernels * 3 / 4 <= gathered <= 2.5 * kernels * 3 / 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chip=h200"], "unknown chip 'h200'"),
        (["--chips=0"], "--chips=0 must be at least 1"),
        (["--share_of_peak=1.5"], "share_of_peak=1.5"),
        (["--chip=h100", "--compiler=tpu"], "is for a TPU"),
        (["--config.data.kind=text"], "a plan is for images"),
    ],
)
def test_mistakes(arguments, message, capsys):
    argv = ["plan", "--config=configs/digits/vit.py", *arguments]
    with pytest.raises(SystemExit) as ended:
        plan.run_command(plan.main, copy.deepcopy(plan.FLAGS), argv)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_slice_that_is_not_sold():
    with pytest.raises(UserError, match="no TPU v5p slice of 48 chips"):
        plan.find_devices("tpu", 48)


def test_what_cannot_be_counted_is_said_not_left_out(config, monkeypatch):
    def read_costs(compiled, **state):
        raise ValueError("a collective in a loop of unknown length")

    monkeypatch.setattr("swin_jax.planning.costs.read_costs", read_costs)
    config.model.depth = 1
    with pytest.raises(UserError, match="cannot be counted for this mesh: a collective in a loop"):
        plan.make_plan(config, jax.devices()[:4])


def test_the_table_and_the_last_line_agree(config, monkeypatch):
    from swin_jax.planning.chips import CHIPS
    from swin_jax.planning.costs import Costs, pace

    costs = Costs(2.0 * 2**30, 0.0, 2**30, 4e12, 1e9, {("all-gather", (0, 1)): 3e9})
    found = plan.Plan(costs, 8e12, 5_000_000, {"data": 2, "fsdp": 1, "tensor": 1}, (2, 3, 4, 6), {"flops": 0.01})
    times = pace(costs, CHIPS["tpu_v5p"], model_flops=4e12, share_of_peak=0.5)
    report = plan.figures(found, times, config, 2) | {
        "chip": "tpu_v5p",
        "compiler": "cpu",
        "share_of_peak_assumed": 0.5,
        "fits": True,
        "chip_memory_bytes": 95 * 2**30,
    }
    assert json.loads(json.dumps(report))["memory_bytes"] == 3 * 2**30
    lines = plan.table(report)
    assert any("3.00 GiB of 95 (state 2.00" in line for line in lines)
    assert any("3.000 GB" in line for line in lines)
    assert lines[-1] == "a line to 6 layers from 2 and 3; at 4 it is off by: flops 1.0%"

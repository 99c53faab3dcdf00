"""`benchmark attention`: every implementation of the platform, the others with the reason why not."""

import json

import jax
import numpy as np
import pytest

from swin_jax import benchmark
from swin_jax.benchmarking.attention import MODES, Work, compare, layer_programs
from swin_jax.commands import run_subcommand
from swin_jax.errors import UserError

SMALL = Work(batch_size=2, map_size=4, window_size=2, shifted=True, num_heads=2, head_dim=8, dtype="float32")


def test_both_modes_compute_the_same_layer():
    programs = layer_programs(SMALL, "xla")
    outcome = programs["forward"].run()
    again, (_, gradient) = programs["both passes"].run()
    assert outcome.shape == gradient.shape == SMALL.shape
    np.testing.assert_allclose(outcome, again, rtol=1e-5, atol=1e-6)
    assert float(abs(gradient).max()) > 0


def test_the_least_traffic_is_the_map_read_and_written():
    assert SMALL.least_bytes == 2 * 2 * 4 * 4 * 16 * 4


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what a CPU does not have")
def test_what_the_platform_lacks_is_told_with_the_reason():
    found = compare(SMALL, samples=1, sample_seconds=0.0)
    assert found["xla"].problem is None
    assert set(found["xla"].timings) == set(MODES)
    assert "not available on cpu" in found["cudnn"].problem
    with pytest.raises(UserError, match="not available on cpu"):
        compare(SMALL, names=("pallas",), samples=1, sample_seconds=0.0)


@pytest.mark.parametrize("window", [2, 0])
def test_command(capsys, window):
    options = ("--map_size=4", "--head_dim=8", "--batch_size=1", "--samples=1", "--sample_seconds=0.001")
    with pytest.raises(SystemExit) as exit_info:
        run_subcommand(benchmark.COMMANDS, ["benchmark.py", "attention", f"--window={window}", *options])
    for name in benchmark.ATTENTION_FLAGS:
        benchmark.ATTENTION_FLAGS[name].unparse()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert exit_info.value.code == 0
    assert found["window_size"] == window
    assert found["implementations"]["xla"]["timings"]["both passes"]["median"] > 0

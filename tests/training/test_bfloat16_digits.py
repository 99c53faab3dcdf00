"""The digits ViT trained in bfloat16 is as accurate as in float32.

Four whole trainings, so no part of `make test`: `make test-bfloat16`, or

    python -m pytest -m slow -n 0 -s tests/training/test_bfloat16_digits.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1)  # one error of the 360 test images is 0.0028, so a mean
TOLERANCE = 0.005


def accuracy(dtype: str, seed: int, workdir: Path) -> float:
    """Train on one device, in a process of its own, and return the last accuracy."""
    command = [sys.executable, "train.py", "--config=configs/digits/vit.py", f"--workdir={workdir}"]
    command += [f"--config.seed={seed}", f"--config.model.dtype={dtype}"]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}  # the tests' eight devices
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    summary = json.loads(run.stdout.splitlines()[-1])
    print(f"{dtype}, seed {seed}: {summary['eval/accuracy']:.4f} in {summary['seconds']:.0f} s", flush=True)
    return summary["eval/accuracy"]


def test_bfloat16_is_as_accurate_as_float32(tmp_path):
    means = {
        dtype: np.mean([accuracy(dtype, seed, tmp_path / f"{dtype}_{seed}") for seed in SEEDS])
        for dtype in ("float32", "bfloat16")
    }
    assert means["float32"] > 0.985
    assert abs(means["bfloat16"] - means["float32"]) <= TOLERANCE

"""Two processes on this machine, two CPU devices each, as two hosts: the real command, its signals and its deaths."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from swin_jax.commands import RESTART, load_config
from swin_jax.training import sharding
from swin_jax.training.experiment import build, compile_steps
from swin_jax.training.step import evaluate

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 160
OVERRIDES = (
    "batch_size=16",
    "data.train_split=train[:64]",
    "data.eval_split=test[:101]",  # two hosts cannot share it evenly
    f"total_steps={STEPS}",
    "eval_every_epochs=0",
    "checkpoint_every_epochs=2",
    "log_every_steps=1",
    "host_timeout_seconds=15",
    "ema_decay=0.9",
    "model.depth=1",
    "model.embed_dim=32",
    "model.num_heads=2",
    "optimizer.learning_rate=1e-4",
    "task.augment.degrees=0",
    "task.augment.translate=0",
    "task.augment.scale=0",
    "task.augment.shear=0",
)
PATIENCE = 600  # seconds, for a machine that is busy with other things


def start(workdir, *overrides, steps=STEPS):
    """Start both processes, with their output in files beside the workdir."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    command = [
        sys.executable,
        "train.py",
        "--config=configs/digits/vit.py",
        f"--workdir={workdir}",
        "--distributed",
        *(f"--config.{override}" for override in (*OVERRIDES, f"total_steps={steps}", *overrides)),
    ]
    processes = []
    for index in (0, 1):
        environment = {
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
        }
        out, err = (open(f"{workdir}-{index}.{name}", "w") for name in ("out", "err"))  # noqa: SIM115
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=err))
    return processes


def output(workdir, index, name):
    return pathlib.Path(f"{workdir}-{index}.{name}").read_text()


def end(processes, workdir):
    """Wait for both to end, and return their codes; none is left behind."""
    try:
        return [process.wait(PATIENCE) for process in processes]
    except subprocess.TimeoutExpired:
        pytest.fail(f"a process did not end: {output(workdir, 0, 'err')} {output(workdir, 1, 'err')}")
    finally:
        for process in processes:
            process.kill()


def losses(workdir):
    path = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


def wait_for(workdir, processes, step):
    """Wait until a step beyond `step` is written."""
    deadline = time.monotonic() + PATIENCE
    while (done := max([found for found, _ in losses(workdir)], default=0)) <= step:
        assert all(process.poll() is None for process in processes), output(workdir, 0, "err")
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return done


def newest(workdir):
    return max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


@pytest.fixture(scope="module")
def alone():
    """The same run in this process, on one device: its losses, and the figures after 12 steps."""
    config = load_config(str(ROOT / "configs" / "digits" / "vit.py"), OVERRIDES)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    experiment = build(config, mesh)
    step, eval_step = compile_steps(config, experiment)
    batches, state, found = experiment.inputs.train_iterator(batch_size=config.batch_size), experiment.init(), []
    for number in range(1, STEPS + 1):
        state, metrics = step(state, sharding.global_batch(next(batches), mesh), config.seed)
        found.append(float(metrics["loss"]))
        if number == 12:
            whole = experiment.inputs.eval_batches(batch_size=config.batch_size)
            figures = evaluate(eval_step, experiment.task, whole, state, mesh)
    return found, figures


def check_losses(workdir, alone, steps):
    assert [step for step, _ in losses(workdir)] == list(range(1, steps + 1))
    np.testing.assert_allclose([loss for _, loss in losses(workdir)], alone[0][:steps], rtol=0, atol=1e-5)
    assert not re.search(r"step|{", output(workdir, 1, "out"))  # the first host speaks and writes; Gloo may
    assert len(list(workdir.glob("events*"))) >= 1


def test_two_hosts_die_go_on_and_stop_as_one(tmp_path, alone):
    """kill -9 of the second: the first ends and names it. Both go on; SIGTERM to the second: both save one step."""
    workdir, mesh = tmp_path / "run", ("mesh.fsdp=2",)
    processes = start(workdir, *mesh)
    wait_for(workdir, processes, 10)  # the first checkpoint is that of step 8
    processes[1].kill()
    killed = time.monotonic()
    assert end(processes, workdir) == [1, -signal.SIGKILL]
    assert time.monotonic() - killed < 120
    host = socket.gethostname()
    assert f"error: process 1 on host {host} has died" in output(workdir, 0, "err")

    found = newest(workdir)
    processes = start(workdir, *mesh)
    wait_for(workdir, processes, max(step for step, _ in losses(workdir)))
    assert f"going on from step {found} of {STEPS}" in output(workdir, 0, "out")
    processes[1].send_signal(signal.SIGTERM)
    assert end(processes, workdir) == [RESTART, RESTART]
    stopped = json.loads(output(workdir, 0, "out").splitlines()[-1])["step"]
    assert found < stopped == newest(workdir) < STEPS
    check_losses(workdir, alone, stopped)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(), ("mesh.fsdp=4",), ("mesh.fsdp=2", "mesh.tensor=2"), ("mesh.tensor=2",)])
def test_any_mesh_over_two_hosts_gives_the_losses_of_one(mesh, tmp_path, alone):
    workdir = tmp_path / "run"
    assert end(start(workdir, *mesh, steps=12), workdir) == [0, 0]
    check_losses(workdir, alone, 12)
    result, (_, figures) = json.loads(output(workdir, 0, "out").splitlines()[-1]), alone
    assert (result["step"], result["eval/count"]) == (12, 101)
    assert result["eval/accuracy"] == figures["accuracy"]
    assert result["eval/loss"] == pytest.approx(figures["loss"], abs=1e-5)


@pytest.mark.slow
def test_the_first_host_dies(tmp_path):
    """With it goes the coordinator, and JAX itself may be the one to end the second."""
    workdir = tmp_path / "run"
    processes = start(workdir)
    wait_for(workdir, processes, 2)
    processes[0].kill()
    killed = time.monotonic()
    codes = end(processes, workdir)
    assert codes[0] == -signal.SIGKILL
    assert codes[1] not in (0, 75)
    assert time.monotonic() - killed < 120
    assert output(workdir, 1, "err")

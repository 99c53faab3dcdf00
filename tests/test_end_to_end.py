"""The real training loop on a real config, shrunk."""

import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from swin_jax.commands import load_config
from swin_jax.errors import UserError
from swin_jax.evaluate import evaluate_run
from swin_jax.training import loop, sharding
from swin_jax.training.checkpoint import Checkpoints
from swin_jax.training.experiment import build, compile_steps
from swin_jax.training.metrics import MetricWriter

ROOT = pathlib.Path(__file__).parent.parent
SHRUNK = (
    "batch_size=64",
    "data.train_split=train[:256]",
    "data.eval_split=test[:100]",
    "total_epochs=3",
    "eval_every_epochs=1",
    "checkpoint_every_epochs=1",
    "log_every_steps=1",
    "keep_checkpoints=9",
    "optimizer.warmup_epochs=1",
)
SMALL_SWIN = ("model.depths=(2,)", "model.embed_dim=16", "model.num_heads=(2,)", "model.drop_path_rate=0.1")
AUGMENTED = ("task.augment.policy=3a", "task.mixup_alpha=0.8", "task.cutmix_alpha=1.0", "data.repeats=2")
SMALL_VIT = ("model.depth=1", "model.embed_dim=16", "model.num_heads=2", "model.patch_size=4", "ema_decay=0.9")


def small_config(*overrides):
    return load_config(str(ROOT / "configs" / "digits" / "vit.py"), (*SHRUNK, *SMALL_VIT, *AUGMENTED, *overrides))


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
    return [(line["step"], line["train/loss"]) for line in lines(workdir) if "train/loss" in line]


def final_state(workdir, config):
    mesh = sharding.make_mesh()
    restored = Checkpoints(workdir / "checkpoints", read_only=True).restore(build(config, mesh).target)
    return jax.device_get(restored.state)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing interrupts: its folder, what it returned."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    return workdir, loop.train(small_config(), workdir=str(workdir))


def two_losses(num_devices, **axes):
    config = load_config(str(ROOT / "configs" / "digits" / "swin.py"), (*SHRUNK, *SMALL_SWIN, "batch_size=16"))
    mesh = sharding.make_mesh(devices=jax.devices()[:num_devices], **axes)
    experiment = build(config, mesh)
    step, _ = compile_steps(config, experiment)
    batches, state, found = experiment.inputs.train_iterator(batch_size=config.batch_size), experiment.init(), []
    for _ in range(2):
        state, metrics = step(state, sharding.global_batch(next(batches), mesh), config.seed)
        found.append(float(metrics["loss"]))
    return found


@pytest.fixture(scope="module")
def losses_on_one_device():
    return two_losses(1)


@pytest.mark.parametrize(
    ("num_devices", "axes"), [(2, {}), (4, {}), (8, {}), (2, {"fsdp": 2}), (4, {"fsdp": 2, "tensor": 2})]
)
def test_any_number_of_devices_gives_the_same_loss(num_devices, axes, losses_on_one_device):
    np.testing.assert_allclose(two_losses(num_devices, **axes), losses_on_one_device, rtol=0, atol=1e-5)


def test_a_run_leaves_what_it_should(straight):
    workdir, result = straight
    assert result["step"] == 12
    assert result["eval/count"] == 100
    assert result["workdir"] == str(workdir)
    assert set(result) == {
        "step",
        "eval/accuracy",
        "eval/top5",
        "eval/loss",
        "eval/count",
        "best",
        "workdir",
        "seconds",
        "images_per_second",
    }
    evaluations = [line for line in lines(workdir) if "eval/accuracy" in line]
    assert [line["step"] for line in evaluations] == [4, 8, 12]
    assert result["best"]["eval/accuracy"] == max(line["eval/accuracy"] for line in evaluations)
    assert result["eval/accuracy"] == evaluations[-1]["eval/accuracy"]
    assert [step for step, _ in losses(workdir)] == list(range(1, 13))
    names = {path.name.partition(".")[0] for path in workdir.iterdir()}
    assert names == {"config", "metrics", "checkpoints", "events"}
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [4, 8, 12]


def test_finished_run_is_only_told_again(straight, capsys):
    workdir, result = straight
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    assert loop.train(small_config(), workdir=str(workdir)) == result
    assert "finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_crashed_stopped_and_resumed_equals_straight_through(straight, tmp_path, monkeypatch, capsys):
    push = MetricWriter.push
    actions = {}

    def pushing(self, step, metrics):
        push(self, step, metrics)
        if step in actions:
            actions.pop(step)()

    def crash():
        raise RuntimeError("power cut")

    monkeypatch.setattr(MetricWriter, "push", pushing)
    actions[7] = crash
    with pytest.raises(RuntimeError, match="power cut"):
        loop.train(small_config(), workdir=str(tmp_path))
    assert losses(tmp_path)[-1][0] >= 5

    actions[10] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    handler = signal.getsignal(signal.SIGTERM)
    stopped = loop.train(small_config(), workdir=str(tmp_path))
    assert (stopped["step"], signal.getsignal(signal.SIGTERM)) == (10, handler)
    assert "going on from step 4 of 12" in capsys.readouterr().out

    result = loop.train(small_config(), workdir=str(tmp_path))
    assert "going on from step 10 of 12" in capsys.readouterr().out
    assert not actions
    workdir, expected = straight
    assert losses(tmp_path) == losses(workdir)
    for key in ("step", "eval/accuracy", "eval/loss", "best"):
        assert result[key] == expected[key]
    jax.tree.map(
        np.testing.assert_array_equal, final_state(tmp_path, small_config()), final_state(workdir, small_config())
    )


def test_another_config_is_refused_and_nothing_touched(straight):
    workdir, _ = straight
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    with pytest.raises(UserError, match="total_epochs: 3 → 4"):
        loop.train(small_config("total_epochs=4"), workdir=str(workdir))
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


@pytest.mark.parametrize(("checkpoint", "batch_size"), [("latest", 0), ("best", 7), ("4", 1000)])
def test_evaluating_a_checkpoint_gives_its_figures(straight, checkpoint, batch_size):
    workdir, result = straight
    step = {"latest": 12, "best": result["best"]["step"], "4": 4}[checkpoint]
    (line,) = [line for line in lines(workdir) if line["step"] == step and "eval/loss" in line]
    found = evaluate_run(workdir, checkpoint=checkpoint, batch_size=batch_size)
    assert (found["step"], found["count"]) == (step, 100)
    for name in ("accuracy", "top5"):
        assert found[name] == line[f"eval/{name}"]
    assert found["loss"] == pytest.approx(line["eval/loss"], rel=1e-5)


def test_evaluating_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no workdir"):
        evaluate_run(tmp_path)


def test_divergence_saves_nothing(tmp_path):
    config = small_config(
        "optimizer.learning_rate=1e30", "optimizer.grad_clip_norm=0", "optimizer.name=sgd", "optimizer.warmup_epochs=0"
    )
    with pytest.raises(FloatingPointError, match=r"at step \d+: the run has diverged"):
        loop.train(config, workdir=str(tmp_path))
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.name=swim_tiny", "unknown model"),
        ("model.patch_size=3", "patch_size"),
        ("model.embed_dims=3", "embed_dim"),
        ("data.source=digit", "digits"),
        ("data.source=folder:/nowhere", "/nowhere"),
        ("data.num_classes=5", "num_classes"),
        ("batch_size=60", "batch_size=60 is not divisible by the 8 devices"),
        ("batch_size=512", "larger than the 256 examples"),
        ("batch_size=0", "batch_size"),
        ("mesh.fsdp=3", "mesh"),
        ("task.name=classify", "task"),
        ("task.mean=(0.5, 0.5)", "mean"),
        ("optimizer.name=adam", "adamw"),
        ("optimizer.schedule=cosin", "cosine"),
        ("seed=-1", "seed"),
    ],
)
def test_mistakes_in_a_config_are_told_before_anything_is_written(override, named, tmp_path):
    with pytest.raises(UserError, match=named):
        loop.train(small_config(override), workdir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_killed_process_goes_on(tmp_path):
    """kill -9 of the real command, then the same command again: finished, exit 0, nothing on stderr."""
    overrides = [f"--config.{override}" for override in (*SHRUNK, *SMALL_VIT, "total_epochs=40")]
    command = [sys.executable, "train.py", "--config=configs/digits/vit.py", f"--workdir={tmp_path}", *overrides]
    environment = {**os.environ, "XLA_FLAGS": ""}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (tmp_path / "checkpoints" / "8").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (tmp_path / "checkpoints" / "160").exists()

    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "going on from step" in finished.stdout
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result["step"] == 160
    assert math.isfinite(result["eval/loss"])
    assert [step for step, _ in losses(tmp_path)] == list(range(1, 161))

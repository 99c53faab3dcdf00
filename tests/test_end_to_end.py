"""The real training loop on a real config, shrunk."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from swin_jax.checkpoint import verify
from swin_jax.commands import load_config
from swin_jax.errors import RunError, UserError
from swin_jax.evaluate import evaluate_run
from swin_jax.training import loop, sharding
from swin_jax.training import workdir as workdirs
from swin_jax.training.checkpoint import Checkpoints
from swin_jax.training.experiment import build, compile_steps
from swin_jax.training.metrics import MetricWriter
from swin_jax.training.skipped import SkippedUpdates

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
    assert names == {"config", "metrics", "checkpoints", "events", "run"}
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [4, 8, 12]


def times(workdir):
    return {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.name != "run.lock"}


def test_finished_run_is_only_told_again(straight, capsys):
    workdir, result = straight
    before = times(workdir)
    assert loop.train(small_config(), workdir=str(workdir)) == result
    assert "finished" in capsys.readouterr().out
    assert times(workdir) == before


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

    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    for number, at, before in ((signal.SIGTERM, 6, 4), (signal.SIGINT, 10, 6)):
        actions[at] = lambda number=number: os.kill(os.getpid(), number)
        stopped = loop.train(small_config(), workdir=str(tmp_path))
        assert (stopped["step"], stopped["stopped"]) == (at, True)
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
        assert f"going on from step {before} of 12" in capsys.readouterr().out

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


def test_divergence_leaves_what_reproduces_it(tmp_path):
    config = small_config(
        "optimizer.learning_rate=1e30",
        "optimizer.grad_clip_norm=0",
        "optimizer.name=sgd",
        "optimizer.warmup_epochs=0",
        "max_skipped_updates=2",
        "task.augment.policy=",
        "task.mixup_alpha=0",
        "task.cutmix_alpha=0",
    )
    with pytest.raises(SkippedUpdates, match=r"train/\w+ is (nan|inf) at step \d+: the run has diverged, 3 updates"):
        loop.train(config, workdir=str(tmp_path))
    assert not list((tmp_path / "checkpoints").iterdir())

    mesh = sharding.make_mesh()
    experiment = build(config, mesh)
    state = Checkpoints(tmp_path / "skipped_update", read_only=True).restore(experiment.target).state
    state = dataclasses.replace(state, step=state.step - 1)
    batch = dict(np.load(tmp_path / "skipped_update" / "batch-0.npz"))
    params = jax.device_get(state.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    with jax.set_mesh(mesh):
        after, metrics = compile_steps(config, experiment)[0](state, sharding.global_batch(batch, mesh), config.seed)
    assert float(metrics["skipped_update"]) == 1
    assert not math.isfinite(float(metrics["loss"]) + float(metrics["grad_norm"]))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after.params), params)


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


def test_a_signal_during_the_evaluation_saves_that_step(straight, tmp_path, monkeypatch):
    evaluate = loop.evaluate

    def stopped_while_evaluating(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate", stopped_while_evaluating)
    config = small_config("checkpoint_every_epochs=3")
    stopped = loop.train(config, workdir=str(tmp_path))
    assert (stopped["step"], stopped["stopped"]) == (4, True)
    assert stopped["eval/loss"] == lines(straight[0])[4]["eval/loss"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    """In a process of its own: the signal is left to the kernel."""
    program = (
        "import os, signal\nfrom swin_jax.training.loop import stop_on_signal\n"
        "with stop_on_signal(None) as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    print(stop(1), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    print('still here')"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (-signal.SIGINT, "True\n")
    assert run.stderr == "saving after this step; once more to end at once\n"


def test_a_second_run_on_the_workdir_is_refused(straight):
    workdir, _ = straight
    with workdirs.lock(workdir), pytest.raises(UserError, match=rf"in use by process {os.getpid()} on \S+, since"):
        loop.train(small_config(), workdir=str(workdir))


@contextlib.contextmanager
def small_disk(folder, size):
    """Mount a disk of so many bytes in memory, or skip the test where that is not allowed."""
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mounting, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a thread may still be closing a file


def check_full_disk(workdir, room, capsys):
    """Train where there is no room for the second checkpoint; return the good ones."""
    with pytest.raises(RunError) as error:
        loop.train(small_config(), workdir=str(workdir))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{workdir} cannot be written: {room}. The checkpoints in it are whole")
    verified = verify(workdir)
    assert verified["damaged"] == {}
    return verified["good"]


def stopped_after_step_4(straight, workdir):
    """Copy the straight run as it was before its second checkpoint."""
    shutil.copytree(straight, workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")
    shutil.rmtree(workdir / "checkpoints" / "12")


def test_full_disk(straight, tmp_path, capsys):
    expected, _ = straight
    with small_disk(tmp_path / "disk", 20_000_000) as disk:
        workdir, ballast = disk / "run", disk / "ballast"
        stopped_after_step_4(expected, workdir)
        checkpoint = sum(path.stat().st_size for path in (workdir / "checkpoints" / "4").rglob("*"))
        ballast.write_bytes(bytes(shutil.disk_usage(disk).free - checkpoint // 2))
        assert check_full_disk(workdir, "the disk is full", capsys) == [4]
        ballast.unlink()
        loop.train(small_config(), workdir=str(workdir))
        assert "going on from step 4 of 12" in capsys.readouterr().out
        assert verify(workdir)["good"] == [4, 8, 12]
        assert losses(workdir) == losses(expected)


def test_a_file_larger_than_the_process_may_write(straight, tmp_path, capsys):
    """The same without a disk of its own, wherever the tests run."""
    workdir = tmp_path / "run"
    stopped_after_step_4(straight[0], workdir)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        good = check_full_disk(workdir, "a file would be larger than this process may write", capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert good == [4]

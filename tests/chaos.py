"""Kill a training run at random moments, again and again, and compare its end with that of a run left in peace.

python -m tests.chaos [--kills=25] [--seed=0] [--folder=DIR]       (make chaos)

The victim is the real command, train.py, on scikit-learn's digits, with a checkpoint every four steps so that most
moments are near one. The seed decides after how much of its own processor time each life ends: while it starts up, in a
step or in a save. The kernel ends it then as kill -9 does, however busy the machine is. Prints one JSON object; exits
with 1 unless the last parameters are those of the other run bit for bit.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from swin_jax.checkpoint import verify
from swin_jax.training.verification import read_arrays

ROOT = pathlib.Path(__file__).parent.parent
STEPS_PER_EPOCH = 4
OVERRIDES = (
    "batch_size=64",
    "data.train_split=train[:256]",
    "data.eval_split=test[:64]",
    "data.preflight=0",
    "eval_every_epochs=5",
    "checkpoint_every_epochs=1",
    "log_every_steps=1",
    "optimizer.warmup_epochs=1",
    "ema_decay=0.9",
    "model.depth=1",
    "model.embed_dim=16",
    "model.num_heads=2",
    "model.drop_path_rate=0.1",
    "task.mixup_alpha=0.8",
)
TIMEOUT = 3600.0  # seconds for a life to come to where it is to end, on a machine that may be busy
LIFETIME = 4.0  # processor seconds that a life may have beyond those of a start with nothing to do


@dataclasses.dataclass(frozen=True)
class End:
    """How a life ends: after so many new `steps`, or saves begun (`save`), and a moment more, or processor seconds."""

    what: str  # steps, save, seconds
    count: float
    moment: float = 0.0
    signal: int = signal.SIGKILL  # SIGPROF of those after processor seconds: the kernel's timer, and no less deadly


def draw_ends(kills: int, seed: int, start: float) -> list[End]:
    """Return how each of `kills` lives ends, if starting up takes `start` processor seconds."""
    moments = np.random.default_rng(seed).uniform(start / 2, start + LIFETIME, kills)
    return [End("seconds", float(moment), signal=signal.SIGPROF) for moment in moments]


class Victim:
    """A run in a folder that can be started, watched and killed."""

    def __init__(self, workdir: pathlib.Path, total_epochs: int):
        self.workdir, self.checkpoints = workdir, workdir / "checkpoints"
        settings = [f"--config.{override}" for override in (*OVERRIDES, f"total_epochs={total_epochs}")]
        self.command = [sys.executable, "train.py", "--config=configs/digits/vit.py", f"--workdir={workdir}", *settings]
        self.environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.output = workdir.with_suffix(".log")

    def live(self, end: End | None = None) -> int:
        """Train until the end, or until `end`; return the exit code."""
        with self.output.open("a") as output:
            timed = end is not None and end.what == "seconds"
            process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=(lambda: signal.setitimer(signal.ITIMER_PROF, end.count)) if timed else None,
            )
            try:
                if end is not None and not timed and self._wait(end, process):
                    time.sleep(end.moment)
                    process.send_signal(end.signal)
                return process.wait(TIMEOUT)
            finally:
                process.kill()
                process.wait()

    def _wait(self, end: End, process: subprocess.Popen) -> bool:
        """Wait for the end; False if the process ended before."""
        start, before, saves, saving = time.monotonic(), self.step(), 0, self.saving()
        while process.poll() is None:
            elapsed = time.monotonic() - start
            assert elapsed < TIMEOUT, f"no end of a life in sight: {end}, {self.output}"
            now = self.saving()
            saves, saving = saves + len(now - saving), now
            if (saves if end.what == "save" else self.step() - before) >= end.count:
                return True
            time.sleep(0.005)
        return False

    def lines(self) -> list[dict[str, Any]]:
        """Return what metrics.jsonl holds, but for what the time of day decides."""
        path, found = self.workdir / "metrics.jsonl", []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                found.append(json.loads(line))
            except ValueError:  # cut off
                continue
        timed = ("train/images_per_second", "train/data_wait")
        return [{key: value for key, value in line.items() if key not in timed} for line in found]

    def step(self) -> int:
        """Return the newest step that was logged."""
        path = self.workdir / "metrics.jsonl"
        newest = re.findall(rb'^{"step": (\d+),.*\n', path.read_bytes()[-2000:], re.MULTILINE) if path.exists() else []
        return int(newest[-1]) if newest else 0

    def saving(self) -> set[str]:
        """Return the saves under way, or cut off."""
        return {path.name for path in self.checkpoints.glob("*") if not path.name.isdecimal()}

    def saved(self) -> int:
        """Return the newest checkpoint, 0 if there is none."""
        return max((int(path.name) for path in self.checkpoints.glob("*") if path.name.isdecimal()), default=0)


def processor_seconds(run: Victim) -> float:
    """Return what starting a run takes that is finished."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.live() == 0, run.output.read_text()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def chaos(folder: pathlib.Path, *, kills: int, seed: int, total_epochs: int, first: tuple[End, ...] = ()) -> dict:
    """Kill a run so often, after the lives that end as `first` says, and return what happened.

    Raises AssertionError if a checkpoint is lost, the command fails, or the end is not that of the undisturbed run.
    """
    began = time.monotonic()
    peace, victim = Victim(folder / "peace", total_epochs), Victim(folder / "victim", total_epochs)
    assert peace.live() == 0, peace.output.read_text()
    figures = {"kills": 0, "in_a_save": 0, "without_progress": 0, "steps_done_again": 0}
    codes = []
    for end in (*first, *(draw_ends(kills, seed, processor_seconds(peace)) if kills else ())):
        before, step_before, saving_before = victim.saved(), victim.step(), victim.saving()
        codes.append(victim.live(end))
        assert codes[-1] != 0, (
            f"the run was over after {figures['kills']} kills: total_epochs={total_epochs} is too few"
        )
        assert victim.saved() >= before, "a checkpoint is lost"
        if end.signal in (signal.SIGKILL, signal.SIGPROF):
            assert codes[-1] == -end.signal, victim.output.read_text()
            figures["kills"] += 1
            figures["in_a_save"] += bool(victim.saving() - saving_before)
            figures["without_progress"] += victim.step() <= step_before
            figures["steps_done_again"] += max(victim.step() - victim.saved(), 0)
    assert victim.live() == 0, victim.output.read_text()

    total = total_epochs * STEPS_PER_EPOCH
    expected, found = (dict(read_arrays(run.checkpoints / str(total) / "state")) for run in (peace, victim))
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        assert array.dtype == found[name].dtype, name
        np.testing.assert_array_equal(array, found[name], err_msg=name, strict=True)
    assert victim.lines() == peace.lines()
    assert not verify(victim.workdir)["damaged"]
    output = victim.output.read_text()
    assert "Traceback" not in output, output
    return {
        **figures,
        "fallbacks": output.count("is damaged"),
        "steps": total,
        "arrays_compared": len(expected),
        "codes": codes,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        figures = chaos(folder, kills=arguments.kills, seed=arguments.seed, total_epochs=10 * arguments.kills)
    figures.pop("codes")
    print(json.dumps(figures | {"seed": arguments.seed, "same_to_the_bit": True}))


if __name__ == "__main__":
    main()

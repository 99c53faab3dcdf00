"""A slow step, a run that stands still, a dead data worker: told, with where the time went."""

import json
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from swin_jax.errors import RunError
from swin_jax.training import feed as feeding
from swin_jax.training import watch
from swin_jax.training.feed import Feed
from swin_jax.training.metrics import MetricWriter
from swin_jax.training.watch import SlowSteps, Watchdog


def test_a_step_is_slow_by_the_median_of_the_others():
    steps = SlowSteps()
    assert [steps.add(step, seconds, 0.0) for step, seconds in enumerate([9.0, 0.3, 0.2, 0.4, 0.3])] == [None] * 5
    assert steps.add(5, 1.29, 0.0) is None  # not a second over the 0.3
    slow = steps.add(6, 1.8, 1.5)
    assert (slow.step, slow.seconds, slow.median, slow.waited) == (6, 1.8, pytest.approx(0.35), 1.5)
    assert "step 6 took 1.8 s" in slow.line
    assert "1.5 s of it waiting for data, 0.3 s for the device" in slow.line
    for step in range(7, 60):
        steps.add(step, 10.0, 0.0)
    assert steps.add(60, 45.0, 0.0) is None  # not five times the 10 it has come to
    assert steps.add(61, 51.0, 99.0).waited == 51.0


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.mark.parametrize(("data_seconds", "device_seconds"), [(7.5, 0.5), (0.25, 7.75)])
def test_a_run_writes_and_tells_of_slow_steps(tmp_path, monkeypatch, capsys, data_seconds, device_seconds):
    clock = Clock()
    monkeypatch.setattr(feeding.time, "perf_counter", clock.perf_counter)

    def batches():
        for step in range(1, 41):
            clock.now += data_seconds if step in (20, 24) else 0.25
            yield {"image": np.zeros(1)}

    feed = Feed(batches())
    writer = MetricWriter(
        tmp_path, start_step=0, total_steps=40, unit="images", units_per_step=1, log_every_steps=100, feed=feed
    )
    for step in range(1, 41):
        next(feed)
        clock.now += device_seconds if step in (20, 24) else 0.5
        writer.push(step, {"loss": jnp.float32(1), "grad_norm": jnp.float32(1), "skipped_update": jnp.float32(0)})
    writer.close()
    slow = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(slow) == 2
    told = [line for line in capsys.readouterr().out.splitlines() if "took" in line]
    assert len(told) == 1  # the second is within the minute
    assert told[0].startswith("warning: step ")
    assert "the median is 0.75 s" in told[0]


def hung(tmp_path, *, timeout, before):
    """Run a watchdog over a run that stands still, until it ends it; return the code."""
    ended, codes = threading.Event(), []
    with Watchdog(timeout, tmp_path, end=lambda code: (codes.append(code), ended.set())) as dog:
        before(dog)
        assert ended.wait(20)
    return codes


def test_a_run_that_stands_still_is_ended_with_the_name_of_its_host(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(watch.socket, "gethostname", lambda: "node-7")

    def stand(dog):
        dog.done(41)
        with dog.waiting_for("data"):
            time.sleep(1.0)

    assert hung(tmp_path, timeout=0.4, before=stand) == [1]
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: host node-7: nothing done for ")
    assert warning.endswith("after step 41, waiting for data; at 0.4 s the run ends")
    assert error.startswith("error: host node-7: nothing done for ")
    assert error.endswith("after step 41, waiting for data: hung, and ended")
    assert "in stand" in (tmp_path / "hung-process-0.txt").read_text()  # where it stood


def test_work_keeps_the_watchdog_quiet(tmp_path, capsys):
    codes = []
    with Watchdog(0.5, tmp_path, end=codes.append) as dog:
        time.sleep(0.8)  # compilation, before the first step
        for step in range(5):
            dog.done(step)
            time.sleep(0.15)
        for _ in dog.over(range(1, 6)):
            time.sleep(0.15)
    with Watchdog(0, tmp_path, end=codes.append) as dog:
        dog.done(1)
        time.sleep(0.1)
    assert codes == []
    assert "hung" not in capsys.readouterr().err
    assert list(dog.over([3, 4])) == [3, 4]


def test_a_dead_worker_is_told_by_its_host():
    def batches():
        yield {"image": np.zeros(1)}
        raise RuntimeError("Worker process was terminated unexpectedly with exit code -9. Search the logs above ...")

    feed = Feed(batches())
    next(feed)
    with pytest.raises(RunError, match=r"a data worker of host .* has died \(exit code -9\): out of memory"):
        next(feed)

    def broken():
        raise RuntimeError("something else")
        yield

    with pytest.raises(RuntimeError, match="something else"):
        next(Feed(broken()))

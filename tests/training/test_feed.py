"""How long a run waits for its input, and how many records it had to replace."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from swin_jax.training import feed as feeding
from swin_jax.training import metrics as writing
from swin_jax.training.feed import Feed
from swin_jax.training.metrics import MetricWriter


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(feeding.time, "perf_counter", clock.perf_counter)
    return clock


def batches(clock, seconds, skipped=None):
    for number in range(100):
        clock.now += seconds
        flags = {} if skipped is None else {"skipped": np.arange(4) < skipped[number]}
        yield {"image": np.zeros((4, 2)), **flags}


def test_replaced_records_are_counted_and_kept_from_the_device(clock):
    feed = Feed(batches(clock, 0.25, skipped=[0, 3, 1]), skipped=10)
    for total in (10, 13, 14):
        assert next(feed).keys() == {"image"}
        assert (feed.skipped, feed.waited) == (total, 0.25)
    assert Feed(batches(clock, 1)).skipped is None


def run(folder, clock, feed, *, steps, step_seconds, pause=None):
    writer = MetricWriter(
        folder, start_step=0, total_steps=steps, unit="images", units_per_step=4, log_every_steps=4, feed=feed
    )
    for step in range(1, steps + 1):
        next(feed)
        clock.now += step_seconds
        writer.push(step, {"loss": jnp.float32(1), "grad_norm": jnp.float32(1), "skipped_update": jnp.float32(0)})
        if step == pause:
            writer.drain()
            clock.now += 1000.0
    writer.drain()
    writer.close()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_share_of_waiting_is_written_and_told_once(tmp_path, clock, capsys):
    """1 s for a batch and 3 s for the rest of a step: a quarter; the pause after step 6 is not part of it."""
    lines = run(tmp_path, clock, Feed(batches(clock, 1.0)), steps=40, step_seconds=3.0, pause=6)
    assert [line["step"] for line in lines] == list(range(4, 41, 4))
    # The steps still running when the loop goes on are done at once in this test, so windows differ but the last.
    assert [line["train/data_wait"] for line in lines[2:-1]] == pytest.approx([0.25] * 7)
    assert "train/skipped" not in lines[0]
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(told) == 1
    assert "% of the time went by waiting for data up to step" in told[0]


@pytest.mark.parametrize(("wait", "steps"), [(0.5, 40), (2.0, 4)])
def test_a_fast_input_and_a_short_run_are_no_matter(tmp_path, clock, capsys, wait, steps):
    run(tmp_path, clock, Feed(batches(clock, wait, skipped=[1] * 99)), steps=steps, step_seconds=3.0)
    assert "warning" not in capsys.readouterr().out
    assert writing.MIN_SECONDS == 20.0


def test_the_replaced_are_written_with_the_step_that_had_them(tmp_path, clock):
    lines = run(tmp_path, clock, Feed(batches(clock, 0.0, skipped=[1, 0, 2, 1, 0, 4, 0, 0])), steps=8, step_seconds=1.0)
    assert [(line["step"], line["train/skipped"]) for line in lines] == [(4, 4), (8, 8)]

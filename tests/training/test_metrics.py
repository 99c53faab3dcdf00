import json
import math
import re
import time

import jax.numpy as jnp
import pytest

from swin_jax.training.metrics import MetricWriter, drop_after
from swin_jax.training.skipped import SkippedUpdates


def make_writer(folder, **changes):
    options = {"start_step": 0, "total_steps": 10, "unit": "images", "units_per_step": 4, "log_every_steps": 3}
    return MetricWriter(folder, **{**options, **changes})


def metrics(loss):
    skipped = jnp.float32(not math.isfinite(loss))
    return {"loss": jnp.float32(loss), "grad_norm": jnp.float32(1.0), "skipped_update": skipped}


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_writes_every_so_many_steps_and_the_last(tmp_path, capsys):
    writer = make_writer(tmp_path)
    for step in range(1, 11):
        writer.push(step, metrics(step))
    writer.drain()
    writer.write_evaluation(10, {"accuracy": 0.5, "count": 8})
    writer.close()
    written = lines(tmp_path)
    assert [line["step"] for line in written] == [3, 6, 9, 10, 10]
    assert [line["train/loss"] for line in written[:4]] == [3.0, 6.0, 9.0, 10.0]
    assert all(line["train/images_per_second"] > 0 for line in written[:4])
    assert written[4] == {"step": 10, "eval/accuracy": 0.5, "eval/count": 8}
    assert "step 10/10  train/loss 10.0000  eval/accuracy 0.5000" in capsys.readouterr().out
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_the_time_to_the_first_step_is_told_once(tmp_path, capsys):
    writer = make_writer(tmp_path, begun=time.perf_counter() - 40.0)
    for step in (1, 2):
        writer.push(step, metrics(1.0))
    writer.drain()
    writer.close()
    (told,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"first step after 4\d\.\d s, \d\.\d s of them to compile and run it", told)


def test_skipped_updates_are_counted_and_told(tmp_path, capsys):
    writer = make_writer(tmp_path, max_skipped_updates=2, log_every_steps=1, skipped_updates=3, total_steps=9)
    values = [1.0, math.nan, math.inf, 2.0, math.nan, math.nan, 3.0, 4.0, 5.0]
    for step, loss in enumerate(values, 1):
        writer.push(step, metrics(loss))
    writer.drain()
    writer.close()
    assert [line["train/skipped_updates"] for line in lines(tmp_path)] == [3, 4, 5, 5, 6, 7, 7, 7, 7]
    assert [line.get("train/loss") for line in lines(tmp_path)] == [v if math.isfinite(v) else None for v in values]
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "warning: train/loss is nan at step 2: the update is skipped (4 so far)",
        "warning: train/loss is nan at step 5: the update is skipped (6 so far)",
    ]


@pytest.mark.parametrize("first_bad", [1, 2, 5])
@pytest.mark.parametrize("log_every_steps", [1, 100])
def test_too_many_in_a_row_end_the_run(first_bad, log_every_steps, tmp_path):
    writer = make_writer(tmp_path, max_skipped_updates=3, log_every_steps=log_every_steps)
    last = first_bad + 3  # the fourth in a row, and the newest: nothing has been done since
    for step in range(1, last):
        writer.push(step, metrics(1.0 if step < first_bad else math.nan))
    with pytest.raises(SkippedUpdates, match=f"train/loss is nan at step {last}: the run has diverged, 4 updates"):
        writer.push(last, metrics(math.nan))


def test_resuming_drops_what_comes_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in (2, 4, 4, 6)) + '{"step": 8, "train/lo')
    writer = make_writer(tmp_path, start_step=4)
    writer.write(5, {"train/loss": 1.0})
    writer.close()
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 4, 5]


def test_nothing_to_drop_leaves_the_file_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n')
    before = path.stat().st_ino
    drop_after(path, 2)
    drop_after(tmp_path / "none.jsonl", 2)
    assert path.stat().st_ino == before


def test_other_hosts_write_nothing(tmp_path, capsys):
    writer = make_writer(tmp_path, active=False)
    for step in range(1, 11):
        writer.push(step, metrics(step))
    writer.drain()
    writer.write_evaluation(10, {"accuracy": 0.5})
    writer.close()
    assert not list(tmp_path.iterdir())
    assert not capsys.readouterr().out

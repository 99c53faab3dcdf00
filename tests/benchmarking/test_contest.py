"""Timing by turns, with workers whose pace is known."""

import sys

import pytest

from swin_jax.benchmarking import contest
from swin_jax.benchmarking.against_timm import check_interpreter, compare
from swin_jax.benchmarking.models import Work
from swin_jax.errors import UserError

WORKER = """
import sys, time
from swin_jax.benchmarking.contest import serve
print("a library says hello")
serve(lambda: lambda calls: time.sleep({seconds} * calls), {{"version": "1"}})
"""


def sleeper(seconds: float) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, "-c", WORKER.format(seconds=seconds)], {}


def test_the_ratio_of_two_paces_is_found(monkeypatch):
    monkeypatch.setattr(contest, "REST_SECONDS", 0.0)
    found = contest.contest({"ours": sleeper(0.02), "theirs": sleeper(0.06)}, rounds=3, sample_seconds=0.12)
    assert all(seconds >= 0.06 for seconds in found["theirs"]["seconds"])
    ratio = contest.ratios(found, "ours")["theirs"]
    assert ratio.low <= ratio.median <= ratio.high
    assert ratio.median == pytest.approx(3.0, rel=0.4)
    assert found["ours"]["peak_bytes"] > 1e6
    table = contest.table(found, "ours", batch_size=6)
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["ours", "theirs"]


def test_ratios_are_taken_round_by_round():
    found = {"ours": {"seconds": [1.0, 2.0, 4.0]}, "theirs": {"seconds": [2.0, 5.0, 8.0]}}  # a machine that slows down
    assert contest.ratios(found, "ours")["theirs"] == contest.Timing(2.0, 2.0, 2.25)


def test_a_worker_that_ends_is_named():
    with pytest.raises(UserError, match=r"theirs ended without an answer, exit code 3"):
        contest.Worker("theirs", [sys.executable, "-c", "raise SystemExit(3)"], {})


def test_an_interpreter_without_torch_is_told_of(tmp_path):
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho ModuleNotFoundError: no torch here >&2\nexit 1\n")
    interpreter.chmod(0o755)
    with pytest.raises(UserError, match="cannot import torch and timm: ModuleNotFoundError: no torch here"):
        check_interpreter(str(interpreter))
    with pytest.raises(UserError, match=f"--torch_python={tmp_path}/none: No such file or directory"):
        check_interpreter(f"{tmp_path}/none")


@pytest.mark.parametrize(("platform", "ours"), [("cpu", ["swin_jax", "swin_jax tuned"]), ("gpu", ["swin_jax"])])
def test_allocator_settings_compete_on_a_cpu_alone(platform, ours, tmp_path, monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: platform)
    monkeypatch.setattr("swin_jax.benchmarking.against_timm.contest", lambda contestants, **options: list(contestants))
    found = compare(
        Work("infer", "any", batch_size=1),
        kinds=("eager",),
        torch_python="python",
        rounds=1,
        sample_seconds=0.0,
        folder=tmp_path,
    )
    assert found == [*ours, "timm eager"]

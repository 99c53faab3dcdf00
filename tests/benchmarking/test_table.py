"""The table of benchmarks/table.py: its cells, and that a second call goes on where the first one stopped."""

import json

import pytest

from benchmarks import table

ROW = {
    "mode": "train",
    "model": "swin_tiny_patch4_window7_224",
    "batch_size": 8,
    "dtype": "bfloat16",
    "device": "some GPU",
    "fraction_of_matmul": 0.5,
    "contest": {"swin_jax": {"seconds": [1.0, 1.0, 4.0]}, "timm eager": {"seconds": [2.0, 2.0, 8.0]}},
    "ratios": {"swin_jax": {"timm eager": {"median": 2.0}}},
}


def test_cells():
    head, _, row, failed = table.markdown([ROW, {**table_key(), "error": "out of memory"}]).splitlines()
    assert head.split(" | ")[3:6] == ["dtype", "swin_jax", "timm eager"]
    assert row == "| train | swin_tiny_patch4_window7_224 | 8 | bfloat16 | 8.00 | 4.00 (2.00 x) | 0.50 | 5500 to 9000 |"
    assert "out of memory" in failed


def table_key():
    return {"mode": "infer", "model": "other", "batch_size": 1}


def test_a_second_call_measures_what_failed_and_nothing_else(tmp_path, monkeypatch, capsys):
    calls = []

    def measure(mode, model, batch_size, options):
        calls.append((mode, model))
        failed = mode == "infer" and len(calls) == 2
        return {"error": "no room"} if failed else {**ROW, "mode": mode, "model": model, "batch_size": batch_size}

    monkeypatch.setattr(table, "measure", measure)
    for _ in range(2):
        table.main([f"--out={tmp_path}", "--models=swin_tiny_patch4_window7_224"])
    assert [mode for mode, _ in calls] == ["train", "infer", "infer"]
    assert [json.loads(line)["mode"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == [
        "train",
        "infer",
    ]
    assert (tmp_path / "table.png").stat().st_size > 1000
    assert "no room" in capsys.readouterr().out


@pytest.mark.parametrize("gpu", [True, False])
def test_defaults(gpu):
    options = table.parse(["--out=somewhere"] + (["--gpu"] if gpu else []))
    assert options.batch_sizes == ([128] if gpu else [8])
    assert ("--dtype=bfloat16" in options.options) is gpu


def test_an_error_is_one_line_of_the_row():
    options = table.parse(["--out=somewhere", "--batch_sizes=1", "--against="])
    assert "did you mean" in table.measure("infer", "swin_tiny_patch4_window7_22", 1, options)["error"]


def test_rows_without_rivals_are_measured_again_when_there_are_some(tmp_path, monkeypatch):
    calls = []

    def measure(mode, model, batch_size, options):
        calls.append(options.against)
        return {name: value for name, value in ROW.items() if options.against or name not in ("contest", "ratios")}

    monkeypatch.setattr(table, "measure", measure)
    for against in ("", "timm", "timm"):
        table.main([f"--out={tmp_path}", f"--models={ROW['model']}", "--modes=train", f"--against={against}"])
    assert calls == ["", "timm"]

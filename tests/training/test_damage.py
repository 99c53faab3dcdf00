"""Whatever happens to a file, either the values are the saved ones or the step before is used, with a warning."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest
import tensorstore as ts

from swin_jax.checkpoint import COMMANDS, with_flag
from swin_jax.commands import run_subcommand
from swin_jax.training.checkpoint import Checkpoints
from swin_jax.training.verification import verify_checkpoint, verify_checkpoints
from tests.training.damage import KINDS, Damage, fresh_copy, random_damages
from tests.training.test_checkpoint import assert_equal, make_iterator

NEEDED = ("meta/metadata", "state/_METADATA", "state/manifest.ocdbt", "state/ocdbt.process_0/d")


@pytest.fixture(scope="module")
def two_steps(setup, tmp_path_factory):
    """A folder with the steps 1 and 2, and their states on the host."""
    folder, expected = tmp_path_factory.mktemp("damage") / "original", {}
    checkpoints, state, iterator = Checkpoints(folder, keep=2), setup.init(), make_iterator()
    for step in (1, 2):
        next(iterator)
        state, _ = setup.train_step(state, setup.batch(step), 0)
        expected[step] = jax.tree.map(np.array, state)
        checkpoints.save(state, iterator, metrics={"accuracy": step / 10}, record={"number": step})
    checkpoints.close()
    return folder, expected


@pytest.fixture
def resume(two_steps, setup, tmp_path, caplog):
    """`resume(damage) -> (step, warnings)`: what a run goes on from that finds its newest checkpoint damaged."""
    caplog.set_level(logging.WARNING, logger="swin_jax")
    original, expected = two_steps
    folder = tmp_path / "run" / "checkpoints"

    def resume(damage):
        fresh_copy(original, folder)
        shutil.rmtree(folder.parent / "damaged_checkpoints", ignore_errors=True)
        damage(folder / "2")
        caplog.clear()
        checkpoints, iterator = Checkpoints(folder, keep=2), make_iterator()
        restored = checkpoints.restore(setup.target, iterator)
        checkpoints.close()
        step = int(restored.state.step)
        assert_equal(restored.state, expected[step])
        assert restored.record == {"number": step}
        assert iterator.get_state() == {"next_index": step}
        warnings = [record.getMessage() for record in caplog.records if record.name.startswith("swin_jax")]
        aside = folder.parent / "damaged_checkpoints"
        assert [path.name for path in aside.glob("*")] == ([] if step == 2 else ["2-0"])
        damaged = aside / "2-0" if step == 1 else folder / "2"
        return step, warnings, damaged

    return resume


def is_good(folder):
    """Whether `verify` finds nothing, of a step that may have been set aside under another name."""
    named = folder.with_name("2")
    if folder != named:
        folder.rename(named)
    try:
        verify_checkpoint(named)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("file", NEEDED)
@pytest.mark.parametrize("kind", ["truncate", "empty", "delete"])
def test_cut_and_lost_files_are_noticed(kind, file, resume, capfd):
    step, warnings, damaged = resume(Damage(kind, file).apply)
    assert step == 1
    (warning,) = warnings
    assert warning.startswith("the checkpoint of step 2 is damaged (")
    assert warning.endswith("): going back to step 1")
    assert "\n" not in warning
    assert not is_good(damaged)
    assert "Traceback" not in capfd.readouterr().err


def change_one_bit(step):
    """Change a bit of one weight as TensorStore would write it: all its own checks hold."""
    name = "params.blocks.0.kernel"
    store = {"driver": "ocdbt", "base": f"file://{step}/state/", "path": f"{name}/"}
    array = ts.open({"driver": "zarr", "kvstore": store}, open=True).result()
    values = array.read().result()
    values.view(np.uint32)[3, 5] ^= 1
    array.write(values).result()


def test_a_flipped_bit_that_only_the_fingerprint_sees(resume):
    step, warnings, damaged = resume(change_one_bit)
    assert step == 1
    assert "(params.blocks.0.kernel changed since saved)" in warnings[0]
    assert not is_good(damaged)


def test_a_flipped_bit_in_the_description(resume):
    def flip(step):
        path = step / "meta" / "metadata"
        meta = json.loads(path.read_text())
        meta["metrics"]["accuracy"] = 0.9
        path.write_text(json.dumps(meta))

    step, warnings, _ = resume(flip)
    assert step == 1
    assert "its description has changed" in warnings[0]


def test_an_emptied_checkpoint(resume):
    def empty(step):
        shutil.rmtree(step)
        step.mkdir()

    step, warnings, _ = resume(empty)
    assert step == 1
    assert "step 2 is damaged" in warnings[0]


def check_random_damages(resume, damages):
    """Return how many of them cost the step; `resume` has compared what was restored."""
    fallbacks = 0
    for damage in damages:
        step, warnings, damaged = resume(damage.apply)
        assert len(warnings) == (step == 1), damage
        assert not (step == 1 and is_good(damaged)), damage
        fallbacks += step == 1
    return fallbacks


def test_random_damages(two_steps, resume):
    damages = random_damages(two_steps[0] / "2", 8, seed=1)
    assert {damage.kind for damage in damages} == set(KINDS)
    check_random_damages(resume, damages)


@pytest.mark.slow
def test_a_hundred_random_damages(two_steps, resume):
    fallbacks = check_random_damages(resume, random_damages(two_steps[0] / "2", 100, seed=0))
    print(f"100 damages: {fallbacks} cost the newest step, {100 - fallbacks} nothing; none restored wrong values")
    assert fallbacks >= 25


def run_verify(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        run_subcommand(COMMANDS, with_flag(["checkpoint.py", "verify", *map(str, arguments)]))
    captured = capsys.readouterr()
    return ended.value.code, captured.out.splitlines(), captured.err


def test_the_command(two_steps, tmp_path, capsys):
    workdir = tmp_path / "run"
    fresh_copy(two_steps[0], workdir / "checkpoints")
    code, lines, err = run_verify([workdir], capsys)
    assert (code, lines[:-1], err) == (0, ["step        1  good", "step        2  good"], "")
    Damage("delete", "state/manifest.ocdbt").apply(workdir / "checkpoints" / "2")
    before = sorted((path, path.stat().st_mtime_ns) for path in workdir.rglob("*"))
    code, lines, err = run_verify([f"--workdir={workdir}"], capsys)
    assert (code, err) == (1, "")
    assert lines[1].startswith("step        2  damaged: ")
    result = json.loads(lines[-1])
    assert (result["good"], list(result["damaged"]), result["newest_good"]) == ([1], ["2"], 1)
    assert sorted((path, path.stat().st_mtime_ns) for path in workdir.rglob("*")) == before
    code, lines, err = run_verify([tmp_path], capsys)
    assert (code, lines, err) == (2, [], f"error: {tmp_path} is no workdir: it has no folder 'checkpoints'\n")
    assert run_verify([], capsys)[0] == 2


def test_verify_names_every_checkpoint(two_steps, tmp_path):
    fresh_copy(two_steps[0], tmp_path / "c")
    shutil.copytree(tmp_path / "c" / "2", tmp_path / "c" / "10")
    (tmp_path / "c" / "11.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "c" / "12").mkdir()
    Damage("empty", "meta/metadata").apply(tmp_path / "c" / "1")
    found = {verdict.name: (verdict.state, verdict.reason) for verdict in verify_checkpoints(tmp_path / "c")}
    assert list(found) == ["1", "2", "10", "12", "11.orbax-checkpoint-tmp"]
    assert found["1"] == ("damaged", "its description is empty")
    assert found["2"] == ("good", "")
    assert found["10"] == ("damaged", "it holds step 2")
    assert found["12"] == ("damaged", "metadata is missing")
    assert found["11.orbax-checkpoint-tmp"][0] == "unfinished"

"""Tiny runs on text, made by the real commands, and these commands called in this process."""

import contextlib
import io
import json
import random
from pathlib import Path

import jax
import pytest

from swin_jax.commands import run_command
from swin_jax.training import sharding

CONFIGS = Path(__file__).parent.parent / "configs" / "text"
TINY = {"model.embed_dim": 32, "model.depth": 1, "model.num_heads": 2, "accumulation_steps": 1} | dict.fromkeys(
    ("eval_every_epochs", "checkpoint_every_epochs"), 0
)
MAKE_MESH = sharding.make_mesh
WORDS = ("the", "cat", "saw", "a", "red", "bird", "and", "then", "it", "ran", "over", "to", "me")


def _one_device(*, devices=None, **axes):
    return MAKE_MESH(devices=devices or jax.devices()[:1], **axes)


def run(command, *arguments):
    """Return the exit code, stdout and stderr of a command, which is its module, on one device."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", _one_device)  # eight that wait for each other on few cores are slow
        with pytest.raises(SystemExit) as exit_info:
            run_command(command.main, command.FLAGS, ["command", *map(str, arguments)])
    command.FLAGS.unparse_flags()
    for name in command.FLAGS:
        command.FLAGS[name].unparse()
    return exit_info.value.code, out.getvalue(), err.getvalue()


def result_of(command, *arguments):
    """Return what the command printed before its last line, and that line's object."""
    code, out, err = run(command, *arguments)
    assert (code, err) == (0, "")
    before, last = out.removesuffix("\n").rsplit("\n", 1) if out.count("\n") > 1 else ("", out)
    return before, json.loads(last)


def mistake(command, *arguments):
    """Return the one line that a user's mistake costs."""
    code, _, err = run(command, *arguments)
    assert code == 2, err
    assert len(err.splitlines()) == 1
    return err


def config_arguments(workdir, config, overrides):
    """Return the arguments of `train` for a shrunk config of configs/text."""
    values = [f"--config.{key}={value}" for key, value in (TINY | overrides).items()]
    return [f"--config={CONFIGS / config}.py", f"--workdir={workdir}", *values]


def write_text(path, *, lines=60):
    rng = random.Random(0)
    path.write_text("".join(" ".join(rng.choices(WORDS, k=rng.randint(3, 6))) + ".\n" for _ in range(lines)))
    return path

"""The folder of a run: its config, written once, and the check that a run goes on with the config it began with."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from swin_jax.errors import UserError
from swin_jax.training.default_config import default_config

# Where and how a run computes, not what: these may differ when it is resumed, and config.json keeps the first ones.
MACHINE_KEYS = ("mesh.", "data.data_dir", "data.num_threads")


def config_to_dict(config: ConfigDict) -> dict[str, Any]:
    """Return the config as JSON holds it: nested dicts, tuples as lists. Raises UserError for anything but data."""
    try:
        return json.loads(json.dumps(config.to_dict()))
    except TypeError as error:
        raise UserError(f"a config holds pure data, and names a class as 'module:Name': {error}") from error


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested dict as one level of dotted keys."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def check_workdir(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Raise a UserError if the folder belongs to a run with another config; touches nothing."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"the workdir {workdir} is not a folder")
    path = workdir / "config.json"
    if not path.exists():
        if any((workdir / "checkpoints").glob("*")):
            raise UserError(f"{workdir} has checkpoints but no config.json to tell whose they are")
        return
    # A key that the package has gained since the run began had its default all along.
    old = flatten(config_to_dict(default_config())) | flatten(read_config(workdir))
    new = flatten(config_to_dict(config))
    absent = object()
    changed = [key for key in sorted({*old, *new}) if old.get(key, absent) != new.get(key, absent)]
    changed = [key for key in changed if not key.startswith(MACHINE_KEYS)]
    if changed:
        differences = ", ".join(f"{key}: {old.get(key, 'unset')!r} → {new.get(key, 'unset')!r}" for key in changed)
        raise UserError(f"the workdir {workdir} holds a run with another config ({differences})")


def has_checkpoints(workdir: pathlib.Path) -> bool:
    """Return whether there is a checkpoint to go on from, usable or not."""
    return any(path.name.isdecimal() for path in (workdir / "checkpoints").glob("*"))


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """Return the config of the run in a workdir, as JSON holds it."""
    path = workdir / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{workdir} is no workdir: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} does not hold a config")
    return config


def create_workdir(workdir: pathlib.Path, config: ConfigDict, files: Mapping[str, str] | None = None) -> None:
    """Make the folder and write config.json and `files` (text by name), unless config.json is there."""
    try:
        (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
        if not (workdir / "config.json").exists():
            for name, text in (files or {}).items():
                write_atomically(workdir / name, text)
            # The last one: a folder that has it has the others too.
            write_atomically(workdir / "config.json", json.dumps(config_to_dict(config), indent=2) + "\n")
        with (workdir / "metrics.jsonl").open("a"):
            pass
    except OSError as error:
        raise UserError(f"the workdir {workdir} cannot be written: {error.strerror}") from error


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Write a file that is there whole or not at all, whenever the process ends."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

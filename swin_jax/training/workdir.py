"""The folder of a run: its config, written once, and the check that a run goes on with the config it began with."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from swin_jax.errors import RunError, UserError
from swin_jax.training.default_config import default_config

# Where and how a run computes, not what: these may differ when it is resumed, and config.json keeps the first ones.
MACHINE_KEYS = (
    "mesh.",
    "max_skipped_updates",
    "data.data_dir",
    "data.num_threads",
    "data.decoder",
    "data.on_corrupt",
    "data.preflight",
)


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
    """Raise a UserError if the folder belongs to a run with another config, or has links in it; touches nothing."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"the workdir {workdir} is not a folder")
    refuse_links(workdir)
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


def refuse_links(workdir: pathlib.Path) -> None:
    """Raise a UserError for a link in the folder: whose it is could have it read and write elsewhere."""
    for path in (*workdir.glob("*"), *workdir.glob("checkpoints/*")):
        if path.is_symlink():
            raise UserError(f"{path} is a link: a workdir holds none, though it may be one itself")


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Keep the folder to this process. Raises UserError, with its holder's name, while another process has it.

    The kernel lets go when the process ends in whatever way, so that no lock is left behind. Over NFS it holds between
    hosts too; on a file system without locks the user is told, and nothing is kept.
    """
    holder = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(workdir / "run.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise UserError(f"the workdir {workdir} cannot be written: {error.strerror}") from error
    with open(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                whose = file.read(200).strip() or "another process"
                raise UserError(f"the workdir {workdir} is in use by {whose}: one run at a time") from None
            print(f"warning: {workdir} is on a file system without locks: start no second run there", flush=True)
        file.truncate()
        file.write(f"{holder}\n")
        file.flush()
        yield


_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would be larger than this process may write",
}


@contextlib.contextmanager
def told_if_full(workdir: pathlib.Path) -> Iterator[None]:
    """Raise RunError, one line, for a write that failed for lack of room, whichever library met with it."""
    try:
        yield
    except Exception as error:
        reason = _lack_of_room(error)
        if reason is None:
            raise
        raise RunError(
            f"{workdir} cannot be written: {reason}. The checkpoints in it are whole; "
            "make room and start again to go on from the newest"
        ) from error


def _lack_of_room(error: BaseException | None) -> str | None:
    """Return why there was no room, if an exception or what led to it says so."""
    while error is not None:
        for number, reason in _FULL.items():
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return reason
        error = error.__cause__ or error.__context__
    return None


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

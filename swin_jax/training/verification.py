"""What a checkpoint on disk is worth, found out without the run's config: nothing of it is imported or called.

A checkpoint may come from a stranger. Its files are read and nothing else: JSON, and arrays in TensorStore's formats.
Neither unpickles anything. Links are refused, so that what is read is in the checkpoint's folder.
"""

import contextlib
import dataclasses
import gc
import json
import math
import pathlib
import re
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from swin_jax.training.fingerprints import checksum, host_fingerprint
from swin_jax.training.sharding import path_name

MAX_GROUP_BYTES = 2**30  # of arrays that are in memory at a time


class DamagedCheckpointError(Exception):
    """A checkpoint that can be read but does not hold what was saved; takes a reason, or the arrays that changed."""

    def __init__(self, reason: str | list[str]):
        if not isinstance(reason, str):
            others = f" and {len(reason) - 1} more" if len(reason) > 1 else ""
            reason = f"{reason[0]}{others} changed since saved"
        super().__init__(reason)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a folder among the checkpoints is: `good`, `damaged` for a reason, or `unfinished`, a write cut off."""

    name: str
    state: str
    reason: str = ""


def verify_checkpoints(directory: pathlib.Path) -> list[Verdict]:
    """Return the verdict on every checkpoint of a run, oldest first, and on writes that were cut off."""
    verdicts = []
    for folder in sorted(directory.glob("*"), key=lambda path: path.name.zfill(20)):
        if not folder.name.isdecimal():
            if ".orbax-checkpoint-tmp" in folder.name:
                verdicts.append(Verdict(folder.name, "unfinished", "the write was cut off"))
            continue
        try:
            with silent_callbacks():
                verify_checkpoint(folder)
            verdicts.append(Verdict(folder.name, "good"))
        except Exception as error:
            if folder.exists() or folder.is_symlink():  # else a run that goes on has just deleted it
                verdicts.append(Verdict(folder.name, "damaged", reason_of(error)))
    return verdicts


def verify_checkpoint(folder: pathlib.Path) -> None:
    """Raise an exception unless all of a checkpoint, `folder` named by its step, is as it was saved."""
    check_files(folder)
    meta = checked_meta(json.loads((folder / "meta" / "metadata").read_text()))
    found, changed = set(), []
    for name, array in read_arrays(folder / "state"):
        found.add(name)
        if host_fingerprint(array) != meta["fingerprints"].get(name):
            changed.append(name)
        elif name == "step" and str(array) != folder.name:
            raise DamagedCheckpointError(f"it holds step {array}")
    changed += sorted(set(meta["fingerprints"]) - found)
    if changed:
        raise DamagedCheckpointError(changed)
    for index, expected in enumerate(meta.get("iterators", ())):  # as Grain wrote it, before it moved into `meta`
        file = folder / "iterator" / f"process_{index}-of-{len(meta['iterators'])}.json"
        if checksum(json.loads(file.read_text())) != expected:
            raise DamagedCheckpointError("the position in the data has changed since it was saved")


def check_files(folder: pathlib.Path) -> None:
    """Raise DamagedCheckpointError for anything in a checkpoint but files and folders: a link leads elsewhere."""
    for path in (folder, *folder.rglob("*")):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            kind = "a link" if stat.S_ISLNK(mode) else "a special file"
            raise DamagedCheckpointError(f"it has {kind} in it, {path.relative_to(folder.parent)}: refused")


def checked_meta(meta: Any) -> dict[str, Any]:
    """Return a checkpoint's description without its checksum. Raises DamagedCheckpointError if that is not right."""
    meta = dict(meta) if isinstance(meta, dict) else {}
    if meta.pop("checksum", None) != checksum(meta):
        raise DamagedCheckpointError("its description has changed since it was saved")
    return meta


def reason_of(error: Exception) -> str:
    """Return what is wrong in one short line that a terminal can show: TensorStore's messages run over pages."""
    text = str(error).partition(". See full")[0]
    if isinstance(error, FileNotFoundError) and error.filename:
        text = f"{pathlib.Path(error.filename).name} is missing"
    elif isinstance(error, json.JSONDecodeError) and not error.doc:
        text = "its description is empty"
    elif not isinstance(error, DamagedCheckpointError):
        text = f"{type(error).__name__}: {text}"
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))[:160]


@contextlib.contextmanager
def silent_callbacks() -> Iterator[None]:
    """Keep TensorStore from printing a traceback for every read that was under way when another one failed."""
    hooks = sys.excepthook, sys.unraisablehook
    sys.excepthook = sys.unraisablehook = lambda *arguments: None
    try:
        yield
    except Exception:
        time.sleep(0.2)  # for the reads still under way
        gc.collect()
        raise
    finally:
        sys.excepthook, sys.unraisablehook = hooks


def read_arrays(folder: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays of a saved state by name, as they were written, on the host and not all at once."""
    for entry in json.loads((folder / "_METADATA").read_text())["tree_metadata"].values():
        for part in entry["key_metadata"]:  # of a name, which is a path for TensorStore
            if re.search(r"[/\\]", str(part["key"])):
                raise DamagedCheckpointError(f"{part['key']!r} is no name of an array")
    with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as checkpointer:
        metadata = checkpointer.metadata(folder).item_metadata
        if metadata is None:
            raise DamagedCheckpointError("the list of its arrays cannot be read")
        tree = metadata.tree
        leaves, structure = jax.tree.flatten(tree)
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
        # As JAX arrays, not numpy's: then Orbax reads every file that it reads when a run goes on.
        here = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        arguments = structure.unflatten([ocp.ArrayRestoreArgs(sharding=here)] * len(leaves))
        for group in _groups([math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves]):
            chosen = structure.unflatten([leaf if i in group else ocp.PLACEHOLDER for i, leaf in enumerate(leaves)])
            restored = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(chosen, restore_args=arguments))
            arrays = structure.flatten_up_to(restored)
            yield from ((names[i], np.asarray(arrays[i])) for i in group)


def _groups(sizes: Sequence[int]) -> Iterator[range]:
    """Yield ranges of neighbours that have no more than `MAX_GROUP_BYTES` together, or are single."""
    start = 0
    while start < len(sizes):
        stop, total = start + 1, sizes[start]
        while stop < len(sizes) and total + sizes[stop] <= MAX_GROUP_BYTES:
            total += sizes[stop]
            stop += 1
        yield range(start, stop)
        start = stop

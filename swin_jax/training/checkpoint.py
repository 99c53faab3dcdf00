"""Checkpoints that restore what was saved or say that they do not: Orbax, with a fingerprint of every array.

Orbax writes a step atomically but restores flipped bits without an error and has no way past a damaged newest step.
So each step carries fingerprints of its arrays, compared after every restore, and a step that fails is passed over.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import pathlib
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import grain.checkpoint
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from swin_jax.errors import UserError
from swin_jax.training.sharding import path_name
from swin_jax.training.state import TrainState, run_once_options

logger = logging.getLogger(__name__)


class DamagedCheckpointError(Exception):
    """A checkpoint that can be read but does not hold what was saved."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `Checkpoints.restore` found: the state, the figures it was saved with, and the caller's record."""

    state: TrainState
    metrics: dict[str, float] | None
    record: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run: the newest `keep` steps and the one whose `best_metric` is highest, or lowest."""

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        keep: int = 1,
        best_metric: str = "accuracy",
        lowest_is_best: bool = False,
        read_only: bool = False,
    ):
        self.directory = directory
        self.best_metric, self.lowest_is_best = best_metric, lowest_is_best
        self.read_only = read_only
        self._metrics: dict[int, dict[str, float] | None] = {}
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_LatestAndBest(keep, self.best_step),
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
        )
        self._reload_metrics()

    def steps(self) -> list[int]:
        """Return the steps on disk, oldest first, whether they verify or not."""
        return sorted(int(path.name) for path in self.directory.glob("*") if path.name.isdecimal())

    def best_step(self) -> int | None:
        """Return the step whose metric is best, the later one of equals; None if none has metrics."""
        sign = -1 if self.lowest_is_best else 1
        scored = [(sign * metrics[self.best_metric], step) for step, metrics in self._metrics.items() if metrics]
        return max(scored)[1] if scored else None

    def save(
        self,
        state: TrainState,
        iterator: grain.DatasetIterator,
        *,
        metrics: dict[str, float] | None = None,
        record: dict[str, Any] | None = None,
    ) -> None:
        """Write the state and the iterator's position as step `state.step`, in the background.

        Returns once the arrays are copied, so that the state may be donated to the next update. `metrics` are the
        evaluation's figures, if this step has any; `record` is kept as it is, anything JSON can hold.
        """
        meta = {
            "fingerprints": _fingerprints(state),
            "iterators": _iterator_checksums(iterator),
            "metrics": metrics,
            "record": record or {},
        }
        meta["checksum"] = _checksum(meta)
        step = int(state.step)
        self._metrics[step] = metrics
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                iterator=grain.checkpoint.CheckpointSave(iterator),
                meta=ocp.args.JsonSave(meta),
            ),
            force=True,
        )
        assert saved, f"Orbax did not save step {step}"

    def restore(
        self, target: TrainState, iterator: grain.DatasetIterator | None = None, *, which: str = "latest"
    ) -> Restored | None:
        """Return the state shaped and sharded as `target`, and put `iterator` where it was; None without checkpoints.

        `which` is `latest`, `best` or a step. A newest step that cannot be read or does not verify gives way to the one
        before it, with a warning; unless read-only it is moved to `damaged_checkpoints`, as it would be in the way.
        Raises UserError if the step asked for, or every step, fails.
        """
        steps = self.steps()
        if not steps:
            return None
        candidates = steps[::-1] if which == "latest" else [self._choose(which, steps)]
        failures: dict[int, str] = {}
        for step in candidates:
            restored, reason = None, "another host cannot read it"
            try:
                with _silent_callbacks():
                    restored = self._restore_step(step, target, iterator)
            except Exception as error:
                reason = _reason(error)
            if not np.all(multihost_utils.process_allgather(np.asarray(restored is not None))):
                failures[step] = reason
                continue
            for failed, reason in failures.items():
                logger.warning("the checkpoint of step %d is damaged (%s): going back to step %d", failed, reason, step)
            if failures and not self.read_only:
                self._set_aside(list(failures))
            return restored
        reasons = "; ".join(f"step {step}: {reason}" for step, reason in failures.items())
        raise UserError(f"no usable checkpoint in {self.directory}: {reasons}")

    def reached_preemption(self, step: int) -> bool:
        """Return whether the cluster has asked all hosts to stop; needs jax.distributed."""
        return self._manager.reached_preemption(step)

    def close(self) -> None:
        """Wait for the write in progress and free the threads."""
        self._manager.close()

    def _choose(self, which: str, steps: list[int]) -> int:
        step = int(which) if which.isdecimal() else self.best_step() or steps[-1] if which == "best" else None
        if step not in steps:
            raise UserError(f"no checkpoint {which!r} in {self.directory}: latest, best or one of {steps}")
        return step

    def _restore_step(self, step: int, target: TrainState, iterator: grain.DatasetIterator | None) -> Restored:
        items = {"state": ocp.args.StandardRestore(target), "meta": ocp.args.JsonRestore()}
        if iterator is not None:
            items["iterator"] = grain.checkpoint.CheckpointRestore(iterator)
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        state, meta = restored["state"], _verified(restored["meta"])
        found = _fingerprints(state)
        changed = [name for name, fingerprint in meta["fingerprints"].items() if found.get(name) != fingerprint]
        if changed:
            raise DamagedCheckpointError(
                f"{len(changed)} arrays have changed since they were saved, one is {changed[0]}"
            )
        if int(state.step) != step:
            raise DamagedCheckpointError(f"it holds step {int(state.step)}")
        if iterator is not None and _iterator_checksums(iterator) != meta["iterators"]:
            raise DamagedCheckpointError("the position in the data has changed since it was saved")
        return Restored(state, meta["metrics"], meta["record"])

    def _set_aside(self, steps: list[int]) -> None:
        if jax.process_index() == 0:
            graveyard = self.directory.parent / "damaged_checkpoints"
            graveyard.mkdir(exist_ok=True)
            for step in steps:
                number = sum(path.name.split("-")[0] == str(step) for path in graveyard.iterdir())
                (self.directory / str(step)).rename(graveyard / f"{step}-{number}")
        multihost_utils.sync_global_devices("set damaged checkpoints aside")
        self._manager.reload()
        self._reload_metrics()

    def _reload_metrics(self) -> None:
        self._metrics.clear()
        for step in self._manager.all_steps():
            try:
                args = ocp.args.Composite(meta=ocp.args.JsonRestore())
                self._metrics[step] = _verified(self._manager.restore(step, args=args)["meta"])["metrics"]
            except Exception:
                self._metrics[step] = None


@dataclasses.dataclass
class _LatestAndBest(PreservationPolicy):
    """Keep the newest steps and the best one. Orbax's own BestN reads files that no checksum guards."""

    num_latest: int
    best_step: Callable[[], int | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        kept = {*sorted(info.step for info in checkpoints)[-self.num_latest :], self.best_step()}
        return [info.step in kept for info in checkpoints]


@contextlib.contextmanager
def _silent_callbacks() -> Iterator[None]:
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


def _verified(meta: dict[str, Any]) -> dict[str, Any]:
    meta = dict(meta)
    if meta.pop("checksum", None) != _checksum(meta):
        raise DamagedCheckpointError("its description has changed since it was saved")
    return meta


def _fingerprints(state: TrainState) -> dict[str, int]:
    """Return 32 bits for each array, the same however it is sharded; one changed element always changes them."""
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    everywhere = state.step.sharding
    fingerprint = jax.jit(_fingerprint_leaves, out_shardings=everywhere, compiler_options=run_once_options())
    return dict(zip(names, np.asarray(fingerprint(jax.tree.leaves(state))).tolist(), strict=True))


def _fingerprint_leaves(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_fingerprint(leaf) for leaf in leaves])


def _fingerprint(array: jax.Array) -> jax.Array:
    """Sum over all elements, modulo 2**32, of a hash of (bits, position) that is one-to-one in the bits."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    width = min(array.dtype.itemsize, 4) * 8
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{width}")).astype(jnp.uint32)
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    bits = _mix(bits ^ _mix(position + jnp.uint32(0x9E3779B9)))
    return bits.sum(dtype=jnp.uint32)


def _mix(bits: jax.Array) -> jax.Array:
    """Apply MurmurHash3's 32-bit finalizer, a bijection."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def _iterator_checksums(iterator: grain.DatasetIterator) -> list[int]:
    """Return one checksum of the iterator's position per host."""
    own = np.uint32(_checksum(iterator.get_state()))
    return np.atleast_1d(multihost_utils.process_allgather(own)).tolist()


def _checksum(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _reason(error: Exception) -> str:
    """Return what went wrong in one short line: TensorStore's messages run over pages."""
    text = str(error).partition(". See full")[0]
    named = text if isinstance(error, DamagedCheckpointError) else f"{type(error).__name__}: {text}"
    return " ".join(named.split())[:160]

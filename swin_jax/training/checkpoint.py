"""Checkpoints that restore what was saved or say that they do not: Orbax, with a fingerprint of every array.

Orbax writes a step atomically but restores flipped bits without an error and has no way past a damaged newest step.
So each step carries fingerprints of its arrays, compared after every restore, and a step that fails is passed over.
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from swin_jax.errors import UserError
from swin_jax.training.fingerprints import checksum, fingerprints
from swin_jax.training.state import TrainState
from swin_jax.training.verification import (
    DamagedCheckpointError,
    check_files,
    checked_meta,
    reason_of,
    silent_callbacks,
)

logger = logging.getLogger(__name__)


def _write_small_arrays_whole() -> None:
    """Let one device alone write an array of which each would write less than a megabyte.

    Orbax has every device that holds an array write a part, and compiles a slice for every shape: seconds at the first
    checkpoint of a run.
    """
    absl_logger = logging.getLogger("absl")  # warns that a handler is replaced, which is what is wanted
    absl_logger.disabled = True
    ocp.type_handlers.register_type_handler(
        jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20), override=True
    )
    absl_logger.disabled = False


_write_small_arrays_whole()


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
            "fingerprints": fingerprints(state),
            "iterator": _position(iterator),
            "metrics": metrics,
            "record": record or {},
        }
        meta["checksum"] = checksum(meta)
        step = int(state.step)
        self._metrics[step] = metrics
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)),
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
                with silent_callbacks():
                    restored = self._restore_step(step, target, iterator)
            except Exception as error:
                reason = reason_of(error)
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

    def wait(self) -> None:
        """Wait for the write in progress. Raises what went wrong with it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the write in progress and free the threads."""
        self._manager.close()

    def _choose(self, which: str, steps: list[int]) -> int:
        step = int(which) if which.isdecimal() else self.best_step() or steps[-1] if which == "best" else None
        if step not in steps:
            raise UserError(f"no checkpoint {which!r} in {self.directory}: latest, best or one of {steps}")
        return step

    def _restore_step(self, step: int, target: TrainState, iterator: grain.DatasetIterator | None) -> Restored:
        folder = self.directory / str(step)
        check_files(folder)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        state, meta = restored["state"], checked_meta(restored["meta"])
        found = fingerprints(state)
        changed = [name for name, saved in meta["fingerprints"].items() if found.get(name) != saved]
        if changed:
            raise DamagedCheckpointError(changed)
        if int(state.step) != step:
            raise DamagedCheckpointError(f"it holds step {int(state.step)}")
        if iterator is not None:
            iterator.set_state(meta["iterator"] if "iterator" in meta else _old_position(folder, meta))
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
                self._metrics[step] = checked_meta(self._manager.restore(step, args=args)["meta"])["metrics"]
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


def _position(iterator: grain.DatasetIterator) -> dict[str, Any]:
    """Return the position in the data, which is the same on all hosts and good for any number of them."""
    state = iterator.get_state()
    own = np.uint32(checksum(state))
    assert np.all(multihost_utils.process_allgather(own) == own), "the hosts are at different places in the data"
    return state


def _old_position(folder: pathlib.Path, meta: dict[str, Any]) -> dict[str, Any]:
    """Return the position that Grain wrote for this host, as checkpoints had it before."""
    index, count = jax.process_index(), jax.process_count()
    state = json.loads((folder / "iterator" / f"process_{index}-of-{count}.json").read_text())
    if checksum(state) != meta["iterators"][index]:
        raise DamagedCheckpointError("the position in the data has changed since it was saved")
    return state

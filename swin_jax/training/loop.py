"""A training run from a config: build everything, go on from the newest checkpoint, update, evaluate, save."""

import contextlib
import dataclasses
import math
import os
import pathlib
import platform
import re
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from swin_jax.errors import UserError
from swin_jax.tasks import Task
from swin_jax.training import sharding
from swin_jax.training import workdir as workdirs
from swin_jax.training.checkpoint import Checkpoints
from swin_jax.training.experiment import (
    Experiment,
    build,
    compile_steps,
    initial_state,
    open_checkpoints,
)
from swin_jax.training.feed import Feed
from swin_jax.training.hosts import watched_hosts
from swin_jax.training.metrics import MetricWriter
from swin_jax.training.preflight import check_inputs, compare
from swin_jax.training.skipped import SkippedUpdates, keep_update
from swin_jax.training.step import evaluate
from swin_jax.training.watch import Watchdog


def train(config: ConfigDict, *, workdir: str, distributed: bool = False) -> dict[str, Any]:
    """Train as `config` says, going on where `workdir` stopped, and return the figures of the end.

    SIGTERM or SIGINT makes it save and return early, with `"stopped"` among the figures. Raises UserError for mistakes
    in the config or the workdir, before anything is written, FloatingPointError if the run diverges, before anything is
    saved, and RunError if there is no room to write.
    """
    begun = time.perf_counter()
    cache_compilations()
    if distributed:
        sharding.initialize_distributed()
    folder = pathlib.Path(workdir)
    workdirs.check_workdir(folder, config)
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch_size(config.batch_size, mesh, accumulation_steps=config.accumulation_steps)
    experiment = build(config, mesh, workdir=folder)
    inputs, task = experiment.inputs, experiment.task
    iterator = inputs.train_iterator(batch_size=config.batch_size)
    batches_to_evaluate = inputs.eval_batches(batch_size=config.batch_size)
    report = check_inputs(
        inputs,
        num_images=config.data.preflight,
        seed=config.seed,
        on_corrupt=config.data.on_corrupt,
        worker_count=config.data.worker_count,
    )

    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        initial = None if workdirs.has_checkpoints(folder) else initial_state(config, experiment)
        stack.enter_context(workdirs.told_if_full(folder))
        stack.enter_context(locked(folder))
        workdirs.check_workdir(folder, config)  # again: until now another run may have begun there
        if jax.process_index() == 0:
            workdirs.create_workdir(folder, config, inputs.files)
        checkpoints = stack.enter_context(contextlib.closing(open_checkpoints(folder, config, experiment)))
        restored = checkpoints.restore(experiment.target, iterator)
        state, initial = restored.state if restored else initial, None
        progress = Progress(**restored.record) if restored else Progress()
        start, total = int(state.step), experiment.total_steps
        if start >= total:
            if jax.process_index() == 0:
                print(f"{folder} holds a finished run of {total} steps")
            return progress.summary(start, folder, inputs.unit)

        train_step, eval_step = compile_steps(config, experiment)
        layout = experiment.layout
        state = layout.stack(state)
        stack.enter_context(watched_hosts(config.host_timeout_seconds))
        watchdog = stack.enter_context(Watchdog(config.hang_timeout_seconds, folder))
        feed = Feed(iterator, skipped=progress.skipped, watchdog=watchdog)
        writer = stack.enter_context(
            contextlib.closing(
                MetricWriter(
                    folder,
                    start_step=start,
                    total_steps=total,
                    unit=inputs.unit,
                    units_per_step=config.batch_size * inputs.units_per_example,
                    log_every_steps=config.log_every_steps,
                    max_skipped_updates=config.max_skipped_updates,
                    skipped_updates=progress.skipped_updates,
                    active=jax.process_index() == 0,
                    feed=feed,
                    watchdog=watchdog,
                    begun=begun,
                )
            )
        )
        for line in (*report.lines, *compare(report, train_step, state, mesh, batch_size=config.batch_size)):
            writer.tell(line)
        if restored:
            writer.tell(f"going on from step {start} of {total}")
        stop_requested = stack.enter_context(stop_on_signal(checkpoints))
        clock = time.perf_counter() - progress.seconds
        for step in range(start + 1, total + 1):
            batch = next(feed)
            state, metrics = train_step(state, sharding.global_batch(batch, mesh), config.seed)
            try:
                writer.push(step, metrics)
            except SkippedUpdates as error:
                raise keep_update(folder, layout.unstack(state), batch, iterator, error) from None

            stop = stop_requested(step)
            evaluating = is_due(step, config.eval_every_epochs, experiment)
            saving = stop or is_due(step, config.checkpoint_every_epochs, experiment)
            if not (evaluating or saving):
                continue
            writer.drain()
            figures = None
            if evaluating:
                figures = evaluate(eval_step, task, watchdog.over(batches_to_evaluate), state, mesh)
                writer.write_evaluation(step, figures)
                progress.evaluated(step, figures, task)
                stop = stop or stop_requested(step)
                saving = saving or stop
            if saving:
                progress.units_per_second = round(writer.units_per_second, 1)
                progress.seconds = round(time.perf_counter() - clock, 1)
                progress.skipped, progress.skipped_updates = feed.skipped, writer.skipped_updates
                with watchdog.waiting_for("the checkpoint"):
                    checkpoints.save(
                        layout.unstack(state), iterator, metrics=figures, record=dataclasses.asdict(progress)
                    )
            if stop:
                checkpoints.wait()  # while signals are still caught
                writer.tell(f"asked to stop: saved step {step} of {total}")
                break
    return {**progress.summary(step, folder, inputs.unit), **({"stopped": True} if step < total else {})}


@dataclasses.dataclass
class Progress:
    """What a run has come to, saved with each checkpoint."""

    seconds: float = 0.0
    units_per_second: float = 0.0
    figures: dict[str, float] | None = None  # of the newest evaluation
    best: dict[str, float] | None = None
    skipped_updates: int = 0  # since they were not finite
    skipped: int | None = None  # unreadable records on the first host, where the config skips them

    def evaluated(self, step: int, figures: dict[str, float], task: Task) -> None:
        """Take note of an evaluation. Raises FloatingPointError if a figure is not finite."""
        for name, value in figures.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"eval/{name} is {value} at step {step}: the run has diverged")
        self.figures = figures
        key, figure = f"eval/{task.best_metric}", figures[task.best_metric]
        if self.best is None or (figure <= self.best[key] if task.lowest_is_best else figure >= self.best[key]):
            self.best = {"step": step, key: figure}

    def summary(self, step: int, workdir: pathlib.Path, unit: str) -> dict[str, Any]:
        """Return the last line of a run."""
        return {
            "step": step,
            **{f"eval/{name}": value for name, value in (self.figures or {}).items()},
            "best": self.best,
            "workdir": str(workdir),
            "seconds": self.seconds,
            **({"skipped_updates": self.skipped_updates} if self.skipped_updates else {}),
            f"{unit}_per_second": self.units_per_second,
            **({} if self.skipped is None else {"skipped": self.skipped}),
        }


def is_due(step: int, every_epochs: int, experiment: Experiment) -> bool:
    """Return whether something done every so many epochs is done after `step`; after the last one everything is."""
    due = every_epochs and step % (every_epochs * experiment.steps_per_epoch) == 0
    return bool(due) or step == experiment.total_steps


def cache_compilations() -> None:
    """Keep compiled programs for the next start, unless JAX_COMPILATION_CACHE_DIR says where already.

    Each kind of processor has its own folder: code for one may not run on another that shares the home folder.
    """
    if jax.config.jax_compilation_cache_dir is None:
        cpuinfo = pathlib.Path("/proc/cpuinfo")
        features = re.findall(
            r"^(?:flags|Features)\s*:.*", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE
        )
        kind = f"{platform.machine()}-{zlib.crc32(''.join(features[:1]).encode()):08x}"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path.home() / ".cache" / "swin_jax" / kind))


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Keep the workdir to this run: the first host locks it. Raises UserError on all hosts if another run has it."""
    with contextlib.ExitStack() as stack:
        refusal = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(workdirs.lock(workdir))
            except UserError as error:
                refusal = error
        if not np.all(multihost_utils.process_allgather(np.asarray(refusal is None))):
            raise refusal or UserError(f"the first host cannot use the workdir {workdir}")
        yield


@contextlib.contextmanager
def stop_on_signal(checkpoints: Checkpoints) -> Iterator[Callable[[int], bool]]:
    """Yield a function that tells, after each step, whether to save and stop: on a signal, or as the cluster agrees.

    The signals are SIGTERM and SIGINT; after a SIGINT the next one ends the process at once.
    """
    received: list[int] = []
    distributed = jax.distributed.is_initialized()
    stop_requested = checkpoints.reached_preemption if distributed else lambda step: bool(received)
    if threading.current_thread() is not threading.main_thread():  # where Python allows no signal handlers
        yield stop_requested
        return

    def receive(number, frame):
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.write(2, b"saving after this step; once more to end at once\n")  # print is not safe in a handler
            if distributed:
                os.kill(os.getpid(), signal.SIGTERM)  # JAX listens to this one, and tells the other hosts

    handled = (signal.SIGINT,) if distributed else (signal.SIGINT, signal.SIGTERM)
    previous = [(number, signal.signal(number, receive)) for number in handled]
    try:
        yield stop_requested
    finally:
        for number, handler in previous:
            signal.signal(number, handler)

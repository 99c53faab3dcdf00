"""What a run tells: metrics.jsonl, TensorBoard, a progress bar on a terminal and plain lines elsewhere."""

import collections
import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from swin_jax.training.feed import Feed
from swin_jax.training.skipped import SkippedUpdates
from swin_jax.training.step import MAX_PENDING
from swin_jax.training.watch import SlowSteps, Watchdog, this_process
from swin_jax.training.workdir import write_atomically

MAX_WAITING = 0.2  # the share of the time that may go by waiting for data before the user is told
FLUSH_SECONDS = 30.0  # between writes of TensorBoard's file to the disk
MIN_SECONDS = 20.0  # of training before that can be said


class MetricWriter:
    """Receives the metrics of every update without waiting for them, and writes every `log_every_steps`-th.

    It counts the updates that were skipped, from `skipped_updates` on, tells of them, and ends a run of nothing else.
    `begun` is when the run did, by `time.perf_counter`: it tells how long the first update took to come from there.
    With a `feed` it tells the share of the time spent waiting for data, and how many records were replaced.
    On any but the first host (`active=False`) it writes nothing but still keeps the pace and watches the numbers.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        start_step: int,
        total_steps: int,
        unit: str,
        units_per_step: int,
        log_every_steps: int,
        max_skipped_updates: int = 10,
        skipped_updates: int = 0,
        active: bool = True,
        feed: Feed | None = None,
        watchdog: Watchdog | None = None,
        begun: float | None = None,
    ):
        self.total_steps, self.log_every_steps, self.active = total_steps, log_every_steps, active
        self.unit, self.units_per_step = unit, units_per_step
        self._max_skipped_updates = max_skipped_updates
        self.skipped_updates, self._skipped_in_a_row, self._wrong = skipped_updates, 0, ""
        self._feed, self._watchdog, self._slow_steps = feed, watchdog, SlowSteps()
        self._pending: collections.deque[tuple[int, dict[str, jax.Array], float, dict[str, int]]] = collections.deque()
        self._start_step, self._start_time, self._begun = start_step, time.perf_counter(), begun
        self._last_done: float | None = None  # when the last update was done, if the next one follows without a pause
        self._window, self._whole = _Rate(), _Rate()
        self._waiting_told = False
        self._latest: dict[str, float] = {}
        if active:
            drop_after(workdir / "metrics.jsonl", start_step)
            self._file = (workdir / "metrics.jsonl").open("a")
            self._events = _Events(workdir, purge_step=start_step + 1)
        self._progress = _progress_bar(start_step, total_steps, unit) if active and sys.stdout.isatty() else None

    @property
    def units_per_second(self) -> float:
        """Training throughput so far, without compilation, evaluation and pauses."""
        return self._whole.value

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics of update `step`; waits only where the host is `MAX_PENDING` updates ahead.

        Raises SkippedUpdates where too many in a row were skipped; the last of them was then `step`, with its batch.
        """
        feed = self._feed
        skipped = {"train/skipped": feed.skipped} if feed and feed.skipped is not None else {}
        self._pending.append((step, metrics, feed.waited if feed else 0.0, skipped))
        while len(self._pending) > (0 if self._skipped_in_a_row else MAX_PENDING):
            self._finish_oldest()
        if not self._pending and self._skipped_in_a_row > self._max_skipped_updates:
            many = f"{self._skipped_in_a_row} updates in a row were skipped"
            raise SkippedUpdates(f"{self._wrong} at step {step}: the run has diverged, {many}")

    def drain(self) -> None:
        """Wait for all updates."""
        while self._pending:
            self._finish_oldest()
        self._last_done = None

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl and to TensorBoard."""
        if not self.active:
            return
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()
        self._events.write(step, scalars)

    def write_evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        """Write an evaluation's figures, and tell them in a line."""
        self.write(step, {f"eval/{name}": value for name, value in figures.items()})
        seconds_a_step = (time.perf_counter() - self._start_time) / max(step - self._start_step, 1)
        eta = time.strftime("%H:%M:%S", time.gmtime(seconds_a_step * (self.total_steps - step)))
        told = [f"eval/{name} {value:.4f}" for name, value in figures.items() if isinstance(value, float)]
        loss = [f"train/loss {self._latest['loss']:.4f}"] if "loss" in self._latest else []
        rate = f"{self.units_per_second:.0f} {self.unit}/s"
        self.tell("  ".join([f"step {step}/{self.total_steps}", *loss, *told, rate, f"ETA {eta}"]))

    def tell(self, line: str) -> None:
        """Print a line to stdout, above the progress bar if there is one."""
        if self._progress is not None:
            self._progress.console.print(line, highlight=False, soft_wrap=True)
        elif self.active:
            print(line, flush=True)

    def close(self) -> None:
        """Close the files and take the progress bar away."""
        if self._progress is not None:
            self._progress.stop()
        if self.active:
            self._file.close()
            self._events.close()

    def _finish_oldest(self) -> None:
        step, metrics, waited, skipped = self._pending.popleft()
        jax.block_until_ready(metrics)
        now = time.perf_counter()
        if self._watchdog:
            self._watchdog.done(step)
        if self._begun is not None:
            seconds, self._begun = now - self._begun, None
            self.tell(f"first step after {seconds:.1f} s, {now - self._start_time:.1f} s of them to compile and run it")
        if self._last_done is not None:
            for rate in (self._window, self._whole):
                rate.add(self.units_per_step, now - self._last_done, waited)
            self._tell_if_slow(step, now - self._last_done, waited)
        self._last_done = now
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=step, rate=self._whole.value)
        due = step % self.log_every_steps == 0 or step == self.total_steps
        was_skipped = bool(metrics["skipped_update"])
        if not due and self._pending and not was_skipped:
            self._skipped_in_a_row = 0
            return
        self._latest = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if was_skipped else 0
        if was_skipped:
            self.skipped_updates += 1
            name = next(name for name in ("loss", "grad_norm") if not math.isfinite(self._latest[name]))
            self._wrong = f"train/{name} is {self._latest[name]}"
            if self._skipped_in_a_row == 1:
                count = f"{self.skipped_updates} so far"
                self.tell(f"warning: {self._wrong} at step {step}: the update is skipped ({count})")
        if due:
            finite = {name: value for name, value in self._latest.items() if math.isfinite(value)}
            scalars = {f"train/{name}": value for name, value in finite.items() if name != "skipped_update"}
            scalars["train/skipped_updates"] = self.skipped_updates
            scalars[f"train/{self.unit}_per_second"] = self._window.value or self._whole.value
            if self._feed:
                scalars |= {"train/data_wait": self._window.waiting, **skipped}
            self.write(step, scalars)
            self._window = _Rate()
            self._warn_of_waiting(step)

    def _tell_if_slow(self, step: int, seconds: float, waited: float) -> None:
        """Tell of a step that took far longer than the rest; of late data its own host tells."""
        slow = self._slow_steps.add(step, seconds, waited)
        if slow is None:
            return
        self.write(step, {"train/slow_step_seconds": seconds, "train/slow_step_data_wait": slow.waited})
        line = f"warning: {slow.line}" if self._slow_steps.may_tell() else None
        if line and self.active:
            self.tell(line)
        elif line and slow.waited > seconds / 2:
            print(f"{line} ({this_process()})", file=sys.stderr, flush=True)

    def _warn_of_waiting(self, step: int) -> None:
        """Tell, once, of an input that is too slow."""
        if self._waiting_told or self._whole.seconds < MIN_SECONDS or self._whole.waiting <= MAX_WAITING:
            return
        share = f"{self._whole.waiting:.0%} of the time went by waiting for data up to step {step}"
        self.tell(f"warning: {share}: the input is too slow; docs/data.md says what helps")
        self._waiting_told = True


class _Events:
    """TensorBoard's file, written in this thread: tensorboardX's dies of a full disk, and then the run hangs."""

    def __init__(self, workdir: pathlib.Path, *, purge_step: int):
        self._writer, self._flushed = EventsWriter(str(workdir / "events")), time.monotonic()
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            event = event_pb2.Event(wall_time=time.time(), step=step, summary=scalar(name, value))
            self._writer.write_event(event)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()


class _Rate:
    """Things per second, and the share of the time spent waiting for them."""

    def __init__(self):
        self.count, self.seconds, self.waited = 0, 0.0, 0.0

    def add(self, count: int, seconds: float, waited: float) -> None:
        self.count += count
        self.seconds += seconds
        self.waited += waited

    @property
    def value(self) -> float:
        return self.count / self.seconds if self.seconds else 0.0

    @property
    def waiting(self) -> float:
        return min(self.waited / self.seconds, 1.0) if self.seconds else 0.0


def drop_after(path: pathlib.Path, step: int) -> None:
    """Take the lines of later steps, and one cut short, out of a metrics.jsonl: a resumed run writes them again."""
    if not path.exists():
        return
    lines = path.read_text().splitlines()
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) < len(lines):
        write_atomically(path, "".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def _progress_bar(start_step: int, total_steps: int, unit: str) -> Progress:
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn(f"{{task.fields[rate]:.0f}} {unit}/s"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    progress.add_task("train", total=total_steps, completed=start_step, rate=0.0)
    progress.start()
    return progress

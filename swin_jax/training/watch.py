"""What keeps an eye on the pace of a run: steps that take far longer than the rest, and a run that stands still."""

import collections
import contextlib
import dataclasses
import faulthandler
import os
import pathlib
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax

Item = TypeVar("Item")
SLOW_TIMES = 5.0  # the median of the recent steps, and
SLOW_SECONDS = 1.0  # more than it: a slow step
RECENT = 50
ENOUGH = 5  # steps to have a median of
TELL_EVERY_SECONDS = 60.0


def this_process() -> str:
    """Return how this process is named to the user: its number, and its host."""
    number = f"process {jax.process_index()} of {jax.process_count()}, " if jax.process_count() > 1 else ""
    return f"{number}host {socket.gethostname()}"


@dataclasses.dataclass(frozen=True)
class SlowStep:
    """A step that took far longer than the rest; `waited` seconds of it went by waiting for data."""

    step: int
    seconds: float
    median: float
    waited: float

    @property
    def line(self) -> str:
        rest = self.seconds - self.waited
        return (
            f"step {self.step} took {self.seconds:.1f} s, the median is {self.median:.2f} s: "
            f"{self.waited:.1f} s of it waiting for data, {rest:.1f} s for the device or other hosts"
        )


class SlowSteps:
    """Judges the length of each step by the median of the recent ones."""

    def __init__(self):
        self._recent: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._told: float | None = None

    def add(self, step: int, seconds: float, waited: float) -> SlowStep | None:
        """Return what is to be said of this step, None if it took no longer than others do."""
        median = statistics.median(self._recent) if len(self._recent) >= ENOUGH else None
        self._recent.append(seconds)
        if median is None or seconds <= SLOW_TIMES * median or seconds <= median + SLOW_SECONDS:
            return None
        return SlowStep(step, seconds, median, min(waited, seconds))

    def may_tell(self) -> bool:
        """Return whether the last telling is long enough ago."""
        now = time.perf_counter()
        if self._told is not None and now - self._told < TELL_EVERY_SECONDS:
            return False
        self._told = now
        return True


class Watchdog:
    """Ends the process if nothing gets done for `timeout_seconds`, 0 for never, and says where it waits.

    At half of the time it warns. It watches from the first step on, which may compile for as long as it takes. The
    stacks of all threads go to `hung-process-N.txt` in `folder`. Where a collective hangs, Python cannot interrupt it:
    hence a thread, and `os._exit`.
    """

    def __init__(self, timeout_seconds: float, folder: pathlib.Path, *, end: Callable[[int], None] = os._exit):
        self._timeout, self._folder, self._end = timeout_seconds, folder, end
        self._stop = threading.Event()
        self._waiting_for, self._step = "the device", 0
        self._since: float | None = None
        self._warned = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._timeout:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def done(self, step: int | None = None) -> None:
        """Take note that a step, or something else, is done."""
        self._step = self._step if step is None else step
        self._since, self._warned = time.monotonic(), False

    @contextlib.contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Say what is being waited for inside; elsewhere it is the device."""
        before, self._waiting_for = self._waiting_for, what
        try:
            yield
        finally:
            self._waiting_for = before

    def over(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield the batches of an evaluation, each of which counts as something done."""
        iterator = iter(batches)
        with self.waiting_for("the device, in an evaluation"):
            while True:
                with self.waiting_for("data of the evaluation"):
                    batch = next(iterator, None)
                if batch is None:
                    return
                yield batch
                self.done()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._timeout / 10)):
            if self._since is None:
                continue
            seconds = time.monotonic() - self._since
            line = (
                f"{this_process()}: nothing done for {seconds:.0f} s after step {self._step}, "
                f"waiting for {self._waiting_for}"
            )
            if seconds >= self._timeout:
                self._dump()
                print(f"error: {line}: hung, and ended", file=sys.stderr, flush=True)
                self._end(1)
                return
            if seconds >= self._timeout / 2 and not self._warned:
                self._warned = True
                print(f"warning: {line}; at {self._timeout:g} s the run ends", file=sys.stderr, flush=True)

    def _dump(self) -> None:
        with contextlib.suppress(OSError):
            path = self._folder / f"hung-process-{jax.process_index()}.txt"
            with path.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)

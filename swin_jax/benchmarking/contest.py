"""Programs in processes of their own, timed by turns: A B A B, so that a change of the machine's pace meets all.

A worker is a command that prints the line `ready` with a JSON object of what it knows (its start-up, its version),
then for each line `N` on its stdin makes N calls and prints `{"seconds": of one call, "peak_bytes": of the process}`.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from swin_jax.benchmarking.timing import Timing, quartiles
from swin_jax.errors import UserError

WARM_UP_CALLS = 12  # the memory of a process still grows in some of the first
REST_SECONDS = 0.5  # for the threads of the one before, which may wait actively


class Worker:
    """A process that makes calls when it is told to."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]):
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        self.facts = self._answer("ready")

    def calls(self, number: int) -> dict[str, Any]:
        """Make so many calls and return the worker's answer."""
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        return self._answer("")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self, prefix: str) -> dict[str, Any]:
        for line in self._process.stdout:
            start = f"{prefix} {{" if prefix else "{"
            if line.startswith(start):
                return json.loads(line.removeprefix(prefix))
        raise UserError(f"{self.name} ended without an answer, exit code {self._process.wait()}")


def contest(
    contestants: Mapping[str, tuple[Sequence[str], Mapping[str, str]]], *, rounds: int, sample_seconds: float
) -> dict[str, dict[str, Any]]:
    """Time the commands, given with variables of their environment, by turns, and return what each came to.

    The workers start one after the other, each warmed up before the next one starts. Raises UserError if one of
    them ends.
    """
    with contextlib.ExitStack() as stack:
        workers, number, answers = [], {}, {}
        for name, (command, environment) in contestants.items():
            worker = stack.enter_context(contextlib.closing(Worker(name, command, environment)))
            worker.calls(WARM_UP_CALLS)
            number[name] = max(1, round(sample_seconds / worker.calls(1)["seconds"]))
            workers.append(worker)
            answers[name] = []
        for _ in range(rounds):
            for worker in workers:
                time.sleep(REST_SECONDS)
                answers[worker.name].append(worker.calls(number[worker.name]))
        return {
            worker.name: {
                **worker.facts,
                "seconds": [answer["seconds"] for answer in answers[worker.name]],
                "peak_bytes": answers[worker.name][-1]["peak_bytes"],
            }
            for worker in workers
        }


def ratios(found: Mapping[str, Mapping[str, Any]], ours: str) -> dict[str, Timing]:
    """Return by how much ours is faster than each other one: median and quartiles of the ratios round by round."""
    return {
        name: quartiles([other / own for other, own in zip(each["seconds"], found[ours]["seconds"], strict=True)])
        for name, each in found.items()
        if name != ours
    }


def table(found: Mapping[str, Mapping[str, Any]], ours: str, batch_size: int) -> str:
    """Return the figures as lines of text."""
    against = ratios(found, ours)
    lines = [f"{'':24}{'images/s':>10}{'step ms':>10}{'peak MB':>10}{'ready after s':>15}{'ours is faster by':>22}"]
    for name, each in found.items():
        seconds, ratio = statistics.median(each["seconds"]), against.get(name)
        factor = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else ""
        lines.append(
            f"{name:24}{batch_size / seconds:10.2f}{seconds * 1e3:10.1f}{each['peak_bytes'] / 1e6:10.0f}"
            f"{each['ready_seconds']:15.1f}{factor:>22}"
        )
    return "\n".join(lines)


def serve(start: Callable[[], Callable[[int], None]], facts: Mapping[str, Any]) -> None:
    """Be a worker: `start()` gives a function that makes so many calls and returns when they are done."""
    begun = time.perf_counter()
    run = start()
    print("ready " + json.dumps({**facts, "ready_seconds": time.perf_counter() - begun}), flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        run(int(line))
        seconds = (time.perf_counter() - begun) / int(line)
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}), flush=True)


def peak_bytes() -> int:
    """Return the most memory that this process has held."""
    with open("/proc/self/status") as status:
        lines = [line.split() for line in status if line.startswith("VmHWM:")]
    return int(lines[0][1]) * 1024

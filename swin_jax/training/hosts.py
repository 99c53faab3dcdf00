"""The hosts of a run keep an eye on each other: when one dies, the others end and name it."""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import jax

from swin_jax.training.watch import this_process

BEAT, HOST = "swin_jax/beat/", "swin_jax/host/"  # keys in the store that jax.distributed's coordinator keeps
FINISHED = "finished"


class Store(Protocol):
    """What of jax.distributed's client is used here."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...
    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...


@contextlib.contextmanager
def watched_hosts(timeout_seconds: float) -> Iterator[None]:
    """End this process, with a line on stderr, if another host of the run gives no sign of life inside.

    Without other hosts it does nothing. JAX ends the process too, a little later and without a name. Where a collective
    fails inside because the other side is gone, the error waits until it is known who that was.
    """
    client = _client()
    if client is None:
        yield
        return
    watch = HostWatch(client, jax.process_index(), timeout_seconds=timeout_seconds)
    watch.start()
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        seconds = watch.patience + 3 * watch.interval
        line = " ".join(str(error).split())[:200]
        print(
            f"{this_process()}: {line}: for {seconds:.0f} s, is it that a host has died?", file=sys.stderr, flush=True
        )
        time.sleep(seconds)  # by then the process has ended, if a host was the cause
        raise
    finally:
        watch.close()


class HostWatch:
    """A thread that tells the others that this process lives, and listens to them.

    A process whose beat stays the same for `timeout_seconds` is dead; a coordinator that does not answer for so long is
    process 0, dead. One that has finished is not missed. Time in which this process itself was held up counts little:
    the others may have been, too.
    """

    def __init__(
        self,
        store: Store,
        index: int,
        *,
        timeout_seconds: float,
        end: Callable[[int], None] = os._exit,
    ):
        self._store, self._index, self._end = store, index, end
        self.patience, self.interval = timeout_seconds, min(5.0, timeout_seconds / 10)
        self._stop = threading.Event()
        self._hosts: dict[int, str] = {}
        self._beats: dict[int, str] = {}
        self._silence: dict[int, float] = {}  # seconds
        self._thread = threading.Thread(target=self._run, name="hosts", daemon=True)

    def start(self) -> None:
        self._store.key_value_set(f"{HOST}{self._index}", socket.gethostname(), allow_overwrite=True)
        self._thread.start()

    def close(self) -> None:
        """Take leave of the others."""
        self._stop.set()
        self._thread.join(5.0)  # it may be in a call to a coordinator that has gone
        with contextlib.suppress(Exception):  # the coordinator may have left already
            self._store.key_value_set(f"{BEAT}{self._index}", FINISHED, allow_overwrite=True)

    def _run(self) -> None:
        last, number, unanswered = time.monotonic(), 0, 0.0
        while not self._stop.wait(self.interval):
            number += 1
            elapsed = min(time.monotonic() - last, 2 * self.interval)
            last = time.monotonic()
            try:
                self._store.key_value_set(f"{BEAT}{self._index}", str(number), allow_overwrite=True)
                beats, self._hosts = self._read(BEAT), {**self._hosts, **self._read(HOST)}
            except Exception:  # jaxlib has one error for all: what matters is for how long
                unanswered += elapsed
                dead = [0] if unanswered > self.patience and self._index else []
            else:
                unanswered = 0.0
                dead = self.silent(beats, elapsed)
            if dead and not self._stop.is_set():
                self._tell(dead)
                return

    def silent(self, beats: Mapping[int, str], elapsed: float) -> list[int]:
        """Take note of the beats found, and return the processes that have been silent for too long.

        `elapsed` are the seconds since the last call.
        """
        for process, beat in beats.items():  # one that has never been heard may still be starting: JAX waits for it
            same = beat == self._beats.get(process)
            self._silence[process] = self._silence.get(process, 0.0) + elapsed if same else 0.0
        self._beats = dict(beats)
        return [
            process
            for process, seconds in self._silence.items()
            if seconds > self.patience and beats.get(process) != FINISHED and process != self._index
        ]

    def _read(self, prefix: str) -> dict[int, str]:
        return {int(key.rpartition("/")[2]): value for key, value in self._store.key_value_dir_get(prefix)}

    def _tell(self, dead: list[int]) -> None:
        names = ", ".join(f"process {process} on host {self._hosts.get(process, 'unknown')}" for process in dead)
        line = f"{names} has died, or cannot be reached, for {self.patience:.0f} s: {this_process()} ends too"
        print(f"error: {line}; start all again, and they go on from the newest checkpoint", file=sys.stderr, flush=True)
        self._end(1)


def _client() -> Store | None:
    """Return the client of jax.distributed, None without other hosts; JAX has no public name for it."""
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return None
    from jax._src import distributed

    return distributed.global_state.client

"""Who is missed, and how it is told, without any other process: two hosts share a store."""

import threading
import time

import pytest

from swin_jax.training import hosts
from swin_jax.training.hosts import HostWatch


class Store:
    """As jax.distributed's client; breaks where the coordinator would be gone."""

    def __init__(self):
        self.values, self.broken = {}, False

    def key_value_set(self, key, value, allow_overwrite=False):
        if self.broken:
            raise RuntimeError("UNAVAILABLE: failed to connect to all addresses")
        assert allow_overwrite
        self.values[key] = value

    def key_value_dir_get(self, key):
        return [(name, value) for name, value in self.values.items() if name.startswith(key)]


@pytest.fixture
def two(monkeypatch):
    """Two processes that watch each other; their ends are noted."""
    store, ended = Store(), {0: threading.Event(), 1: threading.Event()}
    watches = []
    for index in (0, 1):
        monkeypatch.setattr(hosts.socket, "gethostname", lambda index=index: f"node-{index}")
        watches.append(HostWatch(store, index, timeout_seconds=0.6, end=lambda code, index=index: ended[index].set()))
        watches[index].start()
    yield store, watches, ended
    for watch in watches:
        watch.close()


def test_a_process_that_falls_silent_is_named(two, capsys):
    _, watches, ended = two
    time.sleep(1.5)
    assert not ended[0].is_set()
    assert not ended[1].is_set()
    watches[1]._stop.set()  # killed: it says nothing more
    start = time.monotonic()
    assert ended[0].wait(10)
    assert time.monotonic() - start >= 0.4
    error = capsys.readouterr().err
    assert error.startswith("error: process 1 on host node-1 has died, or cannot be reached, for 1 s: ")
    assert error.count("\n") == 1


def test_a_process_that_has_finished_is_not_missed(two):
    _, watches, ended = two
    time.sleep(0.3)
    watches[1].close()
    assert not ended[0].wait(1.5)


def test_a_coordinator_that_does_not_answer_is_dead(two, capsys):
    store, _, ended = two
    time.sleep(0.5)
    store.broken = True
    assert ended[1].wait(10)
    assert "process 0 on host node-0 has died" in capsys.readouterr().err
    assert not ended[0].is_set()


def test_a_process_not_heard_of_yet_may_still_be_starting():
    watch = HostWatch(Store(), 0, timeout_seconds=60)
    assert watch.silent({0: "1"}, 100.0) == []
    assert watch.silent({0: "2", 1: "1"}, 100.0) == []
    assert watch.silent({0: "3", 1: "1"}, 40.0) == []
    assert watch.silent({0: "4", 1: "2"}, 40.0) == []  # it was slow
    assert watch.silent({0: "5", 1: "2"}, 50.0) == []
    assert watch.silent({0: "6", 1: "2"}, 11.0) == [1]
    assert watch.silent({0: "7", 1: "finished"}, 61.0) == []

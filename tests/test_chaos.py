"""A short chaos test of the real command; the long one is `make chaos`."""

import signal

from swin_jax.commands import RESTART
from tests.chaos import End, chaos


def test_killed_and_stopped_again_and_again(tmp_path):
    """kill -9 in training and in a save, SIGTERM: the end is that of the run left in peace, bit for bit."""
    ends = (
        End("steps", 6, moment=0.01),
        End("steps", 3, signal=signal.SIGTERM),
        End("save", 1, moment=0.02),
    )
    figures = chaos(tmp_path, kills=0, seed=0, total_epochs=10, first=ends)
    assert figures["codes"] == [-signal.SIGKILL, RESTART, -signal.SIGKILL]
    assert (figures["kills"], figures["fallbacks"]) == (2, 0)
    assert figures["arrays_compared"] > 50

"""What is freed stays with the process: each case in one of its own, since it cannot be undone."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
CODE = """
import resource
from swin_jax.host_memory import keep_freed_memory

count = 2**28  # no constant: Python would multiply in advance

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * count  # 65,536 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = keep_freed_memory()
faults()
print(kept, faults())
"""


def run(**variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC_", "MALLOC_"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment | variables, check=True, capture_output=True, text=True
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


def test_a_cpu_takes_its_pages_once():
    kept, faults = run(JAX_PLATFORMS="cpu")
    assert kept
    assert faults < 1000


@pytest.mark.parametrize(
    "variables",
    [{"JAX_PLATFORMS": "cuda"}, {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.top_pad=131072"}],
    ids=["an accelerator", "settings of the user"],
)
def test_otherwise_nothing_is_touched(variables):
    kept, faults = run(**variables)
    assert not kept
    assert faults > 60_000

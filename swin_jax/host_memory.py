"""How this process gets its memory from the operating system."""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform

# Of malloc.h, and what each is set to: one arena for all threads, nothing in mappings of its own, which would be given
# back when freed, and the free end of the arena never given back (-1; mallopt takes no size beyond 2 GB).
M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD = -8, -4, -1, -2
SETTINGS = {M_ARENA_MAX: 1, M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 2**28}


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, if JAX is to compute on a CPU, and return whether it does.

    There XLA asks for a step's temporaries and gives them back in each step, and the kernel clears every page anew:
    340,000 of 4 kB for Swin-T at batch 8, a sixth of the time. To be called before JAX starts its threads.
    Nothing is done beside an accelerator, without glibc, or where the user has set malloc up (GLIBC_TUNABLES,
    MALLOC_*).
    """
    is_set = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if is_set or platform.libc_ver()[0] != "glibc" or not _computes_on_cpu():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(name, value) for name, value in SETTINGS.items()]  # 1 for each that was accepted
    return all(done)


def _computes_on_cpu() -> bool:
    """Return whether JAX will find no accelerator, without starting it."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    has_plugin = bool(importlib.metadata.entry_points(group="jax_plugins"))
    return not has_plugin and importlib.util.find_spec("libtpu") is None

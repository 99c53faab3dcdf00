"""The contestants of `--against=timm`: timm on PyTorch as it comes, compiled, and with the best settings for a CPU."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from swin_jax.benchmarking.contest import contest
from swin_jax.benchmarking.models import Work
from swin_jax.errors import UserError

OURS = "swin_jax"
TIMM_WORKER = pathlib.Path(__file__).parents[2] / "benchmarks" / "timm_worker.py"
KINDS = ("eager", "compiled", "eager-tuned", "compiled-tuned")
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # docs/performance.md
# Huge pages for large arrays, in PyTorch's own allocator and in glibc's, which then keeps what is freed.
TUNED = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:"
    "glibc.malloc.trim_threshold=2147483648:glibc.malloc.arena_max=1",
}


def compare(
    work: Work, *, kinds: Sequence[str], torch_python: str, rounds: int, sample_seconds: float, folder: pathlib.Path
) -> dict[str, dict[str, Any]]:
    """Time our step, as it comes and with huge pages, and timm's by turns.

    Raises UserError if torch and timm cannot be imported by that interpreter.
    """
    probe = subprocess.run([torch_python, "-c", "import timm, torch"], capture_output=True, text=True, check=False)
    if probe.returncode:
        reason = (probe.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"--torch_python={torch_python} cannot import torch and timm: {reason}")
    arguments = dataclasses.asdict(work)
    ours = [sys.executable, "-m", "swin_jax.benchmarking.worker", json.dumps(arguments)]
    contestants: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {
        OURS: (ours, {}),
        f"{OURS} tuned": (ours, HUGE_PAGES),
    }
    for kind in kinds:
        options = json.dumps({**arguments, "compile": kind.startswith("compiled")})
        environment = TUNED | preloaded_mkl_switch(folder) if kind.endswith("tuned") else {}
        contestants[f"timm {kind}"] = ([torch_python, str(TIMM_WORKER), options], environment)
    return contest(contestants, rounds=rounds, sample_seconds=sample_seconds)


def preloaded_mkl_switch(folder: pathlib.Path) -> dict[str, str]:
    """Return the environment that makes MKL take an AMD processor for an Intel one; nothing without a C compiler.

    MKL asks a function of its own, which a library loaded before it can replace.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        return {}
    source, library = folder / "mkl_switch.c", folder / "mkl_switch.so"
    source.write_text("int mkl_serv_intel_cpu_true(void) { return 1; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return {"LD_PRELOAD": str(library)}

"""The contestants of `--against=timm`: timm on PyTorch as it comes, compiled, and with the best settings for a CPU."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from swin_jax.benchmarking.contest import contest
from swin_jax.benchmarking.models import Work
from swin_jax.errors import UserError

OURS = "swin_jax"
CHECKOUT = pathlib.Path(__file__).parents[2]
TIMM_WORKER = CHECKOUT / "benchmarks" / "timm_worker.py"
PROBE = "from tests.golden.reference import import_timm; import_timm()"
KINDS = ("eager", "compiled", "eager-tuned", "compiled-tuned")
# Huge pages for large arrays, and what is freed is kept: fresh pages are dear, on virtual machines above all.
ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:"
    "glibc.malloc.trim_threshold=17179869184:glibc.malloc.arena_max=1"
}
TUNED_TORCH = ALLOCATOR | {"THP_MEM_ALLOC_ENABLE": "1"}  # the same of PyTorch's own allocator


def check_interpreter(torch_python: str) -> None:
    """Raise UserError if torch and timm cannot be imported by that interpreter."""
    try:
        probe = subprocess.run([torch_python, "-c", PROBE], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"--torch_python={torch_python}: {error.strerror}") from error
    if probe.returncode:
        reason = (probe.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"--torch_python={torch_python} cannot import torch and timm: {reason}")


def compare(
    work: Work, *, kinds: Sequence[str], torch_python: str, rounds: int, sample_seconds: float, folder: pathlib.Path
) -> dict[str, dict[str, Any]]:
    """Time our step, as it comes and on a CPU also with the best settings, and timm's by turns.

    The best of ours are those of the allocator, and in inference a device for each core, if that divides the images;
    in training adding up gradients and a second update cost as much as is won.
    """

    def ours(work: Work) -> Sequence[str]:
        return [sys.executable, "-m", "swin_jax.benchmarking.worker", json.dumps(dataclasses.asdict(work))]

    contestants: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {OURS: (ours(work), {})}
    if jax.default_backend() == "cpu":
        cores = os.cpu_count() if not hasattr(os, "sched_getaffinity") else len(os.sched_getaffinity(0))
        is_shared = work.mode == "infer" and work.part_size % cores == 0
        shared = dataclasses.replace(work, devices=cores) if is_shared else work
        contestants[f"{OURS} tuned"] = (ours(shared), ALLOCATOR)
    for kind in kinds:
        options = json.dumps({**dataclasses.asdict(work), "compile": kind.startswith("compiled")})
        environment = TUNED_TORCH | preloaded_mkl_switch(folder) if kind.endswith("tuned") else {}
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

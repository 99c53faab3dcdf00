"""Imports of the reference implementations, for the scripts that make goldens and count parameters."""

import importlib.util
import subprocess
import sys
import types
from pathlib import Path


def import_timm() -> types.ModuleType:
    """Import timm; where torchvision's compiled ops do not load (a CUDA wheel beside CPU torch), declare their names.

    timm imports torchvision for a frozen batch norm and feature extraction, plain Python that calls no compiled op.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for op in ("nms", "qnms"):
            library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_timm.library = library  # ops live as long as the library object
    import timm

    return timm


def read_official(repository: Path, path: str) -> str:
    """Read one file of an official repository: a checkout, or a bare git directory read at HEAD."""
    if (repository / path).exists():
        return (repository / path).read_text()
    command = ["git", "-C", str(repository), "show", f"HEAD:{path}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def load_official(repository: Path, path: str) -> types.ModuleType:
    """Load one Python file of an official repository, without the packages around it."""
    name = "official_" + Path(path).stem
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader=None))
    sys.modules[name] = module
    exec(compile(read_official(repository, path), path, "exec"), module.__dict__)
    return module

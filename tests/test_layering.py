"""The import directions of the architecture, read from the sources."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A room -> the rooms of swin_jax it may import. `commands` is the room of modules directly in swin_jax.
ALLOWED = {
    "nn": {"nn", "errors"},
    "models": {"nn", "kernels", "models", "named", "errors"},
    "data": {"data", "named", "errors"},
    "convert": {"nn", "models", "convert", "errors"},
    "kernels": {"nn", "kernels", "errors"},
    "decoding": {"nn", "models", "decoding", "errors"},
    "visualization": {"nn", "models", "visualization", "errors"},
    "benchmarking": {"nn", "models", "data", "training", "benchmarking", "errors"},
    "tasks": {"nn", "models", "data", "decoding", "tasks", "named", "errors"},
    "training": {"nn", "models", "data", "decoding", "tasks", "convert", "training", "errors"},
    "planning": {"planning", "errors"},
    "probing": {"data", "training", "probing", "errors"},
    "named": {"errors"},
    "errors": set(),
}
CONFIG_READERS = {
    "training/default_config.py",
    "training/experiment.py",
    "training/inputs.py",
    "training/loop.py",
    "training/text_inputs.py",
    "training/workdir.py",
}


def sources():
    return sorted((ROOT / "swin_jax").rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "swin_jax").with_suffix("").parts
    if len(parts) > 1:
        return parts[0]
    return parts[0] if parts[0] in ("errors", "named") else "commands"


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    room = room_of(path)
    if room == "commands":
        return
    rooms = {entry.name for entry in (ROOT / "swin_jax").iterdir()} | {"errors", "named", "commands", "evaluate"}
    imported = {module.split(".")[1] for module in imported_modules(path) if module.startswith("swin_jax.")} & rooms
    assert imported <= ALLOWED[room], f"{room} must not import {imported - ALLOWED[room]}"


def test_only_few_modules_see_a_config():
    readers = {
        str(path.relative_to(ROOT / "swin_jax"))
        for path in sources()
        if any(module.startswith("ml_collections") for module in imported_modules(path))
    }
    assert {reader for reader in readers if "/" in reader} <= CONFIG_READERS


def test_no_tensorflow_or_torch_at_run_time():
    for path in sources():
        top = {module.split(".")[0] for module in imported_modules(path)}
        forbidden = {"tensorflow", "clu"} if room_of(path) == "convert" else {"tensorflow", "clu", "torch"}
        assert not top & forbidden, path


def test_files_stay_short():
    for path in sources():
        limit = 250 if path.name == "loop.py" else 400
        assert len(path.read_text().splitlines()) <= limit, path
    assert len((ROOT / "train.py").read_text().splitlines()) <= 40
    assert not list((ROOT / "swin_jax").rglob("utils.py"))


def test_configs_are_pure_data():
    for path in sorted((ROOT / "configs").rglob("*.py")):
        assert not {name for name in imported_modules(path) if name.startswith("swin_jax")} - {
            "swin_jax.training.default_config",
            "swin_jax.training.default_config.default_config",
        }, path

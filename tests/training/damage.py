"""Ways to damage the files of a checkpoint, each the same whenever it is drawn with the same seed."""

import dataclasses
import pathlib
import shutil

import numpy as np

KINDS = ("flip", "truncate", "empty", "delete")
MARKS = ("commit_success.txt",)  # Orbax's note that a folder is complete, beside the name that says so


@dataclasses.dataclass(frozen=True)
class Damage:
    """What happens to one file of a step: `number` counts the files of its kind from the largest on."""

    kind: str
    file: str  # a path in the step's folder; in a folder `d`, whose names are random, the largest file and so on
    number: int = 0
    where: float = 0.5  # of a flip, in the file

    def __str__(self) -> str:
        return f"{self.kind} {self.file}.{self.number}"

    def apply(self, step: pathlib.Path) -> None:
        path = step / self.file
        if path.name == "d":
            path = sorted((file for file in path.iterdir()), key=lambda file: (-file.stat().st_size, file.name))[
                self.number
            ]
        content = bytearray(path.read_bytes())
        if self.kind == "delete":
            path.unlink()
        elif self.kind == "flip":
            position = int(self.where * 8 * len(content))
            content[position // 8] ^= 1 << position % 8
            path.write_bytes(content)
        else:
            path.write_bytes(content[: len(content) // 2] if self.kind == "truncate" else b"")


def files_of(step: pathlib.Path) -> list[tuple[str, int]]:
    """Return the files of a step as `Damage` names them, those that have something in them."""
    found, counts = [], {}
    for path in sorted(step.rglob("*")):
        if path.is_file() and path.stat().st_size and path.name not in MARKS:
            folder = path.parent if path.parent.name == "d" else path
            name = str(folder.relative_to(step))
            found.append((name, counts.get(name, 0)))
            counts[name] = counts.get(name, 0) + 1
    return found


def random_damages(step: pathlib.Path, count: int, seed: int) -> list[Damage]:
    """Return `count` damages drawn from a seed, as many of each kind."""
    rng, files = np.random.default_rng(seed), files_of(step)
    chosen = [files[rng.integers(len(files))] for _ in range(count)]
    return [Damage(KINDS[i % len(KINDS)], *file, where=float(rng.random())) for i, file in enumerate(chosen)]


def fresh_copy(original: pathlib.Path, folder: pathlib.Path) -> None:
    """Make `folder` what `original` is."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)

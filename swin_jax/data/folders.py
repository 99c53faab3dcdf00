"""Images on disk, one folder a class: which splits and classes there are, and reading one file."""

import dataclasses
import os
import pathlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from swin_jax.errors import UnreadableRecord, UserError

EXTENSIONS = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test", "val", "validation")}
HELD_OUT_SHARE = 0.1
# Opening every file of a large data set takes minutes on a network disk; there a damaged file is named when it is read.
MAX_CHECKED_FILES = 10_000
_LITTER = ("thumbs.db", "desktop.ini", "__macosx")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FolderRecords:
    """Encoded image files; `record["image"]` holds a file's bytes."""

    paths: tuple[str, ...]
    labels: np.ndarray  # [N] int32

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict:
        try:
            return {"image": pathlib.Path(self.paths[index]).read_bytes(), "label": int(self.labels[index])}
        except OSError as error:
            raise UnreadableRecord(f"cannot read the image file {self.paths[index]}: {error.strerror}") from error

    def describe(self, index: int) -> str:
        return self.paths[index]


def list_splits(root: pathlib.Path) -> list[str]:
    """Return which splits `root` has folders for; none where it holds classes directly."""
    try:
        children = {child.name for child in root.iterdir() if child.is_dir()}
    except FileNotFoundError:
        raise UserError(f"the data folder {root} does not exist") from None
    except NotADirectoryError:
        raise UserError(f"{root} is a file, not a data folder") from None
    except OSError as error:
        raise UserError(f"cannot read the data folder {root}: {error.strerror}") from error
    return [split for split, names in SPLIT_FOLDERS.items() if children & set(names)]


def find_split(root: pathlib.Path, split: str) -> pathlib.Path:
    """Return the sub-folder of `root` that holds the split."""
    for name in SPLIT_FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"the data folder {root} has no {' or '.join(SPLIT_FOLDERS[split])} folder for the split {split!r}")


def list_classes(folder: pathlib.Path) -> tuple[str, ...]:
    """Return the names of the class folders in `folder`, sorted; UserError where there is none, or an image beside."""
    children = sorted(child for child in folder.iterdir() if not _is_litter(child.name))
    loose = [child for child in children if child.is_file() and child.suffix.lower() in EXTENSIONS]
    if loose:
        raise UserError(f"the image {loose[0]} lies in no class folder; one folder a class is needed in {folder}")
    classes = tuple(child.name for child in children if child.is_dir())
    if not classes:
        raise UserError(f"the data folder {folder} has no class folder with images in it")
    return classes


def list_images(folder: pathlib.Path, class_names: tuple[str, ...], *, check_files: bool = True) -> FolderRecords:
    """Return every image below the class folders of `folder`, labelled by the position in `class_names`, sorted.

    UserError, naming the culprit, for a class that is not in `class_names`, one without images, and a file that is no
    image: by its extension always, by its header if `check_files` and there are at most `MAX_CHECKED_FILES`.
    """
    paths, labels = [], []
    for class_name in list_classes(folder):
        if class_name not in class_names:
            raise UserError(f"the class folder {folder / class_name} has no counterpart among the training classes")
        files = sorted(_walk(folder / class_name))
        if not files:
            raise UserError(f"the class folder {folder / class_name} has no images in it")
        for path in files:
            if os.path.splitext(path)[1].lower() not in EXTENSIONS:
                raise UserError(f"{path} is no image (known: {' '.join(EXTENSIONS)})")
        paths += files
        labels += [class_names.index(class_name)] * len(files)
    if check_files and len(paths) <= MAX_CHECKED_FILES:
        for path in paths:
            _check_header(path)
    return FolderRecords(paths=tuple(paths), labels=np.array(labels, np.int32))


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _walk(folder: pathlib.Path) -> list[str]:
    """Return the files below `folder`, at any depth, but for hidden ones and what file managers leave behind."""
    found = []
    for parent, children, files in os.walk(folder, followlinks=True):
        children[:] = [name for name in children if not _is_litter(name)]
        found += [os.path.join(parent, name) for name in files if not _is_litter(name)]
    return found


def _check_header(path: str) -> None:
    try:
        with Image.open(path):
            pass
    except UnidentifiedImageError:
        raise UserError(f"{path} is no image, or a damaged one") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image {path}: {error}") from error

"""Where examples come from: `make_source("digits", "train[:80%]")` and its fellows, as random-access sources."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Protocol

import numpy as np
from absl import logging

from swin_jax.data import folders, idx
from swin_jax.data.splits import check_split, hold_out, shuffled, split_name, split_range
from swin_jax.data.transforms import Size, height_width
from swin_jax.errors import UnreadableRecord, UserError, did_you_mean
from swin_jax.named import import_named

SOURCES = ("digits", "fashion_mnist", "synthetic", "tfds:NAME", "folder:PATH", "my_module:my_source")
FASHION_MNIST_FOLDER = "data/fashion_mnist"
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
NUM_HELD_OUT_DIGITS = 360
SYNTHETIC_POOL = 256
SYNTHETIC_SIZES = {"train": 10_240, "test": 1_024}


class Records(Protocol):
    """All examples of a data set; `labels` where they are known without reading the images."""

    labels: np.ndarray | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...

    def describe(self, index: int) -> str:
        """Name an example for a message, by its file where it has one."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ArrayRecords:
    """Images of one size held in memory."""

    images: np.ndarray  # [N, H, W, C] uint8
    labels: np.ndarray  # [N] int32

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.images[index], "label": int(self.labels[index])}

    def describe(self, index: int) -> str:
        return f"image {index}"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TfdsRecords:
    """A split of a TFDS data set in array_record files, its images left encoded for Pillow."""

    records: object
    image_key: str
    label_key: str
    files: tuple[str, ...]
    file_lengths: tuple[int, ...]  # records in each
    labels: None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        try:
            record = self.records[index]
        except Exception as error:  # RuntimeError where a checksum of array_record is wrong, protobuf's and tfds's own
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UnreadableRecord(f"cannot read {self.describe(index)}: {reason}") from error
        label = np.asarray(record[self.label_key], np.int32)
        return {"image": record[self.image_key], "label": label if label.ndim else int(label)}

    def describe(self, index: int) -> str:
        ends = np.cumsum(self.file_lengths)
        number = int(np.searchsorted(ends, index, side="right"))
        return f"record {index - int(ends[number]) + self.file_lengths[number]} of {self.files[number]}"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImageSource:
    """Labelled images: `source[i]` is `{"image": uint8 [H, W, C] or an encoded file's bytes, "label": int}`.

    With `multi_label` the label is int32 `[L]`, the classes of which any is right; L differs and may be 0.
    """

    name: str
    records: Records
    order: np.ndarray  # [N] the index in `records` of each example
    num_classes: int
    class_names: tuple[str, ...] | None = None
    multi_label: bool = False

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict:
        return self.records[int(self.order[index])]

    def describe(self, index: int) -> str:
        """Name the example at a position for an error message."""
        return f"{self.records.describe(int(self.order[index]))} of {self.name}"

    @property
    def labels(self) -> np.ndarray | None:
        """All labels, int32 `[N]`, where they are known without reading the images, else None."""
        return None if self.records.labels is None else self.records.labels[self.order]

    @property
    def in_memory(self) -> bool:
        """Whether all images are held in memory, decoded."""
        return isinstance(self.records, ArrayRecords)


def make_source(
    name: str,
    split: str,
    *,
    data_dir: str | None = None,
    image_size: Size = 224,
    channels: int = 3,
    num_classes: int = 0,
    check_files: bool = True,
) -> ImageSource:
    """Open a split of a data source, without downloading anything.

    Args:
      name: `digits`, `fashion_mnist`, `synthetic`, `tfds:NAME` or `folder:PATH` (one folder a class, in PATH or in
        PATH/train and PATH/val, validation or test), or `my_module:my_source`, a function from the name of a split
        to an `ImageSource`.
      split: `train` or `test` (`validation` where the source has one, `all` of a folder with nothing but classes), or a
        slice as TFDS writes them: `train[:80%]`.
      data_dir: the folder of the idx files of `fashion_mnist`, or of TFDS.
      image_size, channels, num_classes: what `synthetic` makes; other sources have their own.
      check_files: whether a file of a folder that is no image is an error now, and not only when it is read.

    Raises UserError for an unknown source, a split it lacks, and files that are missing or damaged.
    """
    kind, _, argument = name.partition(":")
    base = split_name(split)
    if name == "digits":
        opened = _digits(base)
    elif name == "fashion_mnist":
        opened = _fashion_mnist(base, data_dir or FASHION_MNIST_FOLDER)
    elif name == "synthetic":
        opened = _synthetic(base, image_size=image_size, channels=channels, num_classes=num_classes or 1000)
    elif kind == "tfds" and argument:
        opened = _tfds(argument, base, data_dir)
    elif kind == "folder" and argument:
        opened = _folder(pathlib.Path(argument).expanduser(), base, check_files=check_files)
    elif kind not in ("tfds", "folder") and argument:
        opened = imported(kind, argument)(base)
    else:
        raise UserError(f"unknown data source {name!r}, known: {', '.join(SOURCES)}{did_you_mean(name, SOURCES)}")
    positions = split_range(split, len(opened.order))
    return dataclasses.replace(opened, name=f"{name} {split}", order=opened.order[positions.start : positions.stop])


def evaluation_split(name: str, *, data_dir: str | None = None) -> str:
    """Return the split of a source that published figures are about: `validation`, or `test` where there is none.

    Of a folder with nothing but classes it is all of it. Arguments and errors as for `make_source`.
    """
    kind, _, argument = name.partition(":")
    if kind == "tfds" and argument:
        known = tfds_builder(argument, data_dir).info.splits
    elif kind == "folder" and argument:
        known = folders.list_splits(pathlib.Path(argument).expanduser()) or ("all",)
    else:
        known = ("test",)
    return next((split for split in ("validation", "test", "all") if split in known), "validation")


def array_source(name: str, images: np.ndarray, labels: np.ndarray, *, num_classes: int) -> ImageSource:
    """Return a source of images in memory, uint8 `[N, H, W, C]`, and labels `[N]`."""
    if images.ndim != 4 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        got = f"{images.dtype} {images.shape} and {labels.shape}"
        raise UserError(f"{name} needs uint8 images [N, H, W, C] and labels [N], got {got}")
    records = ArrayRecords(images=images, labels=labels.astype(np.int32))
    return ImageSource(name=name, records=records, order=np.arange(len(images)), num_classes=num_classes)


def imported(module: str, function: str, known: tuple[str, ...] = SOURCES) -> Callable:
    """Return the function that a config names `module:function`; UserError where there is none."""
    try:
        return import_named(module, function)
    except (ImportError, AttributeError) as error:
        name = f"{module}:{function}"
        raise UserError(f"unknown data source {name!r}: {error}{did_you_mean(name, known)}") from error


def _digits(split: str) -> ImageSource:
    """Open scikit-learn's 1,797 handwritten digits, 8x8; a fixed stratified fifth is the test split."""
    check_split(split, ("train", "test"), "digits")
    from sklearn.datasets import load_digits  # imported late: it takes a second

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # [N, 8, 8, 1]
    labels = digits.target.astype(np.int32)
    train, test = hold_out(labels, NUM_HELD_OUT_DIGITS)
    return ImageSource(
        name="digits",
        records=ArrayRecords(images=images, labels=labels),
        order=train if split == "train" else test,
        num_classes=10,
        class_names=tuple(str(digit) for digit in range(10)),
    )


def _fashion_mnist(split: str, data_dir: str) -> ImageSource:
    """Open Fashion-MNIST (Xiao et al. 2017, https://arxiv.org/abs/1708.07747) with its official split."""
    check_split(split, ("train", "test"), "fashion_mnist")
    prefix = "train" if split == "train" else "t10k"
    folder = pathlib.Path(data_dir).expanduser()
    arrays = []
    for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"):
        path = idx.find_idx(folder, name)
        if path is None:
            raise UserError(f"{folder} has no {name}; run 'make fashion-mnist' to fetch it, or set data.data_dir")
        arrays.append(idx.read_idx(path))
    images, labels = arrays
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise UserError(f"the images {images.shape} and labels {labels.shape} in {folder} do not belong together")
    return ImageSource(
        name="fashion_mnist",
        records=ArrayRecords(images=images[..., None], labels=labels.astype(np.int32)),
        order=np.arange(len(images)),
        num_classes=10,
        class_names=FASHION_MNIST_CLASSES,
    )


def _synthetic(split: str, *, image_size: Size, channels: int, num_classes: int) -> ImageSource:
    """Make noise with random labels, for benchmarks: a small pool of images that comes round again and again."""
    check_split(split, tuple(SYNTHETIC_SIZES), "synthetic")
    rng = np.random.default_rng(0 if split == "train" else 1)
    shape = (SYNTHETIC_POOL, *height_width(image_size), channels)
    records = ArrayRecords(
        images=rng.integers(0, 256, shape, np.uint8), labels=rng.integers(0, num_classes, SYNTHETIC_POOL, np.int32)
    )
    order = np.arange(SYNTHETIC_SIZES[split]) % SYNTHETIC_POOL
    return ImageSource(name="synthetic", records=records, order=order, num_classes=num_classes)


def _folder(root: pathlib.Path, split: str, *, check_files: bool) -> ImageSource:
    """Open images in one folder a class; without split folders a fixed, stratified tenth is the test split."""
    if not folders.list_splits(root):
        check_split(split, ("train", "test", "all"), f"folder:{root}")
        class_names = folders.list_classes(root)
        records = folders.list_images(root, class_names, check_files=check_files)
        train, test = hold_out(records.labels, max(1, round(len(records) * folders.HELD_OUT_SHARE)))
        order = {"train": train, "test": test, "all": shuffled(len(records))}[split]
    else:
        check_split(split, tuple(folders.SPLIT_FOLDERS), f"folder:{root}")
        folder = folders.find_split(root, split)
        # The training classes number the labels of every split; a folder that only evaluates numbers its own.
        train_folder = root / "train"
        class_names = folders.list_classes(train_folder if train_folder.is_dir() else folder)
        records = folders.list_images(folder, class_names, check_files=check_files)
        order = shuffled(len(records))
    return ImageSource(
        name=f"folder:{root}", records=records, order=order, num_classes=len(class_names), class_names=class_names
    )


def _tfds(name: str, split: str, data_dir: str | None) -> ImageSource:
    """Open a prepared TFDS data set through `as_data_source`, which needs array_record files and no TensorFlow."""
    import tensorflow_datasets as tfds  # imported late: only this source needs it

    builder = tfds_builder(name, data_dir)
    check_split(split, tuple(builder.info.splits), f"tfds:{name}")
    features = builder.info.features
    image_key = _only_feature(features, tfds.features.Image, name)
    multi_label = "real_label" in features  # imagenet2012_real (arXiv 2006.07159), beside its original label
    label_key = "real_label" if multi_label else _only_feature(features, tfds.features.ClassLabel, name)
    records = builder.as_data_source(split=split, decoders={image_key: tfds.decode.SkipDecoding()})
    label = features[label_key].feature if multi_label else features[label_key]
    files = builder.info.splits[split]
    return ImageSource(
        name=f"tfds:{name}",
        records=TfdsRecords(
            records=records,
            image_key=image_key,
            label_key=label_key,
            files=tuple(map(str, files.filepaths)),
            file_lengths=tuple(files.shard_lengths),
        ),
        order=np.arange(len(records)),
        num_classes=label.num_classes,
        class_names=tuple(label.names) if label.names else None,
        multi_label=multi_label,
    )


def tfds_builder(name: str, data_dir: str | None):
    """Return the TFDS builder of a data set that is there as array_record files; UserError where it is not."""
    import tensorflow_datasets as tfds

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # tfds warns of what is told in one line below
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        is_prepared = builder.is_prepared()
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        where = f" and none is prepared in {data_dir}" if data_dir else ""
        raise UserError(f"TFDS knows no data set {name!r}{where}{did_you_mean(name, known)}") from None
    except (ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"TFDS cannot open {name!r}: {str(error).strip().splitlines()[0]}") from error
    finally:
        logging.set_verbosity(verbosity)
    prepare = f"tfds build {name} --file_format=array_record, where TensorFlow is installed"
    if not is_prepared:
        raise UserError(f"the TFDS data set {name!r} is not in {builder.data_path}; prepare it by {prepare}")
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"the TFDS data set {name!r} in {builder.data_path} is not array_record; prepare it by {prepare}"
        )
    return builder


def _only_feature(features, kind: type, name: str) -> str:
    """Return the key of the one feature of exactly this kind, preferring the usual names `image` and `label`."""
    keys = [key for key, feature in features.items() if type(feature) is kind]
    usual = {"Image": "image", "ClassLabel": "label"}[kind.__name__]
    if usual in keys:
        return usual
    if len(keys) != 1:
        raise UserError(f"the TFDS data set {name!r} has {len(keys)} features of kind {kind.__name__}, one is needed")
    return keys[0]

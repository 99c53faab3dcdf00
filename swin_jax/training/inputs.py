"""What a config's data is to a run: its batches, and what the model and the task must know of it."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from swin_jax.data.pipeline import EvalBatches, eval_batches, train_iterator
from swin_jax.data.policies import mean_color
from swin_jax.data.sources import ImageSource, make_source
from swin_jax.errors import UserError, did_you_mean

KINDS = ("images", "text", "text_pairs")


class Inputs(Protocol):
    """One kind of data. Batches are this host's share of `batch_size` examples on all hosts."""

    name: str
    num_examples: int  # of the training split: an epoch
    unit: str  # what throughput counts
    units_per_example: int
    model_options: dict[str, Any]  # arguments of the model that follow from the data
    task_options: dict[str, Any]  # and of the task
    files: dict[str, str]  # what the workdir keeps of it, text by file name

    def train_iterator(self, *, batch_size: int) -> grain.DatasetIterator:
        """Return shuffled training batches without end, whose position can be saved."""

    def eval_batches(self, *, batch_size: int) -> Iterable[Mapping[str, np.ndarray]]:
        """Return the batches of the evaluation split, to be iterated any number of times."""


def open_inputs(config: ConfigDict, *, workdir: pathlib.Path | None = None, reads_text: bool = True) -> Inputs:
    """Open the config's data. Raises UserError for what is missing or does not fit.

    `workdir` is the folder of the run, if it was begun before: text is read with the tokenizer that is there, or, if
    not `reads_text`, not at all.
    """
    kind = config.data.kind
    if kind not in KINDS:
        raise UserError(f"unknown data.kind={kind!r}, known: {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    if kind == "images":
        return ImageInputs(config)
    from swin_jax.training.text_inputs import open_text  # late: a run on images needs no tokenizers

    return open_text(config, workdir=workdir, reads=reads_text)


class ImageInputs:
    """Labelled images: batches of `image` and `label`."""

    unit, units_per_example = "images", 1

    def __init__(self, config: ConfigDict):
        self._config = config
        self._train = self._open(config.data.train_split)
        self._num_classes = config.data.num_classes or self._train.num_classes
        self.name, self.num_examples = self._train.name, len(self._train)
        self.model_options = {
            "num_classes": self._num_classes,
            "image_size": config.data.image_size,
            "in_channels": config.data.channels,
        }
        self.task_options = {"num_classes": self._num_classes}
        self.files: dict[str, str] = {}

    def train_iterator(self, *, batch_size: int) -> grain.DatasetIterator:
        data = self._config.data
        return train_iterator(
            self._train,
            crop=data.crop,
            crop_scale=data.crop_scale,
            flip=data.flip,
            policy=data.policy,
            policy_fill=mean_color(self._config.task.get("mean", 0.5), data.channels),
            color_jitter=data.color_jitter,
            repeats=data.repeats,
            seed=self._config.seed,
            worker_count=data.worker_count,
            **self._common_options(batch_size),
        )

    def eval_batches(self, *, batch_size: int) -> EvalBatches:
        data = self._config.data
        return eval_batches(
            self._open(data.eval_split),
            crop=data.eval_crop,
            crop_fraction=data.crop_fraction,
            **self._common_options(batch_size),
        )

    def _open(self, split: str) -> ImageSource:
        data = self._config.data
        return make_source(
            data.source,
            split,
            data_dir=data.data_dir or None,
            image_size=data.image_size,
            channels=data.channels,
            num_classes=data.num_classes,
        )

    def _common_options(self, batch_size: int) -> dict[str, Any]:
        data = self._config.data
        return {
            "batch_size": batch_size // jax.process_count(),
            "image_size": data.image_size,
            "channels": data.channels,
            "num_classes": self._num_classes,
            "interpolation": data.interpolation,
            "num_threads": data.num_threads,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }

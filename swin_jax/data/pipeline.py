"""The one input pipeline, on Grain: indices shuffled from the seed, images loaded in threads, batches by process."""

import dataclasses
import functools
import math

import grain
import numpy as np
from PIL import Image

from swin_jax.data.batching import Batch, EvalBatches, process_share, shuffled_indices
from swin_jax.data.sources import ImageSource
from swin_jax.data.transforms import Crop, ImageTransform, Size, height_width
from swin_jax.data.unreadable import BlankUnreadable, ReplaceUnreadable, check_choice
from swin_jax.errors import UnreadableRecord, UserError

MAX_PREFETCHED_BYTES = 2 * 1024**3
MAX_TRANSFORMED_BYTES = 1024**3


# repr=False here and in the sources: Grain prints its transforms, and a source may hold a million paths.
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LoadImage(grain.transforms.RandomMap):
    """From an index to `{"image": uint8 [H, W, C], "label": int32}`.

    Raises UnreadableRecord, which names it, for a record that is damaged, UserError for a label outside the classes.
    Where a source has several labels an image, `label` is bool `[num_classes]`.
    """

    source: ImageSource
    transform: ImageTransform
    num_classes: int

    def random_map(self, index: int, rng: np.random.Generator | None = None) -> Batch:
        record = self.source[index]
        label = record["label"]
        for one in np.atleast_1d(label):
            self.check_label(int(one), index)
        try:
            image = self.transform(record["image"], rng)
        except UserError as error:  # a size that crop='none' does not take: the config's fault, not the record's
            raise UserError(f"cannot use {self.source.describe(index)}: {error}") from error
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UnreadableRecord(f"cannot use {self.source.describe(index)}: {error}") from error
        return {
            "image": image,
            "label": np.isin(np.arange(self.num_classes), label) if np.ndim(label) else np.int32(label),
        }

    def check_label(self, label: int, index: int) -> None:
        if not 0 <= label < self.num_classes:
            where = self.source.describe(index)
            raise UserError(f"label {label} of {where} is outside of num_classes={self.num_classes}")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GatherImages(grain.transforms.Map):
    """From indices `[B]` to the batch that `LoadImage` would give, out of images transformed beforehand."""

    images: np.ndarray  # [M, H, W, C] uint8
    labels: np.ndarray  # [N] int32
    rows: np.ndarray  # [N] where in `images` each example is

    def map(self, indices: np.ndarray) -> Batch:
        return {"image": self.images[self.rows[indices]], "label": self.labels[indices]}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Loader:
    """Turns a stream of indices into one of batches, each loaded as a whole by one thread."""

    load: LoadImage
    batch_size: int
    num_threads: int
    tolerant: ReplaceUnreadable | BlankUnreadable | None = None  # takes the place of `load` where records may be bad

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size} must be at least 1")
        source = self.load.source
        if source.labels is not None:
            wrong = (source.labels < 0) | (source.labels >= self.load.num_classes)
            for index in np.flatnonzero(wrong)[:1]:
                self.load.check_label(int(source.labels[index]), int(index))

    @property
    def image_bytes(self) -> int:
        return math.prod(height_width(self.load.transform.image_size)) * self.load.transform.channels

    @functools.cached_property
    def gather(self) -> GatherImages | None:
        """All images transformed once, if they are in memory before and fit there after, and nothing is random."""
        source = self.load.source
        distinct, first, rows = np.unique(source.order, return_index=True, return_inverse=True)
        if not source.in_memory or self.load.transform.is_random:
            return None
        if len(distinct) * self.image_bytes > MAX_TRANSFORMED_BYTES:
            return None
        images = np.stack([self.load.random_map(int(index))["image"] for index in first])
        return GatherImages(images=images, labels=source.labels, rows=rows)

    def batches(self, indices: grain.MapDataset, *, drop_remainder: bool) -> grain.MapDataset:
        if self.gather:
            return indices.batch(self.batch_size, drop_remainder=drop_remainder, batch_fn=np.asarray).map(self.gather)
        load = self.tolerant or self.load
        examples = indices.random_map(load) if self.load.transform.is_random else indices.map(load.random_map)
        return examples.batch(self.batch_size, drop_remainder=drop_remainder)

    def iterate(self, batches: grain.MapDataset) -> grain.IterDataset:
        # A gather holds Python's lock all along, so further threads would only fight for it: a third of the speed.
        num_threads = 1 if self.gather else self.num_threads
        num_buffered = max(2, min(num_threads, MAX_PREFETCHED_BYTES // (self.batch_size * self.image_bytes)))
        return batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_buffered))


def train_iterator(
    source: ImageSource,
    *,
    batch_size: int,
    image_size: Size,
    channels: int,
    num_classes: int,
    seed: int,
    crop: Crop = "resize",
    flip: bool = False,
    policy: str = "",
    policy_fill: tuple[int, ...] = (),
    color_jitter: float = 0.0,
    repeats: int = 1,
    interpolation: str = "bicubic",
    crop_scale: tuple[float, float] = (0.08, 1.0),
    crop_fraction: float = 1.0,
    decoder: str = "pillow",
    on_corrupt: str = "stop",
    num_epochs: int | None = None,
    num_threads: int = 16,
    worker_count: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Return a checkpointable iterator over shuffled batches `{"image": uint8 [B, H, W, C], "label": int32 [B]}`.

    The stream is one endless sequence of examples, every epoch of it in a new order, that depends on the seed alone:
    step s takes the next `batch_size * process_count` of it, of which each process gets its own consecutive part. So
    the batches of all processes together are the same on any number of processes, threads and workers, and so is the
    random crop and flip of each example. With `num_epochs` the tail that does not fill a global batch is dropped.

    Args:
      source: where the examples come from.
      batch_size: examples a step on this process.
      image_size, channels, crop, interpolation, crop_scale, crop_fraction, flip, decoder, policy, policy_fill,
        color_jitter: see `ImageTransform`.
      on_corrupt: `stop` at a record that cannot be read, with a UserError that names it, from `next()`; or `skip` it,
        tell its name, and take the next one of the source instead: batches then have `"skipped"`, bool `[B]`.
      repeats: how often an example comes in a row; see `batching.RepeatEach`.
      num_classes: the classes the model knows; a label outside is a UserError.
      num_threads: threads that load ahead, a batch each, within `MAX_PREFETCHED_BYTES`.
      worker_count: processes that load instead; a saved state then fits the same worker count only.

    `get_state()` counts the batches taken, `set_state()` goes on from there exactly.
    """
    transform = ImageTransform(
        image_size=image_size,
        channels=channels,
        crop=crop,
        interpolation=interpolation,
        crop_fraction=crop_fraction,
        crop_scale=crop_scale,
        flip=flip,
        decoder=decoder,
        policy=policy,
        policy_fill=policy_fill,
        color_jitter=color_jitter,
    )
    check_choice(on_corrupt)
    if source.multi_label:
        raise UserError(f"{source.name} has several labels an image: it is for evaluation only")
    load = LoadImage(source=source, transform=transform, num_classes=num_classes)
    tolerant = ReplaceUnreadable(load=load, num_examples=len(source)) if on_corrupt == "skip" else None
    loader = Loader(load=load, batch_size=batch_size, num_threads=num_threads, tolerant=tolerant)
    indices = shuffled_indices(len(source), seed=seed, num_epochs=num_epochs, repeats=repeats)
    # Random transforms are keyed by the position in this stream, so the stream is cut among processes after them.
    share = process_share(
        loader.batches(indices, drop_remainder=True),
        what=f"{source.name} has {len(source)} examples",
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
    )
    dataset = loader.iterate(share)
    if worker_count:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=worker_count))
    return iter(dataset)


def eval_batches(
    source: ImageSource,
    *,
    batch_size: int,
    image_size: Size,
    channels: int,
    num_classes: int,
    crop: Crop = "resize",
    crop_fraction: float = 1.0,
    interpolation: str = "bicubic",
    on_corrupt: str = "stop",
    num_threads: int = 16,
    process_index: int = 0,
    process_count: int = 1,
) -> EvalBatches:
    """Return the batches of the whole source, in order, to be iterated any number of times.

    A batch has `"valid"`, bool `[B]`, beside image and label. Every example is valid exactly once over all processes:
    process p has the p-th consecutive part. Each process yields the same number of batches, filled up with zeros that
    are not valid. Where the source has several labels an image, `label` is bool `[B, num_classes]`. Arguments as for
    `train_iterator`; an unreadable example that is to be skipped is not valid.
    """
    transform = ImageTransform(
        image_size=image_size, channels=channels, crop=crop, crop_fraction=crop_fraction, interpolation=interpolation
    )
    if transform.is_random:
        raise UserError(f"crop={crop!r} is random, which an evaluation must not be")
    check_choice(on_corrupt)
    load = LoadImage(source=source, transform=transform, num_classes=num_classes)
    nothing = {
        "image": np.zeros((0, *height_width(transform.image_size), transform.channels), np.uint8),
        "label": np.zeros((0, num_classes), bool) if source.multi_label else np.zeros(0, np.int32),
    }
    blank = {key: np.zeros(value.shape[1:], value.dtype) for key, value in nothing.items()}
    tolerant = BlankUnreadable(load=load, blank=blank) if on_corrupt == "skip" else None
    loader = Loader(load=load, batch_size=batch_size, num_threads=num_threads, tolerant=tolerant)
    return EvalBatches(
        num_examples=len(source),
        batch_size=batch_size,
        load=lambda indices: loader.iterate(loader.batches(indices, drop_remainder=False)),
        nothing=nothing,
        process_index=process_index,
        process_count=process_count,
    )

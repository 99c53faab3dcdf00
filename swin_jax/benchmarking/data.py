"""The cost of the image input: beside what Pillow takes for the same work, and where the time goes."""

import dataclasses
import io
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from swin_jax.data import transforms, turbo
from swin_jax.data.pipeline import train_iterator
from swin_jax.data.sources import ImageSource
from swin_jax.errors import UserError

PHOTO_SIZE = (500, 375)  # width and height: the usual size in ImageNet
PHOTO_QUALITY = 95
NUM_PHOTOS = 32
STAGES = ("read", "decode", "crop and resize", "batch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is done to an image: a random resized crop. Flips and normalisation are the device's work."""

    image_size: int
    interpolation: str
    decoder: str
    batch_size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """Images a CPU-second, of each round: of the whole pipeline, and of Pillow in a plain loop."""

    ours: tuple[float, ...]
    pillow: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, float, float]:
        """Median, lowest and highest of the rounds."""
        ratios = np.array(self.ours) / np.array(self.pillow)
        return float(np.median(ratios)), float(ratios.min()), float(ratios.max())


def write_photos(folder: pathlib.Path) -> None:
    """Write JPEGs of parts of scikit-learn's two photos into two folders of classes."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    for number in range(NUM_PHOTOS):
        photo = Image.fromarray(load_sample_images().images[number % 2])
        width = int(rng.integers(PHOTO_SIZE[0], 0.95 * photo.height * PHOTO_SIZE[0] / PHOTO_SIZE[1]))
        height = round(width * PHOTO_SIZE[1] / PHOTO_SIZE[0])
        left, top = int(rng.integers(0, photo.width - width + 1)), int(rng.integers(0, photo.height - height + 1))
        part = photo.resize(PHOTO_SIZE, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))
        path = folder / "train" / ("china", "flower")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        part.save(path, quality=PHOTO_QUALITY)


def repeated(source: ImageSource, num_images: int) -> ImageSource:
    """Return a source of so many examples of this one, again and again if need be."""
    if source.in_memory:
        raise UserError(f"{source.name} is in memory: there is nothing to read or decode")
    return dataclasses.replace(source, order=np.resize(source.order, num_images))


def compare(source: ImageSource, options: Options, *, rounds: int) -> Rates:
    """Measure, by turns, the pipeline that trains, all of its overhead included, and Pillow without any."""
    ours, pillow = [], []
    for round_number in range(rounds):
        ours.append(rate(pipeline(source, options, seed=round_number, num_threads=2), time.process_time))
        pillow.append(rate(pillow_batches(source, options, seed=round_number), time.process_time))
    return Rates(ours=tuple(ours), pillow=tuple(pillow))


def rate(batches: Iterator[np.ndarray], clock: Callable[[], float]) -> float:
    """Return the images a second by `clock` of batches that are taken to the end."""
    start = clock()
    count = sum(len(images) for images in batches)
    return count / (clock() - start)


def pipeline(source: ImageSource, options: Options, *, seed: int, num_threads: int) -> Iterator[np.ndarray]:
    """Yield the images of one epoch as a run gets them."""
    batches = train_iterator(
        source,
        batch_size=options.batch_size,
        image_size=options.image_size,
        channels=3,
        num_classes=source.num_classes,
        crop="random_resized",
        interpolation=options.interpolation,
        decoder=options.decoder,
        seed=seed,
        num_epochs=1,
        num_threads=num_threads,
    )
    for batch in batches:
        yield batch["image"]


def pillow_batches(source: ImageSource, options: Options, *, seed: int) -> Iterator[np.ndarray]:
    """Yield one epoch in batches, made as torchvision makes them of Pillow images."""
    rng = np.random.default_rng(seed)
    side, filter_ = options.image_size, transforms.RESAMPLING[options.interpolation]
    order = rng.permutation(len(source))
    for first in range(0, len(source) - options.batch_size + 1, options.batch_size):
        images = []
        for index in order[first : first + options.batch_size]:
            image = Image.open(io.BytesIO(source[int(index)]["image"])).convert("RGB")
            top, left, height, width = transforms.random_crop_box((image.height, image.width), rng)
            part = image.crop((left, top, left + width, top + height))
            images.append(np.array(part.resize((side, side), filter_)))
        yield np.stack(images)


def stages(source: ImageSource, options: Options) -> dict[str, float]:
    """Return the CPU-seconds an image of each of `STAGES`, alone in one thread."""
    seconds = dict.fromkeys(STAGES, 0.0)
    rng, images, size = np.random.default_rng(0), [], (options.image_size, options.image_size)
    for index in range(len(source)):
        times = [time.thread_time()]
        data = source[index]["image"]
        times.append(time.thread_time())
        jpeg_size = turbo.jpeg_size(data) if options.decoder == "turbo" else None
        if jpeg_size:
            box = transforms.random_crop_box(jpeg_size, rng)
            reduction = turbo.reduction(box[2:], size)
            pixels = turbo.decode_jpeg(data, jpeg_size, reduction=reduction)
            times.append(time.thread_time())
            box = tuple(side / reduction for side in box)
            images.append(turbo.resize_box(pixels, box, size, interpolation=options.interpolation))
        else:
            pil = transforms.to_pil(data, channels=3)
            times.append(time.thread_time())
            pil = transforms.random_resized_crop(pil, size, rng, interpolation=options.interpolation)
            images.append(transforms.to_array(pil))
        times.append(time.thread_time())
        if len(images) == options.batch_size:
            np.stack(images)
            images = []
        times.append(time.thread_time())
        for name, spent in zip(STAGES, np.diff(times), strict=True):
            seconds[name] += float(spent) / len(source)
    return seconds


def thread_rates(source: ImageSource, options: Options, threads: Sequence[int]) -> dict[int, float]:
    """Return the images a second, by the clock on the wall, with each number of threads."""
    return {
        number: rate(pipeline(source, options, seed=0, num_threads=number), time.perf_counter) for number in threads
    }


def table(rates: Rates, spent: dict[str, float], by_threads: dict[int, float]) -> str:
    """Return the figures as lines of text."""
    median, low, high = rates.ratios
    whole = 1 / float(np.median(rates.ours))
    lines = [
        f"{'images a CPU-second':24}{'ours':>10}{'Pillow':>10}{'ratio':>10}",
        f"{'median of the rounds':24}{np.median(rates.ours):10.0f}{np.median(rates.pillow):10.0f}{median:10.2f}",
        f"{'lowest and highest ratio':24}{'':20}{low:10.2f} to {high:.2f}",
        "",
        *(f"{name:24}{1e6 * seconds:10.0f} us{seconds / whole:8.0%}" for name, seconds in spent.items()),
        f"{'threads and the rest':24}{1e6 * (whole - sum(spent.values())):10.0f} us"
        f"{1 - sum(spent.values()) / whole:8.0%}",
        "",
        *(f"{f'{number} threads':24}{speed:10.0f} images/s" for number, speed in by_threads.items()),
    ]
    return "\n".join(lines)

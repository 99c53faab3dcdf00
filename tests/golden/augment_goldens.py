"""What timm's auto-augmentation and random erasing do."""

import json
import random
from unittest import mock

import numpy as np
import PIL
import timm
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.random_erasing import RandomErasing

SIZE = (14, 11)  # height, width
FILL = (124, 116, 104)
LEVELS, CHANCES = (0.0, 2.0, 5.0, 9.4), (0.25, 0.75)
ERASED_SIZE = (64, 48)


def timm_augment(_) -> dict:
    """Each of timm's operations on one image by level and sign, its policies as tables, and boxes of random erasing."""
    pixels = np.random.default_rng(31).integers(0, 256, (*SIZE, 3), np.uint8)
    hparams = dict(translate_const=int(0.45 * min(SIZE)), img_mean=FILL, interpolation=Image.Resampling.BICUBIC)
    cases, outputs = [], []
    for name in auto_augment.LEVEL_TO_ARG:
        for level in LEVELS:
            for chance in CHANCES:
                operation = auto_augment.AugmentOp(name, prob=1.0, magnitude=level, hparams=hparams)
                with (
                    mock.patch("random.random", lambda chance=chance: chance),
                    mock.patch("random.uniform", lambda low, high, chance=chance: low + (high - low) * chance),
                ):
                    try:
                        output = np.asarray(operation(Image.fromarray(pixels)))
                    except ValueError:  # Pillow 13 refuses to keep 0 bits
                        continue
                if chance == CHANCES[0] or not np.array_equal(output, outputs[-1]):
                    cases.append((name, level, chance))
                    outputs.append(output)
    policies = {}
    for name in ("original", "originalr", "v0", "v0r", "3a"):
        chains = auto_augment.auto_augment_policy(name, hparams)
        policies[name] = [[(step.name, step.prob, step.magnitude) for step in chain] for chain in chains]
    for name in ("rand-m9-mstd0.5-inc1", "rand-m7-n3-p0.7"):
        steps = auto_augment.rand_augment_transform(name, dict(hparams)).ops
        policies[name] = [[(step.name, step.prob, step.magnitude)] for step in steps]
    about = dict(source="timm", timm=timm.__version__, pillow=PIL.__version__)
    described = json.dumps({**about, "cases": cases, "policies": policies, "fill": FILL})
    return {"about": described, "image": pixels, "outputs": np.stack(outputs), **_erased(1), **_erased(3)}


def _erased(max_count: int) -> dict:
    """The erased area of images, and, where there is one box, its (top, left, height, width)."""
    random.seed(max_count)
    erase = RandomErasing(1.0, mode="pixel", max_count=max_count, device="cpu")
    masks = [erase(torch.zeros(1, *ERASED_SIZE))[0].numpy() != 0 for _ in range(3000)]
    entries = {f"erased_area/{max_count}": np.array([mask.sum() for mask in masks], np.uint16)}
    if max_count == 1:
        sides = [(mask.any(1), mask.any(0)) for mask in masks if mask.any()]
        boxes = [(rows.argmax(), columns.argmax(), rows.sum(), columns.sum()) for rows, columns in sides]
        entries["erased_boxes"] = np.array(boxes, np.uint8)
    return entries

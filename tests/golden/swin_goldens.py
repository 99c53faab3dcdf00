"""Swin as timm, the official repository and HF transformers compute it."""

import timm
import torch

from tests.golden import reference
from tests.golden.writing import (
    NUM_CLASSES,
    SWIN,
    SWIN_NATIVE,
    SWIN_OTHER,
    TWO_STAGES,
    add_gradients,
    add_run,
    as_maps,
    golden,
    outputs_of,
    published_hf_weights,
    random_images,
    randomize,
)


def tiny_timm_swin(size=SWIN_NATIVE, **changes) -> torch.nn.Module:
    options = dict(img_size=size, patch_size=2, num_classes=NUM_CLASSES, drop_path_rate=0.0, **{**SWIN, **changes})
    return randomize(timm.models.swin_transformer.SwinTransformer(**options), seed=1)


def our_swin(size=SWIN_NATIVE, **changes) -> dict:
    return dict(name="swin", image_size=size, patch_size=2, num_classes=NUM_CLASSES, **{**SWIN, **changes})


def run_timm_swin(entries: dict, model: torch.nn.Module, images: torch.Tensor) -> None:
    _, features = model.forward_intermediates(images, norm=False)
    add_run(entries, images, model(images), features)


def timm_swin(_) -> dict:
    """Roll, then pad."""
    model = tiny_timm_swin()
    entries = golden("timm SwinTransformer", our_swin(), model.state_dict())
    run_timm_swin(entries, model, random_images(SWIN_NATIVE))
    model.set_input_size(SWIN_OTHER, window_size=SWIN["window_size"])
    run_timm_swin(entries, model, random_images(SWIN_OTHER))
    return entries


def timm_swin_gradients(_) -> dict:
    model, images = tiny_timm_swin(**TWO_STAGES), random_images(SWIN_NATIVE)
    entries = golden("timm SwinTransformer", our_swin(**TWO_STAGES), model.state_dict())
    run_timm_swin(entries, model, images)
    add_gradients(entries, model, images)
    return entries


def timm_swin_rectangles(_) -> dict:
    """Rectangular windows and maps, windows that shrink on one side, attention without qkv bias."""
    size, changes = (24, 36), dict(window_size=(4, 3), **TWO_STAGES)
    model = tiny_timm_swin(size, qkv_bias=False, **changes)
    entries = golden("timm SwinTransformer", our_swin(size, qkv_bias=False, **changes), model.state_dict())
    run_timm_swin(entries, model, random_images(size))
    return entries


def timm_swin_shrunk(_) -> dict:
    """A window larger than the map of the last stage, where its table shrinks, on one side only."""
    size, changes = (20, 28), dict(window_size=6, **TWO_STAGES)  # 10x14 and 5x7 tokens
    model = tiny_timm_swin(size, **changes)
    entries = golden("timm SwinTransformer", our_swin(size, **changes), model.state_dict())
    run_timm_swin(entries, model, random_images(size))
    return entries


def official_swin(arguments) -> dict:
    """The official classification code, with its buffers in the state dict; only sizes that windows divide."""
    code = reference.load_official(arguments.swin_repository, "models/swin_transformer.py")
    options = dict(img_size=SWIN_NATIVE[0], patch_size=2, num_classes=NUM_CLASSES, drop_path_rate=0.0, **SWIN)
    model = randomize(code.SwinTransformer(**options), seed=2)
    entries = golden("official SwinTransformer", our_swin(), model.state_dict())
    images = random_images(SWIN_NATIVE)
    with outputs_of(layer.blocks[-1] for layer in model.layers) as outputs:
        logits = model(images)
    add_run(entries, images, logits, as_maps(outputs, SWIN_NATIVE))
    return entries


def hf_swin(_) -> dict:
    """Pad, then roll."""
    from transformers import SwinConfig, SwinForImageClassification

    options = {**SWIN, "depths": list(SWIN["depths"]), "num_heads": list(SWIN["num_heads"])}
    config = SwinConfig(image_size=SWIN_NATIVE[0], patch_size=2, num_labels=NUM_CLASSES, drop_path_rate=0.0, **options)
    model = randomize(SwinForImageClassification(config), seed=3)
    our = our_swin(window_padding="pad_roll")
    entries = golden("HF SwinForImageClassification", our, published_hf_weights(model))
    for size in (SWIN_OTHER, SWIN_NATIVE):  # the larger first: HF's layers keep the smallest window they have seen
        images = random_images(size)
        with outputs_of(stage.blocks[-1] for stage in model.swin.encoder.layers) as outputs:
            logits = model(images).logits
        add_run(entries, images, logits, as_maps([hidden for hidden, _ in outputs], size))
    return entries

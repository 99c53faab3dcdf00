"""Resized tables, training trajectories, learning-rate curves and layer-wise learning rates."""

import json

import numpy as np
import timm
import timm.loss
import torch

from tests.golden import reference
from tests.golden.learning_rates import official_learning_rates
from tests.golden.swin_goldens import our_swin, tiny_timm_swin
from tests.golden.vit_goldens import our_vit, tiny_timm_vit
from tests.golden.writing import (
    LABELS,
    SWIN_NATIVE,
    TWO_STAGES,
    VIT_NATIVE,
    golden,
    random_images,
    size_name,
)


def resized_tables(_) -> dict:
    """Position tables resized by PyTorch's bicubic (with and without antialias) and by BEiT's geometric scheme."""
    from timm.layers import pos_embed_rel

    pos_embed_rel._USE_SCIPY = True  # BEiT's own cubic spline, not timm's linear stand-in
    generator = torch.Generator().manual_seed(15)
    entries = golden("torch interpolate, timm's port of BEiT", {}, {})
    for old, new in (((7, 7), (12, 12)), ((4, 4), (7, 7)), ((7, 7), (4, 4)), ((5, 3), (8, 6))):
        table = torch.randn((2 * old[0] - 1) * (2 * old[1] - 1), 3, generator=generator)
        sides = [2 * side - 1 for side in new]
        grid = table.T.reshape(1, 3, 2 * old[0] - 1, 2 * old[1] - 1)
        bicubic = torch.nn.functional.interpolate(grid, size=sides, mode="bicubic", align_corners=False)
        geometric = pos_embed_rel.resize_rel_pos_bias_table(table, new, (sides[0] * sides[1], 3), old)
        name = f"{size_name(old)}/{size_name(new)}"
        entries[f"table/{name}"] = table
        entries[f"table_bicubic/{name}"] = bicubic.reshape(3, -1).T
        entries[f"table_geometric/{name}"] = geometric
    for old, new in (((4, 4), (7, 5)), ((6, 6), (3, 4)), ((14, 14), (16, 16))):
        positions = torch.randn(1, 1 + old[0] * old[1], 4, generator=generator)
        name = f"{size_name(old)}/{size_name(new)}"
        entries[f"positions/{name}"] = positions
        for antialias in (False, True):
            resized = timm.layers.resample_abs_pos_embed(positions, list(new), list(old), 1, antialias=antialias)
            entries[f"positions_antialias_{antialias}/{name}"] = resized
    return entries


def recipe(*, epochs, warmup_epochs, base_lr, min_lr, warmup_lr):
    """Return the part of the official configuration that its optimizer and scheduler read."""
    from types import SimpleNamespace as Space

    schedule = Space(NAME="cosine", DECAY_EPOCHS=30, DECAY_RATE=0.1, WARMUP_PREFIX=True, GAMMA=0.1, MULTISTEPS=[])
    optimizer = Space(NAME="adamw", EPS=1e-8, BETAS=(0.9, 0.999), MOMENTUM=0.9)
    return Space(
        TRAIN=Space(
            EPOCHS=epochs,
            WARMUP_EPOCHS=warmup_epochs,
            BASE_LR=base_lr,
            MIN_LR=min_lr,
            WARMUP_LR=warmup_lr,
            WEIGHT_DECAY=0.05,
            CLIP_GRAD=5.0,
            LR_SCHEDULER=schedule,
            OPTIMIZER=optimizer,
        )
    )


def load_scheduler(arguments):
    """Load the official scheduler code, written for a timm that called one argument otherwise."""
    code = reference.load_official(arguments.swin_repository, "lr_scheduler.py")
    cosine = code.CosineLRScheduler
    code.CosineLRScheduler = lambda optimizer, t_mul, **options: cosine(optimizer, cycle_mul=t_mul, **options)
    return code


def trajectory(arguments, model: torch.nn.Module, our: dict, size: tuple[int, int]) -> dict:
    """Train 20 steps as the official loop does: its optimizer, scheduler and clipping, on one batch."""
    optimizer_code = reference.load_official(arguments.swin_repository, "optimizer.py")
    scheduler_code = load_scheduler(arguments)
    hyperparameters = dict(epochs=20, warmup_epochs=5, base_lr=1e-3, min_lr=1e-5, warmup_lr=1e-6)
    config = recipe(**hyperparameters)
    optimizer = optimizer_code.build_optimizer(config, model)
    scheduler = scheduler_code.build_scheduler(config, optimizer, n_iter_per_epoch=1)
    criterion = timm.loss.LabelSmoothingCrossEntropy(smoothing=0.1)
    entries = golden("official optimizer, scheduler and loop", our, model.state_dict())
    entries["hyperparameters"] = json.dumps(hyperparameters)
    images = random_images(size)
    entries["images"] = images.permute(0, 2, 3, 1)
    entries["labels"] = torch.tensor(LABELS)
    losses, rates, norms = [], [], []
    model.train()
    for step in range(hyperparameters["epochs"]):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        loss = criterion(model(images), entries["labels"])
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), config.TRAIN.CLIP_GRAD).item())
        optimizer.step()
        scheduler.step_update(step)  # after the update, with its own number: the rate lags the curve by one update
        losses.append(loss.item())
    entries["losses"], entries["learning_rates"] = np.array(losses), np.array(rates)
    entries["gradient_norms"] = np.array(norms)
    return entries


def trajectory_swin(arguments) -> dict:
    return trajectory(arguments, tiny_timm_swin(**TWO_STAGES), our_swin(**TWO_STAGES), SWIN_NATIVE)


def trajectory_vit(arguments) -> dict:
    return trajectory(arguments, tiny_timm_vit(), our_vit(), VIT_NATIVE)


def learning_rate_curves(arguments) -> dict:
    """The official scheduler's rate: at every update of shortened runs, and at some over the whole of the real ones.

    Where only some are kept, the scheduler has run at every update all the same, and agreed with the formula in
    `learning_rates.py`, which the tests hold the shipped recipes to.
    """
    code = load_scheduler(arguments)
    recipes = {  # (epochs, warm-up epochs, updates an epoch, lr, min lr, warm-up lr), lr as scaled to the batch
        "imagenet_1k": (300, 20, 1251, 1e-3, 1e-5, 1e-6),
        "imagenet_1k_short": (300, 20, 4, 1e-3, 1e-5, 1e-6),
        "fine_tune_384": (30, 5, 1251, 4e-5, 4e-7, 4e-8),
        "fine_tune_384_short": (30, 5, 20, 4e-5, 4e-7, 4e-8),
        "imagenet_22k_short": (90, 5, 7, 1e-3, 1e-5, 1e-6),
    }
    entries = golden("official build_scheduler", {}, {})
    for name, (epochs, warmup_epochs, per_epoch, base_lr, min_lr, warmup_lr) in recipes.items():
        hyperparameters = dict(
            epochs=epochs, warmup_epochs=warmup_epochs, base_lr=base_lr, min_lr=min_lr, warmup_lr=warmup_lr
        )
        optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=base_lr)
        scheduler = code.build_scheduler(recipe(**hyperparameters), optimizer, per_epoch)
        total, warmup = epochs * per_epoch, warmup_epochs * per_epoch
        rates = []
        for step in range(total):
            scheduler.step_update(step)
            rates.append(optimizer.param_groups[0]["lr"])
        formula = official_learning_rates(
            base_lr=base_lr, min_lr=min_lr, warmup_lr=warmup_lr, warmup_steps=warmup, total_steps=total
        )
        np.testing.assert_allclose(rates, formula, rtol=1e-12)
        steps = np.arange(total)
        if total > 2000:
            ends = [np.arange(50), np.arange(warmup - 50, warmup + 50), np.arange(total - 50, total)]
            steps = np.unique(np.concatenate([*ends, np.arange(0, total, total // 1000)]))
        entries[f"hyperparameters/{name}"] = json.dumps({**hyperparameters, "updates_per_epoch": per_epoch})
        entries[f"steps/{name}"], entries[f"rates/{name}"] = steps.astype(np.int32), np.array(rates)[steps]
    return entries


def layer_decay_scales(_) -> dict:
    """The factor of each parameter's learning rate in timm's `param_groups_layer_decay`, for tiny models."""
    from timm.optim import param_groups_layer_decay

    decay, changes = 0.8, dict(depths=(1, 3, 2), num_heads=(2, 2, 4))
    models = {"vit": tiny_timm_vit(), "swin": tiny_timm_swin(**changes)}
    scales = {}
    for family, model in models.items():
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = param_groups_layer_decay(model, layer_decay=decay)
        scales[family] = {names[id(leaf)]: group["lr_scale"] for group in groups for leaf in group["params"]}
    entries = golden("timm.optim.param_groups_layer_decay", {"vit": our_vit(), "swin": our_swin(**changes)}, {})
    return {**entries, "decay": np.array(decay), "scales": json.dumps(scales)}

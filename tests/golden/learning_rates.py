"""The official learning rate in float64, at every update at once."""

import numpy as np


def official_learning_rates(
    *, base_lr: float, min_lr: float, warmup_lr: float, warmup_steps: int, total_steps: int
) -> np.ndarray:
    """Return the rates of updates 0 to `total_steps` - 1, `[total_steps]`, as the official Swin code sets them.

    That is timm's CosineLRScheduler counting updates, one cycle, `warmup_prefix`: linear from `warmup_lr`, then half a
    cosine from `base_lr` towards `min_lr` over the updates that the warm-up leaves.
    `training_goldens.learning_rate_curves` checks this formula against the scheduler itself at every update of whole
    ImageNet recipes.
    """
    step = np.arange(total_steps, dtype=np.float64)
    warmup = warmup_lr + step * (base_lr - warmup_lr) / max(warmup_steps, 1)
    angle = np.pi * (step - warmup_steps) / (total_steps - warmup_steps)
    return np.where(step < warmup_steps, warmup, min_lr + 0.5 * (base_lr - min_lr) * (1 + np.cos(angle)))

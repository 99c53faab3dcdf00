"""Image classification: normalised and augmented on the device, soft labels, top-1 and top-5."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from swin_jax.data import augment as augmentation
from swin_jax.errors import UserError, did_you_mean

LOSSES = ("softmax", "sigmoid")


class Classification:
    """Cross-entropy over `num_classes` on batches of uint8 `image` [B, H, W, C] and int `label` [B].

    `loss` is "softmax", or "sigmoid" for the mean binary cross-entropy of one yes-or-no question for each class, as
    DeiT-III trains (2204.07118): with a `target_threshold` of at least 0, soft targets above it count as 1, others as 0
    (DeiT-III: 0, so both images of a mixed one are there; timm's `--bce-target-thresh`). Evaluation reports the
    softmax cross-entropy either way, as DeiT does.

    Label smoothing spreads its share over all classes, the right one included, as PyTorch and timm do. Mixup
    (1710.09412) and CutMix (1905.04899) mix whole batches as timm's `Mixup(mode="batch")`.
    """

    best_metric, lowest_is_best = "accuracy", False

    def __init__(
        self,
        *,
        num_classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        loss: str = "softmax",
        target_threshold: float = -1.0,
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        mix_prob: float = 1.0,
        mix_switch_prob: float = 0.5,
        augment: Mapping[str, Any] | None = None,
    ):
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing must be in [0, 1), not {label_smoothing}")
        if len(mean) != len(std) or 0.0 in std:
            raise UserError(f"mean={mean} and std={std} must have one value, or one for each channel, and no std be 0")
        if loss not in LOSSES:
            raise UserError(f"unknown task.loss {loss!r}{did_you_mean(loss, LOSSES)} (known: {', '.join(LOSSES)})")
        if target_threshold >= 0 and loss != "sigmoid":
            raise UserError(f"task.target_threshold={target_threshold} is for task.loss='sigmoid', not {loss!r}")
        if 0 <= target_threshold < label_smoothing / num_classes:
            raise UserError(
                f"task.target_threshold={target_threshold} makes every class right: {label_smoothing=} gives each "
                f"{label_smoothing / num_classes:.2g}"
            )
        self.loss_name, self.target_threshold = loss, target_threshold
        if not (mixup_alpha >= 0 and cutmix_alpha >= 0):
            raise UserError(f"mixup_alpha={mixup_alpha} and cutmix_alpha={cutmix_alpha} must be at least 0")
        augment = dict(augment or {})
        checked = ("policy", "interpolation", "color_jitter", "erasing")
        augmentation.check_options(
            mix_prob=mix_prob,
            mix_switch_prob=mix_switch_prob,
            **{name: augment[name] for name in checked if name in augment},
        )
        self.num_classes = num_classes
        self.mean, self.std = mean, std
        self.label_smoothing = label_smoothing
        self.mix = {
            "mixup_alpha": mixup_alpha,
            "cutmix_alpha": cutmix_alpha,
            "prob": mix_prob,
            "switch_prob": mix_switch_prob,
        }
        black = tuple(-channel_mean / channel_std for channel_mean, channel_std in zip(mean, std, strict=True))
        self.augment = {"fill": black, **augment}

    def loss(
        self, model: nnx.Module, batch: Mapping[str, jax.Array], rngs: nnx.Rngs
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the mean cross-entropy with the mixed and smoothed labels, and the accuracy on the likeliest."""
        images, targets = self.augmented(batch, rngs)
        accuracy_target = jnp.argmax(targets, -1)
        targets = optax.smooth_labels(targets, self.label_smoothing)
        logits = model(images, rngs=rngs)
        loss = self.per_example_loss(logits, targets).mean()
        return loss, {"accuracy": (jnp.argmax(logits, -1) == accuracy_target).mean()}

    def augmented(self, batch: Mapping[str, jax.Array], rngs: nnx.Rngs) -> tuple[jax.Array, jax.Array]:
        """Return what the model trains on: float32 images and mixed, not yet smoothed targets `[B, num_classes]`."""
        self._check_channels(batch["image"])
        images = augmentation.augment(rngs.augment(), batch["image"], mean=self.mean, std=self.std, **self.augment)
        targets = jax.nn.one_hot(batch["label"], self.num_classes)
        return augmentation.mix(rngs.augment(), images, targets, **self.mix)

    def per_example_loss(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Return the training loss `[B]` of logits and soft targets `[B, num_classes]`; for subclasses to replace."""
        if self.loss_name == "softmax":
            return optax.softmax_cross_entropy(logits, targets)
        if self.target_threshold >= 0:
            targets = (targets > self.target_threshold).astype(targets.dtype)
        return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)

    def evaluate(self, model: nnx.Module, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return the sums of loss, hits and hits among the five likeliest over the valid examples."""
        logits = model(self._normalize(batch["image"]))
        labels, valid = batch["label"], batch["valid"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        _, likeliest = jax.lax.top_k(logits, min(5, self.num_classes))  # [B, 5]
        hits = likeliest == labels[:, None]
        return {
            "loss": jnp.where(valid, losses, 0.0).sum(),
            "accuracy": (hits[:, 0] & valid).sum(),
            "top5": (hits.any(-1) & valid).sum(),
            "count": valid.sum(),
        }

    def summarize(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return accuracy, top5 and loss as means, and the number of examples."""
        count = sums["count"]
        return {name: sums[name] / count for name in ("accuracy", "top5", "loss")} | {"count": int(count)}

    def _normalize(self, images_u8: jax.Array) -> jax.Array:
        self._check_channels(images_u8)
        return augmentation.normalize(images_u8, mean=self.mean, std=self.std)

    def _check_channels(self, images: jax.Array) -> None:
        if len(self.mean) not in (1, images.shape[-1]):
            raise UserError(f"mean={self.mean} has {len(self.mean)} values, the images {images.shape[-1]} channels")

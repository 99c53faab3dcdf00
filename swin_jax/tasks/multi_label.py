"""Image classification where several labels of an image may be right, or none: ImageNet-ReaL (arXiv 2006.07159)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from swin_jax.tasks.classification import Classification


class MultiLabel(Classification):
    """Evaluation on bool labels `[B, num_classes]`: a prediction is right if any label is it.

    Images without a label are not counted. The loss is the negative logarithm of the probability of all labels.
    """

    def evaluate(self, model: nnx.Module, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return the sums of loss, hits and hits among the five likeliest over the valid examples with a label."""
        logits = model(self._normalize(batch["image"]))
        labels = batch["label"]
        valid = batch["valid"] & labels.any(-1)
        _, likeliest = jax.lax.top_k(logits, min(5, self.num_classes))  # [B, 5]
        hits = jnp.take_along_axis(labels, likeliest, axis=-1)
        right = jax.nn.logsumexp(jnp.where(labels, logits, -jnp.inf), axis=-1)
        losses = jax.nn.logsumexp(logits, axis=-1) - right
        return {
            "loss": jnp.where(valid, losses, 0.0).sum(),
            "accuracy": (hits[:, 0] & valid).sum(),
            "top5": (hits.any(-1) & valid).sum(),
            "count": valid.sum(),
        }

"""Images to the vectors that a model's head would see."""

from collections.abc import Iterable, Mapping

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from swin_jax.data.augment import normalize
from swin_jax.errors import UserError
from swin_jax.training import sharding
from swin_jax.training.state import ModelDef, TrainState

HEADS = ("head", "head_dist")


def without_heads(model: nnx.Module) -> nnx.Module:
    """Return the model with its heads taken off, in place: it then returns what the head would see, `[B, C]`.

    Raises UserError for a model that has no head to take off.
    """
    if not hasattr(model, "head"):
        raise UserError(f"{type(model).__name__} has no head, so it is not known which features to probe")
    for name in HEADS:
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
    return model


def frozen_features(
    state: TrainState,
    model_def: ModelDef,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    mesh: Mesh,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the features float32 `[N, C]` and labels `[N]` of all valid examples of evaluation batches, in order.

    The averaged parameters are used where there are any. Every host has all of them.
    """

    def extract(params, model_state, batch):
        model = without_heads(model_def.merge(params, model_state))
        return model(normalize(batch["image"], mean=mean, std=std)), batch["label"], batch["valid"]

    extract = jax.jit(extract, out_shardings=sharding.replicated(mesh))
    features, labels = [], []
    with jax.set_mesh(mesh):
        for batch in batches:
            outputs = extract(state.eval_params, state.model_state, sharding.global_batch(batch, mesh))
            vectors, numbers, valid = jax.device_get(outputs)
            features.append(vectors[valid])
            labels.append(numbers[valid])
    return np.concatenate(features), np.concatenate(labels)

"""Weighted k-nearest-neighbour classification on frozen features (1805.01978, section 3.4, as DINO evaluates it)."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from swin_jax.errors import UserError

CHUNK = 512  # test examples at a time: [CHUNK, N] similarities in memory


def neighbor_accuracies(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    num_classes: int,
    neighbors: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
) -> dict[str, float]:
    """Return `20_nn`, the accuracy by a vote of the 20 nearest training examples, for each number of neighbours.

    Nearness is the cosine of the angle between features `[N, C]`; a neighbour's vote for its class weighs
    exp(cosine / temperature). More neighbours than there are examples means all. Raises UserError for values that
    make no sense.
    """
    if min(neighbors, default=0) < 1 or temperature <= 0:
        raise UserError(f"neighbors={tuple(neighbors)} and temperature={temperature} must all be positive")
    counts = tuple(min(count, len(train[1])) for count in neighbors)
    bank, labels = jnp.asarray(_unit(train[0])), jnp.asarray(train[1])
    hits = np.zeros(len(neighbors))
    for start in range(0, len(test[1]), CHUNK):
        queries, truth = test[0][start : start + CHUNK], test[1][start : start + CHUNK]
        padded = np.pad(_unit(queries), ((0, CHUNK - len(queries)), (0, 0)))  # one compiled program for all
        predictions = _vote(bank, labels, padded, temperature, neighbors=counts, num_classes=num_classes)
        hits += (np.asarray(predictions)[:, : len(truth)] == truth).sum(-1)
    return {f"{count}_nn": float(hit / len(test[1])) for count, hit in zip(neighbors, hits, strict=True)}


@partial(jax.jit, static_argnames=("neighbors", "num_classes"))
def _vote(bank, labels, queries, temperature, *, neighbors: tuple[int, ...], num_classes: int) -> jax.Array:
    """Return the class that wins, `[len(neighbors), B]`."""
    cosines, nearest = jax.lax.top_k(queries @ bank.T, max(neighbors))  # [B, K]
    # exp(cosine / temperature) up to a factor that all votes share; it cannot overflow at a low temperature
    weights = jnp.exp((cosines - cosines[:, :1]) / temperature)
    rows, voted = jnp.arange(len(queries))[:, None], labels[nearest]
    none = jnp.zeros((len(queries), num_classes))
    votes = [none.at[rows, voted[:, :count]].add(weights[:, :count]) for count in neighbors]
    return jnp.stack(votes).argmax(-1)


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)

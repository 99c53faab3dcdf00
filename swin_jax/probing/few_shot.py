"""Few-shot classification by regularised least squares on frozen features, as big_vision's fewshot_lsr evaluates it."""

from collections.abc import Sequence

import numpy as np

from swin_jax.errors import UserError

BIAS = 100.0  # the constant feature: so large that its weight is hardly regularised
EPSILON = 1e-5


def choose_shots(labels: np.ndarray, *, num_classes: int, shots: int, seed: int) -> np.ndarray:
    """Return the positions of `shots` examples of each class, fewer where a class has fewer.

    Drawn with numpy's generator of `seed`, class after class, as the protocol does: few shots are part of more.
    """
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(np.flatnonzero(labels == label)) for label in range(num_classes)]
    return np.concatenate([order[:shots] for order in orders])


def least_squares(features: np.ndarray, labels: np.ndarray, *, num_classes: int, l2: float) -> np.ndarray:
    """Return the weights `[C + 1, num_classes]` of ridge regression from standardised features to targets of ±1.

    The last row belongs to the constant feature `BIAS`. Whichever of the two normal equations is smaller is solved.
    """
    inputs = np.pad(features, ((0, 0), (0, 1)), constant_values=BIAS)
    targets = 2.0 * (labels[:, None] == np.arange(num_classes)) - 1.0
    num_examples, width = inputs.shape
    if num_examples >= width:
        return np.linalg.solve(inputs.T @ inputs + l2 * np.eye(width), inputs.T @ targets)
    return inputs.T @ np.linalg.solve(inputs @ inputs.T + l2 * np.eye(num_examples), targets)


def few_shot_accuracies(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    num_classes: int,
    shots: Sequence[int] = (1, 5, 10, 25),
    l2: float = 1024.0,
    seeds: int = 3,
) -> dict[str, float]:
    """Return `5_shot`, the mean accuracy over the seeds, and `5_shot_std`, for each number of shots.

    Args:
        train, test: features `[N, C]` and labels `[N]`.
        num_classes: classes that labels may have; one without an example in `train` is never right.
        shots: examples of each class to learn from.
        l2: factor of the squared weights; the protocol's is 2**10.
        seeds: how often to draw the examples anew.

    Features are standardised by the mean and deviation of the chosen examples. Raises UserError for values that make
    no sense.
    """
    if min(shots, default=0) < 1 or l2 <= 0 or seeds < 1:
        raise UserError(f"shots={tuple(shots)}, l2={l2} and seeds={seeds} must all be positive")
    # In float64: the smaller eigenvalues of few examples would drown in float32's rounding.
    train_features, test_features = (np.asarray(features, np.float64) for features, _ in (train, test))
    figures = {}
    for count in shots:
        accuracies = []
        for seed in range(seeds):
            chosen = choose_shots(train[1], num_classes=num_classes, shots=count, seed=seed)
            mean, deviation = train_features[chosen].mean(0), train_features[chosen].std(0) + EPSILON
            weights = least_squares(
                (train_features[chosen] - mean) / deviation, train[1][chosen], num_classes=num_classes, l2=l2
            )
            scores = (test_features - mean) / deviation @ weights[:-1] + BIAS * weights[-1]
            accuracies.append((scores.argmax(-1) == test[1]).mean())
        figures[f"{count}_shot"] = float(np.mean(accuracies))
        figures[f"{count}_shot_std"] = float(np.std(accuracies))
    return figures

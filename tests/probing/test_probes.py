"""Few-shot least squares and nearest neighbours, against scikit-learn's own."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from swin_jax.errors import UserError
from swin_jax.probing.few_shot import choose_shots, few_shot_accuracies, least_squares
from swin_jax.probing.neighbors import CHUNK, neighbor_accuracies

NUM_CLASSES, WIDTH = 4, 12


def clouds(num_examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes of feature vectors, of very different scales a feature."""
    generator = np.random.default_rng(seed)
    centers = np.random.default_rng(0).normal(size=(NUM_CLASSES, WIDTH))
    labels = generator.integers(0, NUM_CLASSES, num_examples)
    features = centers[labels] + 1.3 * generator.normal(size=(num_examples, WIDTH))
    return (features * np.logspace(-2, 2, WIDTH) + 3).astype(np.float32), labels


@pytest.mark.parametrize("num_examples", [6, 40], ids=["fewer examples than features", "more"])
def test_least_squares_is_ridge_regression(num_examples):
    features, labels = clouds(num_examples, 1)
    features = features.astype(np.float64)
    features = (features - features.mean(0)) / features.std(0)
    weights = least_squares(features, labels, num_classes=NUM_CLASSES, l2=3.0)
    ridge = Ridge(alpha=3.0, fit_intercept=False, solver="svd")
    ridge.fit(np.pad(features, ((0, 0), (0, 1)), constant_values=100.0), 2.0 * np.eye(NUM_CLASSES)[labels] - 1)
    np.testing.assert_allclose(weights, ridge.coef_.T, atol=1e-9)


def test_few_shot_accuracy_is_that_of_ridge_regression_on_the_same_examples():
    train, test = clouds(200, 2), clouds(300, 3)
    expected = []
    for seed in range(3):
        generator = np.random.default_rng(seed)  # the protocol's draw
        chosen = np.concatenate([generator.permutation(np.where(train[1] == c)[0])[:5] for c in range(NUM_CLASSES)])
        mean, deviation = train[0][chosen].mean(0), train[0][chosen].std(0) + 1e-5
        inputs = [
            np.pad((x - mean) / deviation, ((0, 0), (0, 1)), constant_values=100.0) for x in (train[0][chosen], test[0])
        ]
        ridge = Ridge(alpha=1024.0, fit_intercept=False).fit(inputs[0], 2.0 * np.eye(NUM_CLASSES)[train[1][chosen]] - 1)
        expected.append((ridge.predict(inputs[1]).argmax(-1) == test[1]).mean())
    figures = few_shot_accuracies(train, test, num_classes=NUM_CLASSES, shots=(5,))
    assert figures["5_shot"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert figures["5_shot_std"] == pytest.approx(np.std(expected), abs=1e-9)
    assert 0.5 < figures["5_shot"] < 1


def test_shots_are_of_each_class_and_nested():
    labels = np.array([0] * 10 + [1] * 3 + [3] * 10)
    five, two = (choose_shots(labels, num_classes=4, shots=shots, seed=7) for shots in (5, 2))
    assert np.bincount(labels[five], minlength=4).tolist() == [5, 3, 0, 5]  # as many as there are
    assert set(two) < set(five)
    assert set(choose_shots(labels, num_classes=4, shots=5, seed=8)) != set(five)


def test_votes_are_those_of_scikit_learn():
    train, test = clouds(300, 4), clouds(CHUNK + 40, 5)
    figures = neighbor_accuracies(train, test, num_classes=NUM_CLASSES, neighbors=(1, 7, 1000))
    for count, asked in ((1, 1), (7, 7), (300, 1000)):
        weigh = lambda distances: np.exp((1 - distances) / 0.07)  # noqa: E731
        reference = KNeighborsClassifier(count, metric="cosine", algorithm="brute", weights=weigh)
        assert figures[f"{asked}_nn"] == pytest.approx(reference.fit(*train).score(*test), abs=1.5 / len(test[1]))
    assert len(set(figures.values())) == 3


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        (few_shot_accuracies, {"shots": (0,)}, r"shots=\(0,\)"),
        (few_shot_accuracies, {"l2": 0.0}, "l2=0.0"),
        (few_shot_accuracies, {"seeds": 0}, "seeds=0"),
        (neighbor_accuracies, {"neighbors": (3, -1)}, r"neighbors=\(3, -1\)"),
        (neighbor_accuracies, {"temperature": 0.0}, "temperature=0.0"),
    ],
)
def test_values_that_make_no_sense(call, options, message):
    with pytest.raises(UserError, match=message):
        call(clouds(20, 0), clouds(5, 1), num_classes=NUM_CLASSES, **options)

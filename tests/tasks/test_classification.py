import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swin_jax.errors import UserError
from swin_jax.tasks import create_task


class Recorder:
    """A model that returns fixed logits and keeps the images it was given."""

    def __init__(self, logits):
        self.logits = jnp.asarray(logits, jnp.float32)

    def __call__(self, images, *, rngs=None):
        self.images = images
        return self.logits


def make_task(**options):
    return create_task("classification", **{"num_classes": 6, "mean": (0.5,), "std": (0.25,), **options})


def make_batch(labels):
    return {"image": jnp.full((len(labels), 4, 4, 1), 255, jnp.uint8), "label": jnp.asarray(labels, jnp.int32)}


def rngs():
    return nnx.Rngs(dropout=0, augment=1)


LOGITS = np.random.default_rng(0).normal(size=(4, 6))
LOG_PROBABILITIES = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_torch_cross_entropy(smoothing):
    labels = [0, 5, 2, 1]
    model = Recorder(LOGITS)
    loss, metrics = make_task(label_smoothing=smoothing).loss(model, make_batch(labels), rngs())
    nll = -LOG_PROBABILITIES[np.arange(4), labels]
    expected = (1 - smoothing) * nll - smoothing * LOG_PROBABILITIES.mean(-1)
    assert float(loss) == pytest.approx(expected.mean(), rel=1e-6)
    assert float(metrics["accuracy"]) == pytest.approx((LOGITS.argmax(-1) == labels).mean())
    np.testing.assert_allclose(model.images, 2.0)


@pytest.mark.parametrize(
    ("smoothing", "threshold", "right", "wrong"),
    [(0.0, -1.0, 1.0, 0.0), (0.3, -1.0, 0.75, 0.05), (0.3, 0.06, 1.0, 0.0)],
)
def test_sigmoid_loss_is_binary_cross_entropy(smoothing, threshold, right, wrong):
    labels = [0, 5, 2, 1]
    task = make_task(loss="sigmoid", target_threshold=threshold, label_smoothing=smoothing)
    loss, metrics = task.loss(Recorder(LOGITS), make_batch(labels), rngs())
    probabilities = 1 / (1 + np.exp(-LOGITS))
    targets = np.where(np.eye(6)[labels] == 1, right, wrong)
    expected = -(targets * np.log(probabilities) + (1 - targets) * np.log(1 - probabilities)).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx((LOGITS.argmax(-1) == labels).mean())


def test_deit_iii_counts_both_images_of_a_mixed_one():
    task = make_task(loss="sigmoid", target_threshold=0.0)
    targets = jnp.zeros((1, 6)).at[0, 1].set(0.93).at[0, 4].set(0.07)
    both = jnp.zeros((1, 6)).at[0, jnp.array([1, 4])].set(1.0)
    expected = np.logaddexp(0, LOGITS[:1]).mean() - LOGITS[0, [1, 4]].sum() / 6
    assert float(task.per_example_loss(jnp.asarray(LOGITS[:1]), targets)[0]) == pytest.approx(expected, rel=1e-5)
    plain = make_task(loss="sigmoid").per_example_loss(jnp.asarray(LOGITS[:1]), both)
    assert float(plain[0]) == pytest.approx(expected, rel=1e-5)


def test_mixed_images_have_mixed_targets():
    task = make_task(mixup_alpha=1.0)
    batch = make_batch([0, 1, 2, 3])
    batch["image"] = jnp.asarray(np.arange(4)[:, None, None, None] * 60 + np.zeros((4, 4, 4, 1)), jnp.uint8)
    model = Recorder(LOGITS)
    loss, _ = task.loss(model, batch, rngs())
    plain = (np.arange(4) * 60 / 255 - 0.5) / 0.25
    share = (model.images[0, 0, 0, 0] - plain[3]) / (plain[0] - plain[3])
    assert 0 < share < 1
    nll = -LOG_PROBABILITIES
    expected = [share * nll[i, i] + (1 - share) * nll[i, 3 - i] for i in range(4)]
    assert float(loss) == pytest.approx(float(np.mean(expected)), rel=1e-4)


def test_background_of_augmentation_is_black():
    model = Recorder(LOGITS)
    make_task(augment={"translate": 0.5}).loss(model, make_batch([0, 1, 2, 3]), rngs())
    assert float(model.images.min()) == pytest.approx((0 - 0.5) / 0.25)


def test_evaluation_sums_valid_examples():
    labels = [int(LOGITS[0].argmax()), int(LOGITS[1].argmin()), int(np.argsort(LOGITS[2])[-5]), 0]
    batch = make_batch(labels) | {"valid": jnp.array([True, True, True, False])}
    sums = make_task().evaluate(Recorder(LOGITS), batch)
    assert {name: int(sums[name]) for name in ("accuracy", "top5", "count")} == {"accuracy": 1, "top5": 2, "count": 3}
    assert float(sums["loss"]) == pytest.approx(-LOG_PROBABILITIES[np.arange(3), labels[:3]].sum(), rel=1e-5)
    figures = make_task().summarize({name: float(value) for name, value in sums.items()})
    assert figures["accuracy"] == pytest.approx(1 / 3)
    assert figures["count"] == 3


def test_few_classes_have_a_top5():
    logits = np.eye(3)
    batch = make_batch([0, 0, 0]) | {"valid": jnp.ones(3, bool)}
    sums = make_task(num_classes=3).evaluate(Recorder(logits), batch)
    assert int(sums["top5"]) == 3


def test_padding_of_not_a_number_counts_nothing():
    logits = np.array([[1.0, 0.0], [np.nan, np.nan]])
    batch = make_batch([0, 0]) | {"valid": jnp.array([True, False])}
    sums = jax.device_get(make_task(num_classes=2).evaluate(Recorder(logits), batch))
    assert np.isfinite(sums["loss"])
    assert sums["accuracy"] == 1


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "sigmoid", "target_threshold": 0.0, "label_smoothing": 0.1},
        {"target_threshold": 0.0},
        {"label_smoothing": 1.0},
        {"mean": (0.5, 0.5)},
        {"std": (0.0,)},
        {"mean": (0.5,) * 3, "std": (0.5,) * 3},
    ],
)
def test_options_that_do_not_fit(options):
    with pytest.raises(UserError):
        make_task(**options).loss(Recorder(LOGITS), make_batch([0, 1, 2, 3]), rngs())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix_prob": 1.5}, "mix_prob=1.5 must be a probability"),
        ({"mix_switch_prob": -0.5}, "mix_switch_prob=-0.5"),
        ({"mixup_alpha": -0.8}, "mixup_alpha=-0.8"),
        ({"augment": {"erasing": 2.0}}, "erasing=2.0"),
        ({"augment": {"policy": "rand-m99"}}, "m=99 is above mmax=10"),
        ({"augment": {"policy": "autoaugment"}}, "unknown policy 'autoaugment'"),
    ],
)
def test_augmentation_that_cannot_be_is_told_when_built(options, message):
    with pytest.raises(UserError, match=message):
        make_task(**options)


def test_unknown_loss_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'sigmoid'"):
        make_task(loss="sigmod")


def test_tasks_by_name():
    with pytest.raises(UserError, match="did you mean 'classification'"):
        create_task("clasification")
    with pytest.raises(UserError, match="cannot be imported"):
        create_task("no_such_module:Task")
    assert create_task("fractions:Fraction", numerator=1) == 1

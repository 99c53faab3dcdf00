"""The learning rate of each kind of recipe is the official scheduler's, at every update.

tests/test_recipes.py holds every file of configs/imagenet against the published numbers at some updates.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from swin_jax.commands import load_config
from swin_jax.training import experiment
from tests.convert import goldens
from tests.golden.learning_rates import official_learning_rates

CONFIGS = Path(__file__).parents[2] / "configs"
SWIN = ("swin_tiny", "swin_base_384_finetune", "swin_tiny_22k", "swin_tiny_22kto1k_finetune")  # one of each kind
RECIPES = [
    *sorted(
        f"{folder}/{path.name}" for folder in ("digits", "fashion_mnist") for path in CONFIGS.glob(f"{folder}/*.py")
    ),
    *(f"imagenet/{name}.py" for name in SWIN),
]
# Of digits, what a stratified fifth of the 1,797 leaves.
TRAINING_IMAGES = {"digits": 1437, "fashion_mnist": 60_000, "tfds:imagenet2012": 1_281_167}
TRAINING_IMAGES["folder:imagenet22k"] = 14_197_122


@pytest.fixture
def build(monkeypatch):
    """Return the function from a recipe to its config and what the loop runs, less the data and the model."""

    def build(recipe: str):
        config = load_config(CONFIGS / recipe)
        inputs = SimpleNamespace(
            num_examples=TRAINING_IMAGES[config.data.source], model_options={}, task_options={"num_classes": 10}
        )
        monkeypatch.setattr(experiment, "open_inputs", lambda config, **options: inputs)
        return config, experiment.build(config, mesh=None)

    monkeypatch.setattr(experiment, "abstract_state", lambda *arguments, **options: (None, None, None))
    return build


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_rate_of_a_recipe_is_that_of_the_official_formula(recipe, build):
    config, built = build(recipe)
    optimizer = config.optimizer
    if optimizer.schedule != "cosine":
        pytest.skip(f"{recipe} has a {optimizer.schedule} schedule")
    updates_per_epoch = TRAINING_IMAGES[config.data.source] // config.batch_size
    expected = official_learning_rates(
        base_lr=optimizer.learning_rate,
        min_lr=optimizer.final_learning_rate,
        warmup_lr=optimizer.warmup_learning_rate,
        warmup_steps=int(optimizer.warmup_epochs * updates_per_epoch),
        total_steps=config.total_epochs * updates_per_epoch,
    )
    assert built.total_steps == len(expected)
    rates = jax.jit(jax.vmap(built.schedule))(np.arange(len(expected)))
    np.testing.assert_allclose(rates, expected, rtol=2e-6)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [("imagenet/swin_tiny.py", "imagenet_1k"), ("imagenet/swin_base_384_finetune.py", "fine_tune_384")],
)
def test_imagenet_recipes_have_the_rates_that_the_official_scheduler_gave(recipe, name, build):
    """With the hyperparameters of the official configs, as tests/golden/training_goldens.py has them."""
    _, built = build(recipe)
    values = json.loads(str(goldens.part("learning_rate_curves", "hyperparameters")[name]))
    assert built.total_steps == values["epochs"] * values["updates_per_epoch"]
    rates = jax.vmap(built.schedule)(goldens.part("learning_rate_curves", "steps")[name])
    np.testing.assert_allclose(rates, goldens.part("learning_rate_curves", "rates")[name], rtol=2e-6)

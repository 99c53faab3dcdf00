"""Augmentation as part of a run: the recipe of the ImageNet configs, on any devices, and what check_config refuses."""

from pathlib import Path

import jax
import numpy as np
import pytest

from swin_jax.commands import load_config
from swin_jax.errors import UserError
from swin_jax.tasks import create_task, task_arguments
from swin_jax.training import sharding
from swin_jax.training.default_config import check_config, default_config
from swin_jax.training.step import step_rngs

CONFIGS = Path(__file__).parents[2] / "configs" / "imagenet"
COMPILE_FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def recipe(name):
    return load_config(str(CONFIGS / f"{name}.py"), ()).task.to_dict()


@pytest.mark.parametrize("name", ["swin_tiny", "swin_base_384_finetune"])
def test_the_imagenet_configs_have_the_published_recipe(name):
    """Microsoft's config.py (AUG and TRAIN): the host only crops, everything else is on the device."""
    task, data = recipe(name), load_config(str(CONFIGS / f"{name}.py"), ()).data
    assert (task["mixup_alpha"], task["cutmix_alpha"], task["mix_prob"], task["mix_switch_prob"]) == (0.8, 1.0, 1, 0.5)
    on = {key: value for key, value in task["augment"].items() if value}
    assert on == {"policy": "rand-m9-mstd0.5-inc1", "flip": True, "erasing": 0.25, "interpolation": "bicubic"}
    assert (data.crop, data.crop_scale, data.flip, data.policy, data.repeats) == (
        "random_resized",
        (0.08, 1.0),
        False,
        "",
        1,
    )


def test_the_same_batch_on_one_and_eight_devices_and_at_every_return_to_the_step():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    options = {key: value for key, value in recipe("swin_tiny").items() if key in task_arguments("classification")}
    task = create_task("classification", num_classes=10, **options)
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (16, 24, 20, 3), np.uint8), "label": np.arange(16, dtype=np.int32) % 10}

    def augmented(num_devices):
        mesh = sharding.make_mesh(devices=jax.devices()[:num_devices])
        run = jax.jit(
            lambda batch, seed, step: task.augmented(batch, step_rngs(seed, step)), compiler_options=COMPILE_FAST
        )
        with jax.set_mesh(mesh):
            placed = sharding.global_batch(batch, mesh)
            outs = [jax.device_get(run(placed, *at)) for at in ((0, 7), (0, 8), (1, 7), (0, 7))]
        assert len(placed["image"].sharding.device_set) == num_devices
        return outs

    one, eight = augmented(1), augmented(8)
    for (images, targets), (other_images, other_targets) in zip(one, eight, strict=True):
        np.testing.assert_allclose(images, other_images, atol=1e-5)
        np.testing.assert_allclose(targets, other_targets, atol=1e-6)
        np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(one[0][0], one[3][0])
    for other in (1, 2):
        assert np.mean(np.any(one[0][0] != one[other][0], axis=(1, 2, 3))) > 0.9


def test_two_policies_and_no_repeats_are_refused():
    config = default_config()
    config.data.policy, config.task.augment.policy = "original", "rand-m9-mstd0.5-inc1"
    with pytest.raises(UserError, match="would both act"):
        check_config(config)
    config.data.policy, config.data.repeats = "", 0
    with pytest.raises(UserError, match="repeats=0 must be at least 1"):
        check_config(config)

"""A small model with what real ones have: a list of layers, dropout, a constant array."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from swin_jax.tasks import create_task
from swin_jax.training import loop, sharding
from swin_jax.training.metrics import MetricWriter
from swin_jax.training.optimizer import create_optimizer
from swin_jax.training.parameter_groups import frozen_mask
from swin_jax.training.schedules import create_schedule
from swin_jax.training.state import abstract_state
from swin_jax.training.step import make_eval_step, make_train_step


class SmallModel(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.blocks = nnx.List([nnx.Linear(16, 64, use_bias=False, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)])
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.scale = np.full((64,), 2.0, np.float32)
        self.dropout = nnx.Dropout(0.2)

    def __call__(self, images, *, rngs=None):
        hidden = self.blocks[0](images.reshape(len(images), -1))
        hidden = jax.nn.relu(self.norm(hidden, use_running_average=rngs is None)) * self.scale
        return self.blocks[1](self.dropout(hidden, rngs=rngs, deterministic=rngs is None))


class Setup:
    """Everything of a run of the small model, or another one, on the first `num_devices` devices."""

    def __init__(
        self,
        num_devices: int = 1,
        *,
        model=SmallModel,
        task=None,
        ema_decay: float = 0.0,
        accumulation_steps: int = 1,
        optimizer: dict | None = None,
        **axes: int,
    ):
        self.mesh = sharding.make_mesh(devices=jax.devices()[:num_devices], **axes)
        self.task = task or create_task("classification", num_classes=10, mean=(0.5,), std=(0.5,), label_smoothing=0.1)
        schedule = create_schedule(
            schedule="cosine",
            learning_rate=1e-2,
            final_learning_rate=0.0,
            warmup_learning_rate=1e-3,
            warmup_steps=2,
            total_steps=20,
        )
        options = {
            "name": "adamw",
            "weight_decay": 0.05,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "momentum": 0.9,
            "nesterov": True,
            "grad_clip_norm": 1.0,
            **(optimizer or {}),
        }
        self.optimizer = create_optimizer(schedule=schedule, **options)
        self.target, self.model_def, self.init = abstract_state(
            lambda: model(rngs=nnx.Rngs(0)), optimizer=self.optimizer, ema=ema_decay > 0, mesh=self.mesh
        )
        common = {"abstract_state": self.target, "mesh": self.mesh}
        self.train_step = make_train_step(
            self.model_def,
            self.task,
            optimizer=self.optimizer,
            schedule=schedule,
            ema_decay=ema_decay,
            accumulation_steps=accumulation_steps,
            frozen=partial(frozen_mask, learning_rate_multipliers=options.get("learning_rate_multipliers", ())),
            **common,
        )
        self.eval_step = make_eval_step(self.model_def, self.task, **common)

    def batch(self, number: int = 0, size: int = 16):
        rng = np.random.default_rng(number)
        batch = {
            "image": rng.integers(0, 256, (size, 4, 4, 1), np.uint8),
            "label": rng.integers(0, 10, size).astype(np.int32),
        }
        return sharding.global_batch(batch, self.mesh)


@pytest.fixture(scope="session")
def setup():
    return Setup(ema_decay=0.9)


@pytest.fixture
def cut_off(monkeypatch):
    """Return the function that trains as `loop.train` does, until the power is cut after so many updates."""

    def train(config, *, workdir, after):
        push = MetricWriter.push

        def pushing(self, step, metrics):
            push(self, step, metrics)
            if step == after:
                raise RuntimeError("power cut")

        with monkeypatch.context() as patch:
            patch.setattr(MetricWriter, "push", pushing)
            with pytest.raises(RuntimeError, match="power cut"):
                loop.train(config, workdir=workdir)

    return train

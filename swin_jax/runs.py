"""A run's checkpoint, opened for evaluation, export, generation and pictures."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Collection, Sequence

import jax
from flax import nnx
from ml_collections import ConfigDict

from swin_jax.commands import config_from_json
from swin_jax.errors import UserError
from swin_jax.named import only_allowed
from swin_jax.training import sharding
from swin_jax.training.checkpoint import Restored
from swin_jax.training.experiment import Experiment, build, open_checkpoints
from swin_jax.training.workdir import read_config, refuse_links


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run was, and one of its checkpoints."""

    config: ConfigDict
    experiment: Experiment
    restored: Restored

    def model(self) -> nnx.Module:
        """Return the model with the parameters that are evaluated: the averaged ones where there are any."""
        state = self.restored.state
        return self.experiment.model_def.merge(state.eval_params, state.model_state)


def open_run(
    workdir: pathlib.Path,
    *,
    checkpoint: str = "best",
    devices: Sequence[jax.Device] | None = None,
    reads_text: bool = True,
    allow: Collection[str] = (),
) -> Run:
    """Open a checkpoint of a run (`best`, `latest` or a step) on all devices, or on those given.

    Without `reads_text` the texts of a run on text are not read, and need not be there: for what wants its model alone.
    The run may be a stranger's: of the classes and functions `module:Name` that its config names, only those in `allow`
    are imported. Raises UserError for another one, and if the folder holds no run, or no checkpoint that can be used.
    """
    refuse_links(workdir)
    config = config_from_json(read_config(workdir))
    mesh = sharding.make_mesh(devices=devices)
    with only_allowed(allow):
        experiment = build(config, mesh, workdir=workdir, reads_text=reads_text)
    with jax.set_mesh(mesh), contextlib.closing(open_checkpoints(workdir, config, experiment, read_only=True)) as found:
        restored = found.restore(experiment.target, which=checkpoint)
    if restored is None:
        raise UserError(f"{workdir} has no checkpoint yet")
    return Run(config, experiment, restored)

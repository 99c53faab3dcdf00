"""Write a trained model for others: python -m swin_jax.export --workdir=DIR --out=FILE.safetensors [--checkpoint=best]

Swin and ViT are written in timm's layout, text models built as GPT-2 and Marian are in HF transformers'. The parameters
are those that evaluation uses: the averaged ones where the run has them.
"""

import pathlib
from typing import Any

from absl import flags

from swin_jax.commands import config_from_json, run_command
from swin_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=FLAGS)
flags.DEFINE_string("out", None, "The .safetensors file to write.", flag_values=FLAGS)
flags.DEFINE_string("checkpoint", "best", "best, latest or a step.", flag_values=FLAGS)
flags.mark_flags_as_required(["workdir", "out"], flag_values=FLAGS)


def main(flag_values: flags.FlagValues, overrides: list[str]) -> dict[str, Any]:
    return export_run(
        pathlib.Path(flag_values.workdir), pathlib.Path(flag_values.out), checkpoint=flag_values.checkpoint
    )


def export_run(workdir: pathlib.Path, out: pathlib.Path, *, checkpoint: str = "best") -> dict[str, Any]:
    """Write one checkpoint of a run in the layout published for its model. Raises UserError if that cannot be done."""
    import jax

    from swin_jax.convert.export import published_state_dict, write_safetensors
    from swin_jax.training import sharding
    from swin_jax.training.checkpoint import Checkpoints
    from swin_jax.training.experiment import build
    from swin_jax.training.workdir import read_config

    mesh = sharding.make_mesh()
    experiment = build(config_from_json(read_config(workdir)), mesh)
    with jax.set_mesh(mesh):
        checkpoints = Checkpoints(workdir / "checkpoints", best_metric=experiment.task.best_metric, read_only=True)
        restored = checkpoints.restore(experiment.target, which=checkpoint)
        checkpoints.close()
    if restored is None:
        raise UserError(f"{workdir} has no checkpoint yet")
    model = experiment.model_def.merge(restored.state.eval_params, restored.state.model_state)
    tensors = published_state_dict(model)
    write_safetensors(tensors, out)
    return {
        "step": int(restored.state.step),
        "out": str(out),
        "tensors": len(tensors),
        "parameters": sum(tensor.size for tensor in tensors.values()),
    }


if __name__ == "__main__":
    run_command(main, FLAGS)

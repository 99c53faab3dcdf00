"""Write a trained model for others: python -m swin_jax.export --workdir=DIR --out=FILE.safetensors [--checkpoint=best]

Swin and ViT are written in timm's layout, text models built as GPT-2 and Marian are in HF transformers'. The parameters
are those that evaluation uses: the averaged ones where the run has them.
"""

import pathlib
from collections.abc import Collection
from typing import Any

from absl import flags

from swin_jax.commands import define_allow, run_command

FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=FLAGS)
flags.DEFINE_string("out", None, "The .safetensors file to write.", flag_values=FLAGS)
flags.DEFINE_string("checkpoint", "best", "best, latest or a step.", flag_values=FLAGS)
define_allow(FLAGS)
flags.mark_flags_as_required(["workdir", "out"], flag_values=FLAGS)


def main(flag_values: flags.FlagValues, overrides: list[str]) -> dict[str, Any]:
    return export_run(
        pathlib.Path(flag_values.workdir),
        pathlib.Path(flag_values.out),
        checkpoint=flag_values.checkpoint,
        allow=flag_values.allow,
    )


def export_run(
    workdir: pathlib.Path, out: pathlib.Path, *, checkpoint: str = "best", allow: Collection[str] = ()
) -> dict[str, Any]:
    """Write one checkpoint of a run in the layout published for its model; `allow` as for `open_run`.

    Raises UserError if that cannot be done.
    """
    from swin_jax.convert.export import published_state_dict, write_safetensors
    from swin_jax.runs import open_run

    run = open_run(workdir, checkpoint=checkpoint, allow=allow)
    tensors = published_state_dict(run.model())
    write_safetensors(tensors, out)
    return {
        "step": int(run.restored.state.step),
        "out": str(out),
        "tensors": len(tensors),
        "parameters": sum(tensor.size for tensor in tensors.values()),
    }


if __name__ == "__main__":
    run_command(main, FLAGS)

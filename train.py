"""Train a model: python train.py --config=configs/digits/swin.py --workdir=DIR [--config.total_epochs=3 ...]

The same command on the same workdir goes on from its newest checkpoint.
"""

from typing import Any

from absl import flags

from swin_jax.commands import load_config, run_command

FLAGS = flags.FlagValues()
flags.DEFINE_string("config", None, "Config file; its keys can be set as --config.KEY=VALUE.", flag_values=FLAGS)
flags.DEFINE_string("workdir", None, "Folder for config.json, metrics.jsonl and checkpoints.", flag_values=FLAGS)
flags.DEFINE_bool("distributed", False, "Join the other hosts of a cluster first.", flag_values=FLAGS)
flags.mark_flags_as_required(["config", "workdir"], flag_values=FLAGS)


def main(flag_values: flags.FlagValues, overrides: list[str]) -> dict[str, Any] | None:
    config = load_config(flag_values.config, overrides)

    import jax  # after the flags: a mistake in them is told at once

    from swin_jax.training.loop import train

    result = train(config, workdir=flag_values.workdir, distributed=flag_values.distributed)
    return result if jax.process_index() == 0 else None


if __name__ == "__main__":
    run_command(main, FLAGS)

"""Train a model: python train.py --config=configs/digits/swin.py --workdir=DIR [--config.total_epochs=3 ...]

The same command on the same workdir goes on from its newest checkpoint. SIGTERM and SIGINT end the step, save and exit
with code 75: the same command again goes on.
"""

import traceback

from absl import flags

from swin_jax.commands import RESTART, Ended, Outcome, load_config, run_command
from swin_jax.host_memory import keep_freed_memory

FLAGS = flags.FlagValues()
flags.DEFINE_string("config", None, "Config file; its keys can be set as --config.KEY=VALUE.", flag_values=FLAGS)
flags.DEFINE_string("workdir", None, "Folder for config.json, metrics.jsonl and checkpoints.", flag_values=FLAGS)
flags.DEFINE_bool("distributed", False, "Join the other hosts of a cluster first.", flag_values=FLAGS)
flags.DEFINE_bool("debug_nans", False, "Stop at the operation that makes a NaN; slow.", flag_values=FLAGS)
flags.mark_flags_as_required(["config", "workdir"], flag_values=FLAGS)


def main(flag_values: flags.FlagValues, overrides: list[str]) -> Outcome:
    config = load_config(flag_values.config, overrides)
    import jax  # after the flags: a mistake in them is told at once

    from swin_jax.training.loop import train

    jax.config.update("jax_debug_nans", flag_values.debug_nans or jax.config.jax_debug_nans)
    try:
        result = train(config, workdir=flag_values.workdir, distributed=flag_values.distributed)
    except FloatingPointError:
        if jax.config.jax_debug_nans:  # where the NaN was made is what the user wants to know
            traceback.print_exc()
        raise
    return Ended(result if jax.process_index() == 0 else None, RESTART if "stopped" in result else 0)


if __name__ == "__main__":
    keep_freed_memory()
    run_command(main, FLAGS)

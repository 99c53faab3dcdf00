"""Look at the checkpoints of a run: python -m swin_jax.checkpoint verify DIR

Lists every checkpoint of the workdir DIR as good or damaged, with what is wrong. Each array is read and compared with
the fingerprint that was taken when it was saved. Nothing of the run is imported or changed: it may be a stranger's.
Exits with 0 if all are good, with 1 if one is damaged, with 2 if DIR is no workdir.
"""

import pathlib
import sys
from typing import Any

from absl import flags

from swin_jax.commands import Ended, run_subcommand
from swin_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=FLAGS)
flags.mark_flags_as_required(["workdir"], flag_values=FLAGS)


def main(flag_values: flags.FlagValues, overrides: list[str]) -> Ended:
    result = verify(pathlib.Path(flag_values.workdir))
    return Ended(result, 1 if result["damaged"] else 0)


def verify(workdir: pathlib.Path) -> dict[str, Any]:
    """Print and return which checkpoints of a run are good. Raises UserError if the folder is no workdir."""
    directory = workdir / "checkpoints"
    if not directory.is_dir():
        raise UserError(f"{workdir} is no workdir: it has no folder 'checkpoints'")

    from swin_jax.training.verification import verify_checkpoints

    verdicts = verify_checkpoints(directory)
    for verdict in verdicts:
        name = verdict.name.partition(".")[0]
        print(f"step {name:>8}  {verdict.state}{': ' if verdict.reason else ''}{verdict.reason}")
    good = [int(verdict.name) for verdict in verdicts if verdict.state == "good"]
    return {
        "workdir": str(workdir),
        "newest_good": max(good, default=None),
        "good": good,
        "damaged": {verdict.name: verdict.reason for verdict in verdicts if verdict.state == "damaged"},
        "unfinished": [verdict.name for verdict in verdicts if verdict.state == "unfinished"],
        "set_aside": sorted(path.name for path in workdir.glob("damaged_checkpoints/*")),
    }


COMMANDS = {"verify": (main, FLAGS)}


def with_flag(argv: list[str]) -> list[str]:
    """Return the arguments with the folder of `verify DIR` as a flag."""
    if len(argv) == 3 and not argv[2].startswith("-"):
        return [*argv[:2], f"--workdir={argv[2]}"]
    return argv


if __name__ == "__main__":
    run_subcommand(COMMANDS, with_flag(sys.argv))

"""Evaluate a checkpoint of a run: python -m swin_jax.evaluate --workdir=DIR [--checkpoint=best|latest|STEP]
or published weights: python -m swin_jax.evaluate --model=NAME --pretrained=FILE|hf:ORG/NAME
                      --data=tfds:imagenet2012|folder:PATH [--split=...] [--variant=...] [--protocol=timm|official]

Translations of a run on pairs are scored too: BLEU and chrF, [--beams=4] [--length_penalty=0.6] [--translations=FILE].

The config is the workdir's own, the preprocessing that of the preset; published figures are printed beside the measured
ones. The figures do not depend on the batch size or the devices.
"""

import itertools
import pathlib
import time
from collections.abc import Collection
from typing import Any

from absl import flags

from swin_jax.commands import define_allow, run_command
from swin_jax.errors import UserError
from swin_jax.host_memory import keep_freed_memory

FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=FLAGS)
flags.DEFINE_string("checkpoint", "best", "Of the run: best, latest or a step.", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 0, "Images at a time on all devices; 0: the run's, or 128.", flag_values=FLAGS)
flags.DEFINE_string("model", None, "Name of a published model.", flag_values=FLAGS)
flags.DEFINE_string("pretrained", None, "Its weights: a file, or hf:ORG/NAME.", flag_values=FLAGS)
flags.DEFINE_string("data", None, "Its data: tfds:NAME, folder:PATH, ...", flag_values=FLAGS)
flags.DEFINE_string("split", "", "Of the data; by default the one kept for evaluation.", flag_values=FLAGS)
flags.DEFINE_string("data_dir", "", "Folder of the data, for TFDS.", flag_values=FLAGS)
flags.DEFINE_string("variant", "", "The pre-training as timm's tag, if the file's name has none.", flag_values=FLAGS)
flags.DEFINE_string("protocol", "timm", "Whose preprocessing: timm or official.", flag_values=FLAGS)
flags.DEFINE_integer("image_size", 0, "Side to evaluate at; 0 for the model's own.", flag_values=FLAGS)
flags.DEFINE_integer("beams", 4, "Of translations; 0: none are made.", 0, flag_values=FLAGS)
flags.DEFINE_float("length_penalty", 0.6, "Alpha, of translations.", flag_values=FLAGS)
flags.DEFINE_string("translations", "", "A file to write the translations to.", flag_values=FLAGS)
define_allow(FLAGS)
OF_PUBLISHED = ("model", "pretrained", "data")


def main(flag_values: flags.FlagValues, overrides: list[str]) -> dict[str, Any]:
    given = [name for name in OF_PUBLISHED if flag_values[name].value]
    if not flag_values.workdir and not given:
        raise UserError("--workdir=... is missing, or --model=... --pretrained=... --data=...")
    if flag_values.workdir:
        if given:
            raise UserError(f"--workdir evaluates a run, --{given[0]} published weights: give one of them")
        return evaluate_run(
            pathlib.Path(flag_values.workdir),
            checkpoint=flag_values.checkpoint,
            batch_size=flag_values.batch_size,
            beams=flag_values.beams,
            length_penalty=flag_values.length_penalty,
            translations=flag_values.translations,
            allow=flag_values.allow,
        )
    missing = [name for name in OF_PUBLISHED if name not in given]
    if missing:
        raise UserError(f"--{missing[0]}=... is missing")
    from swin_jax.evaluate_published import evaluate_published

    return evaluate_published(
        flag_values.model,
        flag_values.pretrained,
        data=flag_values.data,
        split=flag_values.split,
        data_dir=flag_values.data_dir,
        batch_size=flag_values.batch_size,
        variant=flag_values.variant,
        protocol=flag_values.protocol,
        image_size=flag_values.image_size,
    )


def evaluate_run(
    workdir: pathlib.Path,
    *,
    checkpoint: str = "best",
    batch_size: int = 0,
    beams: int = 0,
    length_penalty: float = 0.6,
    translations: str = "",
    allow: Collection[str] = (),
) -> dict[str, Any]:
    """Return the figures of one checkpoint over the run's evaluation split. Raises UserError if it cannot be used.

    Of a run on pairs also those of its translations, found with `beams` and written to the file `translations`.
    `allow` as for `open_run`.
    """
    import jax

    from swin_jax.runs import open_run
    from swin_jax.training import sharding
    from swin_jax.training.experiment import compile_steps
    from swin_jax.training.step import evaluate

    if batch_size < 0:
        raise UserError(f"batch_size={batch_size} must be at least 1")
    run = open_run(workdir, checkpoint=checkpoint, allow=allow)
    experiment, state = run.experiment, run.restored.state
    inputs, task, mesh = experiment.inputs, experiment.task, experiment.mesh
    translates = run.config.data.kind == "text_pairs"
    if translations and not (translates and beams):
        raise UserError("--translations=... is of a run on pairs of texts, with --beams=1 or more")
    shards = sharding.batch_shards(mesh)
    batch_size = -(-(batch_size or run.config.batch_size) // shards) * shards
    batches = inputs.eval_batches(batch_size=batch_size)
    with jax.set_mesh(mesh):
        _, eval_step = compile_steps(run.config, experiment)
        evaluate(eval_step, task, itertools.islice(batches, 1), state, mesh)  # compiles
        start = time.perf_counter()
        figures = evaluate(eval_step, task, batches, state, mesh)
        seconds = time.perf_counter() - start
    translated = {}
    if translates and beams:
        from swin_jax.evaluate_translation import evaluate_translation

        translated = evaluate_translation(run, str(workdir), beams=beams, alpha=length_penalty, out=translations)
    return {
        "step": int(state.step),
        **figures,
        f"{inputs.unit}_per_second": round(figures["count"] / seconds, 1),
        **translated,
        "workdir": str(workdir),
    }


if __name__ == "__main__":
    keep_freed_memory()
    run_command(main, FLAGS)

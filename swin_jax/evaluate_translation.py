"""Translations of a run's evaluation pairs, scored by sacrebleu (Post 2018, arXiv 1804.08771)."""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from sacrebleu.metrics import BLEU, CHRF

from swin_jax.errors import UserError
from swin_jax.runs import Run
from swin_jax.text_generator import Search, generator_of_run

BATCH_SIZE = 64


def evaluate_translation(
    run: Run, name: str, *, beams: int, alpha: float, batch_size: int = 0, out: str = ""
) -> dict[str, Any]:
    """Translate the evaluation pairs of a run on one device, and return `score`'s figures and how long it took.

    Args:
        beams, alpha: of the search: hypotheses kept, and the length penalty of arXiv 1609.08144, eq. 14.
        batch_size: pairs at a time; 0 for 64.
        out: a file for the translations, one a line.

    Sources that are longer than the model's context are cut, and counted in `cut_sources`.
    """
    if out and not pathlib.Path(out).parent.is_dir():
        raise UserError(f"there is no folder for {out}")
    generator = generator_of_run(run, name)
    graphdef, arrays = nnx.split(generator.model)
    model = nnx.merge(graphdef, jax.device_put(arrays, jax.local_devices()[0]))
    generator = dataclasses.replace(generator, model=model)
    sources, references = (list(side) for side in zip(*run.experiment.inputs.eval_pairs(), strict=True))

    search = Search(beams=beams, temperature=0.0, alpha=alpha)
    start = time.perf_counter()
    written = generator.translations(sources, search, batch_size=batch_size or BATCH_SIZE, lenient=True)
    seconds = time.perf_counter() - start
    translations = [" ".join(one.text.split()) for one in written]
    if out:
        pathlib.Path(out).write_text("".join(f"{text}\n" for text in translations))
    lengths = [len(ids) + 1 for ids in generator.tokenizer.encode_many(sources)]
    return {
        **score(translations, references, sources),
        "beams": beams,
        "length_penalty": alpha,
        "pairs": len(sources),
        "cut_sources": sum(generator.context is not None and length > generator.context for length in lengths),
        "translation_seconds": round(seconds, 1),
    }


def score(translations: Sequence[str], references: Sequence[str], sources: Sequence[str]) -> dict[str, Any]:
    """Return BLEU and chrF (0 to 100), those of the sources left as they are, and sacrebleu's signatures."""
    figures: dict[str, Any] = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        figures[name] = round(metric.corpus_score(list(translations), [list(references)]).score, 4)
        figures[f"{name}_of_copying"] = round(metric.corpus_score(list(sources), [list(references)]).score, 4)
        figures[f"{name}_signature"] = str(metric.get_signature())
    return figures

"""Generate text with a run:          python -m swin_jax.generate --workdir=DIR --prompt=TEXT [--prompt=TEXT ...]
translate with a run on pairs:     python -m swin_jax.generate --workdir=DIR --source=TEXT [--source=TEXT ...]
or with published weights:         python -m swin_jax.generate --model=gpt2 --pretrained=FILE|hf:ORG/NAME --prompt=TEXT

A language model draws at random (--temperature=0: the likeliest token each time); a translation is the best of 4 beams
with the length penalty of arXiv 1706.03762. The texts are printed, and are in the JSON line without their prompts.
"""

import pathlib
import time
from typing import Any

from absl import flags

from swin_jax.commands import config_from_json, define_allow, run_command
from swin_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=FLAGS)
flags.DEFINE_string("checkpoint", "best", "Of the run: best, latest or a step.", flag_values=FLAGS)
flags.DEFINE_string("model", None, "Name of a published model: gpt2, gpt2_medium, opus_mt, ...", flag_values=FLAGS)
flags.DEFINE_string("pretrained", None, "Its weights: a file, or hf:ORG/NAME.", flag_values=FLAGS)
flags.DEFINE_string("tokenizer", "", "Its tokenizer.json; by default the one beside the weights.", flag_values=FLAGS)
flags.DEFINE_multi_string("prompt", [], "A text to go on with.", flag_values=FLAGS)
flags.DEFINE_multi_string("source", [], "A text to translate.", flag_values=FLAGS)
flags.DEFINE_string("prompts_file", None, "Prompts, or texts to translate, one a line.", flag_values=FLAGS)
flags.DEFINE_integer("max_new_tokens", 0, "0: 200, or 50 more than the source.", 0, flag_values=FLAGS)
flags.DEFINE_integer("beams", None, "1: greedy or sampling; by default 4 to translate.", 1, flag_values=FLAGS)
flags.DEFINE_float("temperature", None, "Divides the logits; 0: greedy.", 0.0, flag_values=FLAGS)
flags.DEFINE_integer("top_k", 0, "Draw from the k likeliest tokens; 0: all.", 0, flag_values=FLAGS)
flags.DEFINE_float("top_p", 1.0, "Draw from the likeliest tokens of this probability.", 0.0, 1.0, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "Of what is drawn.", flag_values=FLAGS)
flags.DEFINE_float("length_penalty", None, "Alpha, of beams; by default 0.6.", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 32, "Texts at a time.", 1, flag_values=FLAGS)

define_allow(FLAGS)


def main(flag_values: flags.FlagValues, overrides: list[str]) -> dict[str, Any]:
    prompts, sources, lines = flag_values.prompt, flag_values.source, flag_values.prompts_file
    if sum(map(bool, (prompts, sources, lines))) != 1:
        raise UserError("give one of --prompt=..., --source=... and --prompts_file=...")
    if bool(flag_values.workdir) == bool(flag_values.model or flag_values.pretrained):
        raise UserError("give either --workdir=... or --model=... and --pretrained=...")
    generator, about = _open(flag_values)
    if lines:
        from swin_jax.data.text.corpora import read_text

        prompts = sources = read_text(pathlib.Path(lines)).removesuffix("\n").split("\n")
    texts, wanted = (sources, "--source") if generator.translates else (prompts, "--prompt")
    if not texts:
        does = "translates" if generator.translates else "continues a text"
        raise UserError(f"{generator.name} {does}: give {wanted}=...")
    search = _search(flag_values, translates=generator.translates)

    start = time.perf_counter()
    write = generator.translations if generator.translates else generator.continuations
    written = write(texts, search, batch_size=flag_values.batch_size)
    seconds = time.perf_counter() - start
    for number, (text, one) in enumerate(zip(texts, written, strict=True)):
        if generator.translates:
            print(one.text)
        else:
            print(f"{'' if number == 0 else chr(10)}{text}{one.text}")
    num_tokens = sum(one.num_tokens for one in written)
    return {
        **about,
        "texts": [one.text for one in written],
        "scores": [round(one.score, 6) for one in written],
        "tokens": num_tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(num_tokens / seconds, 1),
    }


def _open(flag_values: flags.FlagValues) -> tuple[Any, dict[str, Any]]:
    """Return the generator, and what the last line says of it."""
    if not flag_values.workdir:
        for name in ("model", "pretrained"):
            if not flag_values[name].value:
                raise UserError(f"--{name}=... is missing")
        from swin_jax.text_generator import published_generator

        name, pretrained = flag_values.model, flag_values.pretrained
        generator = published_generator(name, pretrained, tokenizer_file=flag_values.tokenizer)
        return generator, {"model": name, "pretrained": pretrained}
    if flag_values.tokenizer:
        raise UserError("--tokenizer is of published weights: a run has its own")
    from swin_jax.training.workdir import read_config

    workdir = pathlib.Path(flag_values.workdir)
    if config_from_json(read_config(workdir)).data.kind == "images":
        raise UserError(f"{workdir} is a run on images, which generates no text")

    import jax

    from swin_jax.runs import open_run
    from swin_jax.text_generator import generator_of_run

    run = open_run(
        workdir,
        checkpoint=flag_values.checkpoint,
        devices=jax.local_devices()[:1],
        reads_text=False,
        allow=flag_values.allow,
    )
    about = {"workdir": str(workdir), "step": int(run.restored.state.step)}
    return generator_of_run(run, str(workdir)), about


def _search(flag_values: flags.FlagValues, *, translates: bool) -> Any:
    """Return how to search. Raises UserError for flags that exclude each other."""
    from swin_jax.text_generator import Search

    temperature, beams = flag_values.temperature, flag_values.beams
    draws = [name for name in ("temperature", "top_k", "top_p") if flag_values[name].present]
    if beams is None:
        beams = 4 if translates and not draws else 1
    if beams > 1 and draws:
        raise UserError(f"--{draws[0]} is of sampling, which --beams={beams} is not")
    if beams == 1 and flag_values.length_penalty is not None:
        raise UserError("--length_penalty is of a beam search: give --beams=... too")
    if temperature is None:
        temperature = 0.0 if translates and not draws else 1.0
    return Search(
        beams=beams,
        temperature=temperature,
        top_k=flag_values.top_k,
        top_p=flag_values.top_p,
        alpha=flag_values.length_penalty,
        max_new_tokens=flag_values.max_new_tokens,
        seed=flag_values.seed,
    )


if __name__ == "__main__":
    run_command(main, FLAGS)

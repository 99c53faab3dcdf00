"""A model that generates text, with all that stands between it and text: tokenizer, first tokens, what ends a text."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from swin_jax.convert import load_pretrained
from swin_jax.convert.readers import local_path
from swin_jax.data.text.tokenizer import Tokenizer
from swin_jax.decoding import LengthPenalty, TokenRules, beam_search, generate, token_lists
from swin_jax.errors import UserError, did_you_mean
from swin_jax.models import create_model, list_models
from swin_jax.runs import Run

NEW_TOKENS = 200  # of a continuation, unless told
MORE_THAN_SOURCE = 50  # tokens a translation may be longer than its source, arXiv 1706.03762, section 6.1
SMALLEST_SOURCE = 16  # sources are padded to this times a power of two: few programs to compile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """How a text is chosen: drawn at random, the likeliest token each time (temperature 0), or by several beams.

    `max_new_tokens` 0 is `NEW_TOKENS`, or `MORE_THAN_SOURCE` more than the source padded, as far as the model goes;
    `alpha` None is the generator's own length penalty.
    """

    beams: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    alpha: float | None = None
    max_new_tokens: int = 0
    seed: int = 0


class Written(NamedTuple):
    """A text, how many tokens it is with its end, and its log-probability, with beams over the length penalty."""

    text: str
    num_tokens: int
    score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextGenerator:
    """Encodes, searches and decodes.

    Args:
        name: of the run or the published model, for messages.
        begin: the tokens before a prompt's own, or those that a translation begins with.
        begin_if_empty: the tokens of an empty prompt; none where the model has not learned how a text begins.
        prefix: whether prompts are prefixes of a prefix language model.
        penalty, stop: of a beam search.
    """

    name: str
    model: nnx.Module
    tokenizer: Tokenizer
    rules: TokenRules
    begin: tuple[int, ...] = ()
    begin_if_empty: tuple[int, ...] = ()
    prefix: bool = False
    penalty: LengthPenalty = dataclasses.field(default_factory=LengthPenalty)
    stop: str = "exact"

    @property
    def translates(self) -> bool:
        return self.model.has_encoder

    @property
    def context(self) -> int | None:
        """The most tokens that a sequence may have; None where there is no limit."""
        return None if self.model.is_rotary else self.model.max_length

    def continuations(self, prompts: Sequence[str], search: Search, *, batch_size: int = 32) -> list[Written]:
        """Return how each prompt goes on. Raises UserError for prompts that the model cannot read."""
        rows = [(*self.begin, *ids) or self.begin_if_empty for ids in self._encode(prompts, "prompt")]
        if not all(rows):
            raise UserError(f"the prompt is empty, and {self.name} knows no token that a text begins with")
        self._check_lengths(prompts, rows, "prompt")
        longest = max(map(len, rows))
        count = search.max_new_tokens or NEW_TOKENS
        if self.context is not None and not search.max_new_tokens:
            count = max(1, min(count, self.context - longest))
        written = []
        for start in range(0, len(rows), batch_size):
            batch, number = _filled(rows[start : start + batch_size], min(batch_size, len(rows)))
            written += self._search(search, batch, count, start, prompt_length=longest)[:number]
        return written

    def translations(
        self, sources: Sequence[str], search: Search, *, batch_size: int = 32, lenient: bool = False
    ) -> list[Written]:
        """Return the translation of each source.

        Sources are sorted by length and padded to few lengths, so that few programs are compiled. `lenient` cuts those
        that are longer than the model's context, and lets unknown characters pass: both are a UserError otherwise.
        """
        rows = [(*ids, self.rules.eos_id) for ids in self._encode(sources, "source", lenient=lenient)]
        if lenient:
            rows = [self.cut(row) for row in rows]
        else:
            self._check_lengths(sources, rows, "source")
        order = np.argsort([len(row) for row in rows], kind="stable")
        written: list[Written | None] = [None] * len(rows)
        for start in range(0, len(rows), batch_size):
            places = order[start : start + batch_size]
            length = self._padded_length(len(rows[places[-1]]))
            count = search.max_new_tokens or self._up_to_context(length + MORE_THAN_SOURCE, len(self.begin))
            batch, _ = _filled([rows[place] for place in places], min(batch_size, len(rows)))
            begins = [self.begin] * len(batch)
            found = self._search(search, begins, count, start, source=batch, source_length=length)
            for place, one in zip(places, found, strict=False):
                written[place] = one
        return written

    def cut(self, row: tuple[int, ...]) -> tuple[int, ...]:
        """Return a source, its end in place, no longer than the model's context."""
        return row if self.context is None or len(row) <= self.context else (*row[: self.context - 1], row[-1])

    def _up_to_context(self, count: int, taken: int) -> int:
        return count if self.context is None else max(1, min(count, self.context - taken))

    def _padded_length(self, length: int) -> int:
        padded = SMALLEST_SOURCE
        while padded < length:
            padded *= 2
        return padded if self.context is None else min(padded, self.context)

    def _encode(self, texts: Sequence[str], name: str, *, lenient: bool = False) -> list[list[int]]:
        rows = [ids.tolist() for ids in self.tokenizer.encode_many(texts)]
        unknown = self.tokenizer.unk_id
        for text, row in zip(texts, rows, strict=True):
            if unknown in row and not lenient:
                unknowns = [character for character in text if unknown in self.tokenizer.encode(character)]
                which = f": {unknowns[0]!r} (U+{ord(unknowns[0]):04X})" if unknowns else ""
                raise UserError(f"the {name} {_shown(text)} has what the tokenizer of {self.name} does not know{which}")
        return rows

    def _check_lengths(self, texts: Sequence[str], rows: Sequence[Sequence[int]], name: str) -> None:
        for text, row in zip(texts, rows, strict=True):
            if self.context is not None and len(row) > self.context:
                limit = f"more than the model's context of {self.context}"
                raise UserError(f"the {name} {_shown(text)} has {len(row)} tokens, {limit}")

    def _search(
        self, search: Search, prompts: Sequence[Sequence[int]], max_new_tokens: int, number: int, **options
    ) -> list[Written]:
        options |= {"max_new_tokens": max_new_tokens, "rules": self.rules, "prefix": self.prefix}
        if search.beams > 1:
            penalty = self.penalty if search.alpha is None else dataclasses.replace(self.penalty, alpha=search.alpha)
            found = beam_search(
                self.model, prompts, beams=search.beams, length_penalty=penalty, stop=self.stop, **options
            )
            tokens, lengths, scores = (part[:, 0] for part in found)
        else:
            tokens, lengths, scores = generate(
                self.model,
                prompts,
                temperature=search.temperature,
                top_k=search.top_k,
                top_p=search.top_p,
                key=jax.random.fold_in(jax.random.key(search.seed), number),
                **options,
            )
        ids = token_lists(tokens, lengths, eos_id=self.rules.eos_id)
        numbers = zip(np.asarray(lengths).tolist(), np.asarray(scores).tolist(), strict=True)
        return [Written(self.tokenizer.decode(row), *pair) for row, pair in zip(ids, numbers, strict=True)]


def generator_of_run(run: Run, name: str) -> TextGenerator:
    """Return the generator of a run on text. Raises UserError where its model generates none."""
    config, model = run.config, run.model()
    if not hasattr(model, "decode"):
        raise UserError(f"{name} has a {type(model).__name__}, which fills in tokens and generates no text")
    tokenizer = run.experiment.inputs.tokenizer
    # Windows of running text have no special tokens: what a text begins and ends with is not learned.
    is_whole = config.data.kind == "text_pairs" or config.text.packed
    begin = (tokenizer.bos_id,) if is_whole else ()
    eos_id = tokenizer.eos_id if is_whole else None
    no_text = {id for id in tokenizer.special_ids.tolist() if id != eos_id}
    no_text |= set(range(tokenizer.vocab_size, model.vocab_size))  # of a vocabulary rounded up
    return TextGenerator(
        name=name,
        model=model,
        tokenizer=tokenizer,
        rules=TokenRules(eos_id, tokenizer.pad_id or 0, suppressed_ids=tuple(sorted(no_text))),
        begin=begin,
        begin_if_empty=begin,
        prefix=config.data.kind == "text" and config.task.objective == "prefix",
    )


def published_generator(name: str, pretrained: str, *, tokenizer_file: str = "") -> TextGenerator:
    """Return the generator of a preset with published weights; GPT-2's and Marian's can be loaded.

    Without `tokenizer_file` it is the tokenizer.json beside the weights. The vocabulary is as large as the tokenizer's.
    """
    if name not in list_models():
        raise UserError(f"unknown model {name!r}{did_you_mean(name, list_models())} (list_models() names all)")
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))
    if not hasattr(model, "decode"):
        raise UserError(f"{name} is a {type(model).__name__}, which generates no text")
    file = local_path(tokenizer_file or _beside(pretrained))
    if not (tokenizer_file or file.is_file()):
        raise UserError(f"there is no {file} beside the weights: --tokenizer=... names one")
    tokenizer = Tokenizer.from_file(file)
    eos_id, pad_id = tokenizer.eos_id, tokenizer.pad_id
    if eos_id is None or (model.has_encoder and pad_id is None):
        raise UserError(
            f"the tokenizer {file} has no token that {name} {'begins' if eos_id is not None else 'ends'} with"
        )
    if tokenizer.vocab_size != model.vocab_size:
        model = nnx.eval_shape(lambda: create_model(name, vocab_size=tokenizer.vocab_size, rngs=nnx.Rngs(0)))
    print(f"{name} from {pretrained}: {load_pretrained(model, pretrained)}")
    if not model.has_encoder:
        begin = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
        return TextGenerator(
            name=name, model=model, tokenizer=tokenizer, rules=TokenRules(eos_id, eos_id), begin_if_empty=begin
        )
    return TextGenerator(  # as Marian's models are published: see docs/pretrained.md
        name=name,
        model=model,
        tokenizer=tokenizer,
        rules=TokenRules(eos_id, pad_id, suppressed_ids=(pad_id,), force_eos=True),
        begin=(pad_id,),
        penalty=LengthPenalty(1.0, form="power"),
        stop="heuristic",
    )


def _beside(pretrained: str) -> str:
    if not pretrained.startswith("hf:"):
        return str(pathlib.Path(pretrained).parent / "tokenizer.json")
    name, at, revision = pretrained.partition("@")
    return "/".join([*name.split("/")[:2], "tokenizer.json"]) + at + revision


def _filled(rows: list, count: int) -> tuple[list, int]:
    """Return the rows and as many copies of the last as `count` asks for, and how many rows there were."""
    return rows + rows[-1:] * (count - len(rows)), len(rows)


def _shown(text: str, length: int = 40) -> str:
    return repr(text if len(text) <= length else f"{text[: length - 3]}...")

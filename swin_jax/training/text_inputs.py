"""Text as the input of a run: a corpus, the tokenizer that the workdir keeps, and rows of tokens."""

import pathlib
from collections.abc import Iterable
from typing import Any

import grain
import jax
from ml_collections import ConfigDict

from swin_jax.data.batching import EvalBatches
from swin_jax.data.text import pipeline
from swin_jax.data.text.corpora import make_documents, make_pairs
from swin_jax.data.text.packing import pack_documents, pack_pairs
from swin_jax.data.text.sequences import tokenize, tokenize_pairs
from swin_jax.data.text.tokenizer import KINDS, Tokenizer, train_tokenizer
from swin_jax.data.text.windows import eval_windows, train_windows
from swin_jax.errors import UserError

TOKENIZER_FILE = "tokenizer.json"


def open_text(
    config: ConfigDict, *, workdir: pathlib.Path | None = None, reads: bool = True
) -> "TextInputs | PairInputs | WithoutTexts":
    """Open the texts of a config, or not if not `reads`. Raises UserError for what is missing or does not fit."""
    if not reads:
        return WithoutTexts(config, workdir)
    return (PairInputs if config.data.kind == "text_pairs" else TextInputs)(config, workdir)


class _Rows:
    """What both kinds share: the tokenizer, and batches of rows."""

    unit = "tokens"

    def __init__(self, config: ConfigDict, workdir: pathlib.Path | None, texts: Iterable[str]):
        self._config = config
        self.name = f"{config.data.source} {config.data.train_split}"
        self.tokenizer = _tokenizer(config, workdir, texts)
        self.files = {TOKENIZER_FILE: self.tokenizer.to_json()}
        length = config.text.sequence_length
        self.units_per_example = length
        longest = max(length, _source_length(config)) if config.data.kind == "text_pairs" else length
        self.model_options: dict[str, Any] = {"vocab_size": self.tokenizer.vocab_size, "max_length": longest}
        self.task_options: dict[str, Any] = {"vocab_size": self.tokenizer.vocab_size}

    def train_iterator(self, *, batch_size: int) -> grain.DatasetIterator:
        return pipeline.train_iterator(self._train_rows, seed=self._config.seed, **_share(batch_size))

    def eval_batches(self, *, batch_size: int) -> EvalBatches:
        return pipeline.eval_batches(self._eval_rows(), **_share(batch_size))


class WithoutTexts(_Rows):
    """What a run's workdir tells of its texts: all that generating needs, wherever they are now. It has no batches."""

    def __init__(self, config: ConfigDict, workdir: pathlib.Path | None):
        if not (workdir and (workdir / TOKENIZER_FILE).exists()):
            raise UserError(f"{workdir} has no {TOKENIZER_FILE}")
        super().__init__(config, workdir, ())
        if config.data.kind == "text":
            self.task_options |= {"mask_id": self.tokenizer.mask_id}
        self.num_examples = config.batch_size


class TextInputs(_Rows):
    """Texts for language modelling: windows of long ones, or short ones packed."""

    def __init__(self, config: ConfigDict, workdir: pathlib.Path | None):
        documents = self._open(config, config.data.train_split)
        super().__init__(config, workdir, documents)
        tokenizer, text = self.tokenizer, config.text
        self.task_options |= {
            "mask_id": tokenizer.mask_id,
            "token_characters": tokenizer.token_characters,
            "packed": text.packed,
        }
        tokens = self._tokenize(documents)
        if text.packed:
            self._train_rows = pack_documents(tokens, text.sequence_length, seed=config.seed)
        else:
            self._train_rows = train_windows(tokens, text.sequence_length)
        self.num_examples = len(self._train_rows)

    def _eval_rows(self) -> pipeline.Rows:
        text = self._config.text
        tokens = self._tokenize(self._open(self._config, self._config.data.eval_split))
        if text.packed:
            return pack_documents(tokens, text.sequence_length, scored=True)
        return eval_windows(tokens, text.sequence_length, stride=text.eval_stride or text.sequence_length)

    def _open(self, config: ConfigDict, split: str):
        data_dir = config.data.data_dir or None
        return make_documents(config.data.source, split, data_dir=data_dir, held_out=config.text.held_out)

    def _tokenize(self, documents):
        if not self._config.text.packed:
            return tokenize(documents, self.tokenizer)
        return tokenize(documents, self.tokenizer, bos_id=self.tokenizer.bos_id, eos_id=self.tokenizer.eos_id)


class PairInputs(_Rows):
    """Pairs of texts for translation, packed into rows; the tokenizer is one for both sides."""

    def __init__(self, config: ConfigDict, workdir: pathlib.Path | None):
        pairs = self._open(config, config.data.train_split)
        super().__init__(config, workdir, (side for pair in pairs for side in pair))
        self._train_rows = self._pack(pairs, seed=config.seed)
        self.num_examples = len(self._train_rows)

    def eval_pairs(self) -> list[tuple[str, str]]:
        """Return the texts of the evaluation split: what translations are scored on."""
        return list(self._open(self._config, self._config.data.eval_split))

    def _eval_rows(self) -> pipeline.Rows:
        return self._pack(self.eval_pairs(), seed=None)

    def _pack(self, pairs, *, seed: int | None):
        return pack_pairs(
            tokenize_pairs(pairs, self.tokenizer),
            source_length=_source_length(self._config),
            target_length=self._config.text.sequence_length,
            seed=seed,
        )

    def _open(self, config: ConfigDict, split: str):
        data_dir = config.data.data_dir or None
        return make_pairs(config.data.source, split, data_dir=data_dir, held_out=config.text.held_out)


def _source_length(config: ConfigDict) -> int:
    return config.text.source_length or config.text.sequence_length


def _tokenizer(config: ConfigDict, workdir: pathlib.Path | None, texts: Iterable[str]) -> Tokenizer:
    """Return the tokenizer of the run in `workdir` if there is one, else that of the config, learned if need be."""
    kept = workdir / TOKENIZER_FILE if workdir and (workdir / "config.json").exists() else None
    if kept and kept.exists():
        return Tokenizer.from_file(kept)
    text = config.text
    if text.tokenizer in KINDS or not text.tokenizer.endswith(".json"):
        return train_tokenizer(text.tokenizer, texts, vocab_size=text.vocab_size)
    return Tokenizer.from_file(text.tokenizer)


def _share(batch_size: int) -> dict[str, int]:
    return {
        "batch_size": batch_size // jax.process_count(),
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }

"""Where text comes from: `make_documents("austen", "train")` to model a language, `make_pairs("wesnoth", "train")` to
translate, both opened by name and split like `make_source` in data/sources.py."""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from swin_jax.data.sources import imported, tfds_builder
from swin_jax.data.splits import check_split, split_name, split_range
from swin_jax.data.text import rdata, wesnoth
from swin_jax.errors import UserError, did_you_mean

DOCUMENTS = ("austen", "text:PATH", "my_module:my_function")
PAIRS = ("wesnoth", "wesnoth:LANGUAGE", "parallel:SOURCE_FILE,TARGET_FILE", "tfds:NAME", "my_module:my_function")
AUSTEN_FOLDER = "data/austen"
HELD_OUT = 0.05
_SPLITS = ("train", "test")
_DIRECTION = re.compile(r"(.+):([a-z]{2,3})-([a-z]{2,3})")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Documents(Sequence):
    """Texts `documents[i]`, each with a title, which is its file where it has one."""

    name: str
    texts: tuple[str, ...]
    titles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> str:
        return self.texts[index]

    @property
    def num_characters(self) -> int:
        """The characters of all texts together."""
        return sum(map(len, self.texts))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Pairs(Sequence):
    """Sentences and their translations: `pairs[i]` is `(source, target)`; those of TFDS are read when asked for."""

    name: str
    records: Sequence[tuple[str, str]]
    order: np.ndarray  # [N] the index in `records` of each pair

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[str, str]:
        return self.records[int(self.order[index])]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TfdsPairs(Sequence):
    """A split of a TFDS translation data set in array_record files."""

    records: Sequence[dict]
    source: str
    target: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[str, str]:
        record = self.records[index]
        return _decoded(record[self.source]), _decoded(record[self.target])


def make_documents(name: str, split: str, *, data_dir: str | None = None, held_out: float = HELD_OUT) -> Documents:
    """Open a split of a corpus of documents, without downloading anything.

    Args:
      name: `austen` (six novels), `text:PATH` (a text file, or a folder with a document in each .txt at any depth,
        sorted) or `my_module:my_function`, a function from the name of a split to a list of texts.
      split: `test` is the last part of each document, `train` the rest; a function has the splits it knows. A slice
        takes its share of each document: `train[90%:]` the last tenth of each, which `train[:90%]` leaves.
      data_dir: the folder of `austen`.
      held_out: the share of each document that is the test split.

    Raises UserError for an unknown corpus or split, a file that is missing or not UTF-8, and where no text is left.
    """
    kind, _, argument = name.partition(":")
    base = split_name(split)
    if name == "austen":
        documents = _held_out_documents(_austen(data_dir or AUSTEN_FOLDER), base, held_out, name)
    elif kind == "text" and argument:
        documents = _held_out_documents(_text(pathlib.Path(argument).expanduser()), base, held_out, name)
    elif kind not in ("text", *_kinds(PAIRS)) and argument:
        texts = list(imported(kind, argument, DOCUMENTS)(base))
        if not all(isinstance(text, str) for text in texts):
            raise UserError(f"{name} did not return a list of texts for the split {base!r}")
        documents = {f"{base} {i}": text for i, text in enumerate(texts)}
    else:
        hint = f" ({name!r} is pairs, for translation)" if kind in _kinds(PAIRS) else did_you_mean(name, DOCUMENTS)
        raise UserError(f"unknown corpus of documents {name!r}, known: {', '.join(DOCUMENTS)}{hint}")
    documents = _sliced(documents, split)
    if not documents:
        raise UserError(f"the corpus {name} has no text in the split {split!r}")
    return Documents(name=f"{name} {split}", texts=tuple(documents.values()), titles=tuple(documents))


def make_pairs(name: str, split: str, *, data_dir: str | None = None, held_out: float = HELD_OUT) -> Pairs:
    """Open a split of a corpus of sentences and their translations, without downloading anything.

    Args:
      name: `wesnoth` (English to German) or `wesnoth:LANGUAGE`; `parallel:SOURCE_FILE,TARGET_FILE`, line by line;
        `tfds:NAME`, prepared as array_record, such as `tfds:wmt14_translate/de-en` (from the first language to the
        second; `tfds:wmt14_translate/de-en:en-de` the other way); or `my_module:my_function`, a function from the name
        of a split to a list of pairs.
      split: `test` or `train`, told apart by a hash of the source, so that no sentence is in both; TFDS and a function
        have the splits they know. A slice as TFDS writes them: `train[:1000]`.
      data_dir: the folder of `wesnoth`, or of TFDS.
      held_out: about the share of the pairs that is the test split.

    Where the split is made here, a pair that comes again is dropped, and one with an empty side. Raises UserError for
    an unknown corpus or split, files that are missing, not UTF-8 or not of the same length, and where no pair is left.
    """
    kind, _, argument = name.partition(":")
    base = split_name(split)
    if kind == "wesnoth":
        folder = pathlib.Path(data_dir or wesnoth.FOLDER).expanduser()
        records = _held_out_pairs(wesnoth.read_pairs(folder, argument or "de"), base, held_out, name)
    elif kind == "parallel" and argument:
        records = _held_out_pairs(_parallel(argument), base, held_out, name)
    elif kind == "tfds" and argument:
        records = _tfds(argument, base, data_dir)
    elif kind not in (*_kinds(PAIRS), *_kinds(DOCUMENTS)) and argument:
        records = list(imported(kind, argument, PAIRS)(base))
        if not all(isinstance(pair, tuple) and [type(side) for side in pair] == [str, str] for pair in records):
            raise UserError(f"{name} did not return a list of (source, target) texts for the split {base!r}")
    else:
        hint = f" ({name!r} is documents)" if kind in _kinds(DOCUMENTS) else did_you_mean(name, PAIRS)
        raise UserError(f"unknown corpus of pairs {name!r}, known: {', '.join(PAIRS)}{hint}")
    if not len(records):
        raise UserError(f"the corpus {name} has no pairs in the split {base!r}")
    positions = split_range(split, len(records))
    return Pairs(name=f"{name} {split}", records=records, order=np.arange(positions.start, positions.stop))


def read_text(path: pathlib.Path) -> str:
    """Read a UTF-8 file, its line ends made `\\n` and a byte order mark dropped; UserError where it is no such file."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def is_held_out(source: str, share: float) -> bool:
    """Whether a source sentence is in the test split: the same for ever, whatever else is in the corpus."""
    digest = hashlib.sha256(source.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _kinds(names: Sequence[str]) -> list[str]:
    return [name.partition(":")[0] for name in names if not name.startswith("my_module")]


def _check_held_out(held_out: float) -> None:
    if not 0 <= held_out <= 1:
        raise UserError(f"held_out={held_out} must be from 0 to 1")


def _held_out_documents(documents: dict[str, str], split: str, held_out: float, name: str) -> dict[str, str]:
    check_split(split, _SPLITS, name)
    _check_held_out(held_out)
    cut = {title: len(text) - round(held_out * len(text)) for title, text in documents.items()}
    return {title: text[: cut[title]] if split == "train" else text[cut[title] :] for title, text in documents.items()}


def _sliced(documents: dict[str, str], split: str) -> dict[str, str]:
    """Take the slice's share of each document; those it leaves nothing of, or only white space, go."""
    total = sum(map(len, documents.values()))
    if not total:
        return {}
    positions = split_range(split, total)
    parts = {}
    for title, text in documents.items():
        start, stop = (round(position * len(text) / total) for position in (positions.start, positions.stop))
        if text[start:stop].strip():
            parts[title] = text[start:stop]
    return parts


def _held_out_pairs(pairs: list[tuple[str, str]], split: str, held_out: float, name: str) -> list[tuple[str, str]]:
    check_split(split, _SPLITS, name)
    _check_held_out(held_out)
    return [pair for pair in dict.fromkeys(pairs) if is_held_out(pair[0], held_out) == (split == "test")]


def _austen(folder: str) -> dict[str, str]:
    """Read Jane Austen's six novels from the data of the R package janeaustenr (Silge 2016), by its names for them."""
    index = pathlib.Path(folder).expanduser() / "Rdata.rdx"
    if not index.is_file():
        raise UserError(f"there is no {index}; run 'make austen' to fetch the novels, or set data.data_dir")
    return {title: "\n".join(lines) for title, lines in rdata.read_strings(index).items()}


def _text(path: pathlib.Path) -> dict[str, str]:
    if not path.is_dir():
        return {str(path): read_text(path)}
    files = sorted(file for file in path.rglob("*.txt") if file.is_file())
    if not files:
        raise UserError(f"there is no .txt file in the folder {path}")
    return {str(file): read_text(file) for file in files}


def _parallel(files: str) -> list[tuple[str, str]]:
    paths = [pathlib.Path(file).expanduser() for file in files.split(",")]
    if len(paths) != 2:
        raise UserError(f"parallel:{files} must name two files, as parallel:SOURCE_FILE,TARGET_FILE")
    sides = []
    for path in paths:
        text = read_text(path)
        # Not splitlines(), which also ends a line at characters that other tools leave alone.
        sides.append([line.strip() for line in text.removesuffix("\n").split("\n")] if text else [])
    if len(sides[0]) != len(sides[1]):
        told = " and ".join(f"{path} has {len(side)} lines" for path, side in zip(paths, sides, strict=True))
        raise UserError(f"parallel files must be of the same length: {told}")
    return [pair for pair in zip(*sides, strict=True) if all(pair)]


def _tfds(name: str, split: str, data_dir: str | None) -> TfdsPairs:
    """Open a prepared translation data set of TFDS, such as those of WMT (https://www.statmt.org/wmt14)."""
    import tensorflow_datasets as tfds  # imported late: only this corpus needs it

    wanted = _DIRECTION.fullmatch(name)
    builder = tfds_builder(wanted[1] if wanted else name, data_dir)
    features = builder.info.features
    if not isinstance(features, tfds.features.Translation):
        raise UserError(f"the TFDS data set {name!r} is no translation data set")
    languages = tuple(features.languages)
    known = builder.info.supervised_keys or languages
    source, target = (wanted[2], wanted[3]) if wanted else known
    if {source, target} - set(languages) or source == target:
        raise UserError(f"the TFDS data set {name!r} has the languages {', '.join(languages)}, not {source}-{target}")
    check_split(split, tuple(builder.info.splits), f"tfds:{name}")
    return TfdsPairs(records=builder.as_data_source(split=split), source=source, target=target)


def _decoded(text: bytes | str) -> str:
    return text.decode() if isinstance(text, bytes) else text

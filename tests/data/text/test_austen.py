"""Austen's novels: out of a database of R's, written here as R Internals describe it."""

import gzip
import pathlib
import struct
import zlib

import pytest

from swin_jax.data.text import corpora, rdata
from swin_jax.data.text.corpora import make_documents
from swin_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[3]


def r_string(text, encoding="utf-8"):
    flags = 9 | {"utf-8": 1 << 3, "latin-1": 1 << 2}[encoding] << 12
    return struct.pack(">ii", flags, len(text.encode(encoding))) + text.encode(encoding)


def r_strings(texts, **options):
    return struct.pack(">ii", 16, len(texts)) + b"".join(r_string(text, **options) for text in texts)


def r_integers(*values):
    return struct.pack(f">ii{len(values)}i", 13, len(values), *values)


def r_list(items, names=None):
    """A list of serialized items, with names the second time by reference to the symbol of the first."""
    data = struct.pack(">ii", 19 | (1 << 9 if names else 0), len(items)) + b"".join(items)
    if names:
        symbol, names = names
        data += struct.pack(">i", 2 | 1 << 10) + symbol + r_strings(names) + struct.pack(">i", 254)
    return data


def r_file(item, version=3):
    header = b"X\n" + struct.pack(">iii", version, 0x040201, 0x030500)
    return header + (struct.pack(">i", 5) + b"UTF-8" if version == 3 else b"") + item


def write_database(folder, vectors, *, version=3, compressed=1):
    """Write serialized character vectors as R's makeLazyLoadDB does."""
    records, places = b"", []
    for vector in vectors.values():
        unpacked = r_file(vector, version)
        record = struct.pack(">I", len(unpacked)) + zlib.compress(unpacked)
        places.append(r_integers(len(records), len(record)))
        records += record
    names = struct.pack(">i", 1) + r_string("names")  # the symbol, and then references to it
    again = struct.pack(">i", 255 | 1 << 8)
    index = r_list(
        [r_list(places, (names, list(vectors))), r_list([], (again, [])), r_integers(compressed)],
        (again, ["variables", "references", "compressed"]),
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Rdata.rdx").write_bytes(gzip.compress(r_file(index, version)))
    (folder / "Rdata.rdb").write_bytes(records)
    return folder / "Rdata.rdx"


@pytest.mark.parametrize("version", [2, 3])
def test_r_databases_are_read(tmp_path, version):
    vectors = {"emma": r_strings(["EMMA", "", "Straße"]), "b": r_strings(["£5"], encoding="latin-1")}
    index = write_database(tmp_path, vectors, version=version)
    assert rdata.read_strings(index) == {"emma": ["EMMA", "", "Straße"], "b": ["£5"]}


def test_novels_are_their_lines_and_their_last_part_is_the_test(tmp_path):
    lines = [f"line {i}" for i in range(40)]
    write_database(tmp_path, {"emma": r_strings(lines), "persuasion": r_strings(["short", "one"] * 20)})
    train, test = (make_documents("austen", split, data_dir=str(tmp_path)) for split in ("train", "test"))
    assert train.titles == test.titles == ("emma", "persuasion")
    assert [a + b for a, b in zip(train, test, strict=True)] == ["\n".join(lines), "\n".join(["short", "one"] * 20)]
    assert [len(text) for text in test] == [15, 10]  # 5% of 309 and of 199


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda x, b: b.unlink(), "there is no file .*Rdata.rdb"),
        (lambda x, b: b.write_bytes(b.read_bytes()[:30]), "cannot read the R database .*Rdata.rdb: "),
        (lambda x, b: x.write_bytes(x.read_bytes()[:30]), "cannot read the R database .*Rdata.rdx: "),
        (lambda x, b: x.write_bytes(gzip.compress(b"A\n")), "Rdata.rdx: it is not in R's binary XDR format"),
        (lambda x, b: x.write_bytes(gzip.compress(r_file(b"\x00\x00\x00\x10\x00")[:25])), "it is cut short"),
        (lambda x, b: x.write_bytes(gzip.compress(r_file(b"", 9))), "version 9 is neither 2 nor 3"),
        (lambda x, b: x.write_bytes(gzip.compress(r_file(struct.pack(">i", 24)))), "an object of kind 24"),
        (lambda x, b: write_database(x.parent, {"a": r_strings(["a"])}, compressed=2), "not packed by zlib"),
        (lambda x, b: write_database(x.parent, {"a": r_integers(1)}), "'a' is no vector of strings"),
    ],
)
def test_damaged_databases_are_named(tmp_path, damage, message):
    index = write_database(tmp_path, {"emma": r_strings(["EMMA"] * 99)})
    damage(index, index.with_suffix(".rdb"))
    with pytest.raises(UserError, match=message) as caught:
        make_documents("austen", "train", data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not (ROOT / corpora.AUSTEN_FOLDER).is_dir(), reason="fetched by make austen")
def test_the_six_novels():
    folder = str(ROOT / corpora.AUSTEN_FOLDER)
    train, test = (make_documents("austen", split, data_dir=folder) for split in ("train", "test"))
    assert len(train) == len(test) == 6
    assert train.num_characters + test.num_characters == 4_025_022
    assert test.num_characters == pytest.approx(0.05 * 4_025_022, abs=3)
    assert train[0].startswith("EMMA\n\nBy Jane Austen\n")
    assert "It is a truth universally acknowledged" in train[4]
    assert test[4].endswith("had been the means of uniting them.")

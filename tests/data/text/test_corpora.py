"""Corpora: what each holds, how it is split, and one clear line for every mistake."""

import pathlib
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swin_jax.data.text import corpora, wesnoth
from swin_jax.data.text.corpora import is_held_out, make_documents, make_pairs
from swin_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[3]


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Documents


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1), st.floats(0, 1))
def test_a_split_cuts_every_document_in_two(text, share):
    documents = {"a": text, "b": text * 3}
    train, test = (corpora._held_out_documents(documents, split, share, "x") for split in ("train", "test"))
    for title, whole in documents.items():
        assert train[title] + test[title] == whole
        assert abs(len(test[title]) - share * len(whole)) <= 0.5


def test_text_file_and_folder(tmp_path):
    letters = "".join(chr(ord("a") + i // 10) for i in range(200))
    path = written(tmp_path / "a.txt", letters)
    train, test = (make_documents(f"text:{path}", split) for split in ("train", "test"))
    assert (train.texts, test.texts) == ((letters[:190],), (letters[190:],))
    assert (train.titles, train.num_characters, len(train), train[0]) == ((str(path),), 190, 1, letters[:190])
    assert make_documents(f"text:{path}", "test", held_out=0.5)[0] == letters[100:]
    written(tmp_path / "b" / "c.txt", "the second\r\n" * 50)
    written(tmp_path / "b" / "blank.txt", " \n")
    written(tmp_path / "b" / "other.md", b"\xff")
    both = make_documents(f"text:{tmp_path}", "train")
    assert [pathlib.Path(title).name for title in both.titles] == ["a.txt", "c.txt"]
    assert both[1] == ("the second\n" * 50)[:522]  # of 550, line ends are one character
    written(tmp_path / "mark.txt", b"\xef\xbb\xbfX")
    assert make_documents(f"text:{tmp_path / 'mark.txt'}", "train")[0] == "X"


def test_a_slice_takes_its_share_of_each_document(tmp_path):
    written(tmp_path / "a.txt", "a" * 90 + "b" * 10)
    written(tmp_path / "b.txt", "c" * 180 + "d" * 20)
    first, last = (make_documents(f"text:{tmp_path}", f"train[{cut}]", held_out=0) for cut in (":90%", "90%:"))
    assert first.texts == ("a" * 90, "c" * 180)
    assert last.texts == ("b" * 10, "d" * 20)
    some = make_documents(f"text:{tmp_path}", "train[:30]", held_out=0)
    assert some.texts == ("a" * 10, "c" * 20)  # 30 characters of 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"gr\xfcn", "is not UTF-8: invalid start byte at byte 2"),
        (b"\xef\xbb\xbfok \xc3", "unexpected end of data at byte 6"),
        (b"", "has no text in the split 'train'"),
        (b" \n \n", "has no text in the split 'train'"),
    ],
)
def test_files_that_are_no_text_are_named(tmp_path, content, message):
    path = written(tmp_path / "a.txt", content)
    with pytest.raises(UserError, match=message) as caught:
        make_documents(f"text:{path}", "train")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("text:{0}/no.txt", "train", "there is no file .*no.txt"),
        ("text:{0}", "train", "no .txt file in the folder"),
        ("austen", "train", "run 'make austen'"),
        ("austin", "train", "unknown corpus of documents 'austin'.*did you mean 'austen'"),
        ("text", "train", "unknown corpus of documents 'text'.*did you mean 'text:PATH'"),
        ("wesnoth", "train", "is pairs, for translation"),
        ("parallel:a,b", "train", "is pairs, for translation"),
        ("no_such_module:f", "train", "unknown data source 'no_such_module:f': No module named"),
        ("text:{1}", "tset", "no split 'tset', known: train, test; did you mean 'test'"),
        ("text:{1}", "test[:1%]", "is empty"),
        ("text:{1}", "test[", "cannot read the split"),
    ],
)
def test_mistaken_documents_are_told_in_one_line(tmp_path, name, split, message):
    (tmp_path / "empty").mkdir()
    full = written(tmp_path / "full.txt", "ten letters" * 10)
    with pytest.raises(UserError, match=message) as caught:
        make_documents(name.format(tmp_path / "empty", full), split, data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="held_out=2 must be from 0 to 1"):
        make_documents(f"text:{full}", "train", held_out=2)


def test_corpora_of_ones_own(tmp_path, monkeypatch):
    written(
        tmp_path / "own_corpus.py",
        "def texts(split):\n    return [split + ' one', '', split + ' two']\n"
        "def pairs(split):\n    return [('one', 'eins'), ('one', 'eins'), ('two', 'zwei')]\n"
        "def wrong(split):\n    return [1]\n",
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert make_documents("own_corpus:texts", "valid").texts == ("valid one", "valid two")
    assert list(make_pairs("own_corpus:pairs", "train[1:]")) == [("one", "eins"), ("two", "zwei")]
    for make in (make_documents, make_pairs):
        with pytest.raises(UserError, match=r"own_corpus:wrong did not return a list"):
            make("own_corpus:wrong", "train")


# Pairs


def parallel(folder, source, target):
    return f"parallel:{written(folder / 'a.en', source)},{written(folder / 'a.de', target)}"


def test_parallel_files_go_line_by_line(tmp_path):
    name = parallel(
        tmp_path,
        "one \n\n two\r\none\nleft\u2028alone\none\nthree",
        "eins\nnull\nzwei\neins\nin Ruhe\nein\ndrei\n",  # a last line may end or not
    )
    pairs = make_pairs(name, "train", held_out=0)
    expected = [("one", "eins"), ("two", "zwei"), ("left\u2028alone", "in Ruhe"), ("one", "ein"), ("three", "drei")]
    assert list(pairs) == expected
    assert list(make_pairs(name, "train[1:3]", held_out=0)) == expected[1:3]
    assert (len(pairs), pairs[-1]) == (5, expected[-1])


def test_no_source_is_on_both_sides_and_the_split_never_changes(tmp_path):
    sources = [f"sentence {i % 2000}" for i in range(4000)]
    name = parallel(tmp_path, "\n".join(sources), "\n".join(f"Satz {i}" for i in range(4000)))
    train, test = (list(make_pairs(name, split)) for split in ("train", "test"))
    assert sorted(train + test) == sorted(zip(sources, (f"Satz {i}" for i in range(4000)), strict=True))
    assert not {source for source, _ in train} & {source for source, _ in test}
    assert 0.03 < len(test) / 4000 < 0.07
    wider = {source for source, _ in make_pairs(name, "test", held_out=0.2)}
    assert {source for source, _ in test} < wider
    # Written down when it was made: a change would move sentences from one side to the other.
    assert [i for i in range(100) if is_held_out(f"sentence {i}", 0.05)] == [10, 40, 49, 62, 67, 78, 89]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("a\nb\n", "a\n", "a.en has 2 lines and .*a.de has 1 lines"),
        ("", "", "has no pairs in the split 'train'"),
        ("\n \n", "a\nb\n", "has no pairs in the split 'train'"),
        ("a", b"\xe4", "a.de is not UTF-8: .* at byte 0"),
    ],
)
def test_mistaken_parallel_files_are_named(tmp_path, source, target, message):
    with pytest.raises(UserError, match=message):
        make_pairs(parallel(tmp_path, source, target), "train")


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("parallel:only_one", "train", "must name two files"),
        ("parallel:a.en,a.de", "train", "there is no file a.en"),
        ("wesnoth", "train", "run 'make wesnoth'"),
        ("wessnoth", "train", "unknown corpus of pairs 'wessnoth'.*did you mean 'wesnoth'"),
        ("austen", "train", r"unknown corpus of pairs 'austen'.*\('austen' is documents\)"),
        ("text:a.txt", "train", "is documents"),
        ("tfds:wmt99_translate/de-en", "train", "knows no data set 'wmt99_translate"),
        ("tfds:mnist", "train", "'mnist' is not in"),
    ],
)
def test_mistaken_pairs_are_told_in_one_line(tmp_path, name, split, message):
    with pytest.raises(UserError, match=message) as caught:
        make_pairs(name, split, data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)


# Wesnoth


def write_mo(path, messages):
    """Write a compiled catalog as GNU gettext's manual describes it: a header, two tables of places, the texts."""
    header = "Content-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=2; plural=(n != 1);\n"
    messages = sorted({"": header, **messages}.items())
    texts, tables = b"", ([], [])
    start = 28 + 16 * len(messages)
    for side, table in enumerate(tables):
        for message in messages:
            encoded = message[side].encode()
            table.append((len(encoded), start + len(texts)))
            texts += encoded + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, len(messages), 28, 28 + 8 * len(messages), 0, 0)
    places = b"".join(struct.pack("<2I", *place) for table in tables for place in table)
    return written(path, head + places + texts)


MESSAGES = {
    "female^Lady": "Herrin",
    "teamname^Monsters": "Teamname^Monster",
    "<i>Run</i> away,\n\n  $unit.name|!": "<i>Lauft</i> weg, $unit.name|!",
    "<span color='cyan'>Note: </span>2 < 3 &amp; 4": "<span color='cyan'>Hinweis: </span>2 < 3 &amp; 4",
    "<italic>text='Maimed'</italic> units": "<italic>text='Verstümmelte'</italic> Einheiten",
    "Konrad": "Konrad",
    "Untranslated": "",
    "one enemy\0$n enemies": "ein Gegner\0$n Gegner",
}
CLEAN = {
    ("Lady", "Herrin"),
    ("Monsters", "Monster"),
    ("Run away, $unit.name|!", "Lauft weg, $unit.name|!"),
    ("Note: 2 < 3 & 4", "Hinweis: 2 < 3 & 4"),
    ("Maimed units", "Verstümmelte Einheiten"),
    ("one enemy", "ein Gegner"),
}


def test_wesnoth_is_stripped_of_its_markup(tmp_path):
    write_mo(tmp_path / "de" / "a.mo", MESSAGES)
    write_mo(tmp_path / "de" / "b.mo", {"female^Lady": "Herrin", "Lady": "Dame"})
    write_mo(tmp_path / "fr" / "a.mo", {"Lady": "Dame"})
    options = {"data_dir": str(tmp_path), "held_out": 0}
    german = list(make_pairs("wesnoth", "train", **options))
    assert len(german) == len(CLEAN) + 1
    assert set(german) == CLEAN | {("Lady", "Dame")}
    assert list(make_pairs("wesnoth:de", "train", **options)) == german
    assert list(make_pairs("wesnoth:fr", "train", **options)) == [("Lady", "Dame")]
    with pytest.raises(UserError, match=r"no language 'dee' in .*, known: de, fr; did you mean 'de'"):
        make_pairs("wesnoth:dee", "train", **options)


@pytest.mark.parametrize(
    "content", [b"", b"no catalog at all, not one", struct.pack("<7I", 0x950412DE, 0, 9, 9, 9, 0, 0)]
)
def test_damaged_translations_are_named(tmp_path, content):
    path = written(tmp_path / "de" / "a.mo", content)
    with pytest.raises(UserError, match=f"cannot read the translations {path}"):
        make_pairs("wesnoth", "train", data_dir=str(tmp_path))


# TFDS

TFDS_MODULE = """
import tensorflow_datasets as tfds

class TinyTranslate(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.Translation(languages=("de", "en"))
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("de", "en"))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(5), "validation": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"de": f"Grüße {i}", "en": f"greetings {i}"}
"""


def test_tfds_translations_in_both_directions(tmp_path):
    """Prepared by a custom builder, in another process, as a user would have it on disk."""
    written(tmp_path / "tiny_translate.py", TFDS_MODULE)
    prepare = (
        "import tiny_translate as t\n"
        "t.TinyTranslate(data_dir='data', file_format='array_record').download_and_prepare()"
    )
    subprocess.run([sys.executable, "-c", prepare], cwd=tmp_path, check=True, capture_output=True)
    data_dir = str(tmp_path / "data")
    train = make_pairs("tfds:tiny_translate", "train", data_dir=data_dir)
    assert sorted(train) == [(f"Grüße {i}", f"greetings {i}") for i in range(5)]
    other = make_pairs("tfds:tiny_translate:en-de", "train[:40%]", data_dir=data_dir)
    assert list(other) == [(english, german) for german, english in list(train)[:2]]
    for name, split, message in (
        ("tfds:tiny_translate", "test", "no split 'test', known: train, validation"),
        ("tfds:tiny_translate:en-fr", "train", "has the languages de, en, not en-fr"),
    ):
        with pytest.raises(UserError, match=message):
            make_pairs(name, split, data_dir=data_dir)


# The scripts, and what they fetch


@pytest.mark.parametrize("corpus", ["austen", "wesnoth"])
def test_fetch_scripts_say_what_to_do_without_apt_and_keep_what_is_there(tmp_path, corpus):
    script = ROOT / "tools" / f"fetch_{corpus}.sh"
    run = {"env": {"PATH": str(tmp_path / "none")}, "capture_output": True, "text": True, "check": False}
    result = subprocess.run(["/bin/sh", script, tmp_path / "x"], **run)
    assert (result.returncode, "no apt-get; put" in result.stderr) == (1, True), result.stderr
    campaigns = "did dm dw ei httt l low nr sof sota sotbe thot trow tsg ttb utbs"
    there = {"austen": ["Rdata.rdx", "Rdata.rdb"], "wesnoth": [f".{name}" for name in campaigns.split()]}[corpus]
    for name in there[:-1]:
        written(tmp_path / name, "there")
    assert subprocess.run(["/bin/sh", script, tmp_path], **run).returncode == 1
    written(tmp_path / there[-1], "there")
    result = subprocess.run(["/bin/sh", script, tmp_path], **run)
    assert (result.returncode, "already" in result.stdout) == (0, True)


@pytest.mark.skipif(not (ROOT / wesnoth.FOLDER).is_dir(), reason="fetched by make wesnoth")
def test_the_sixteen_campaigns():
    folder = str(ROOT / wesnoth.FOLDER)
    train, test = (list(make_pairs("wesnoth", split, data_dir=folder)) for split in ("train", "test"))
    assert len(set(train + test)) == len(train) + len(test) == 10_852
    assert 0.04 < len(test) / 10_852 < 0.06
    texts = " ".join(text for pair in train + test for text in pair)
    assert not set("<>^\n") & set(texts)
    assert ("A Tale of Two Brothers", "Die Geschichte zweier Brüder") in train + test

"""Mistakes in a corpus or a config on text: one line and exit code 2 of the real command, nothing written."""

import pytest

import train
from tests.text_runs import config_arguments, mistake, write_text


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        (b"", {}, "has no text in the split 'train'"),
        (b" \n\n", {}, "has no text in the split 'train'"),
        (b"caf\xe9 noir", {}, "text.txt is not UTF-8: invalid continuation byte at byte 3"),
        (None, {"model.vocab_size": 20}, "model.vocab_size=20 is less than the tokenizer's 261"),
        (None, {"model.positions": "learned", "model.max_length": 8}, "model.max_length=8 is less than the 16"),
        (None, {"data.source": "text:/nowhere.txt"}, "there is no file /nowhere.txt"),
    ],
)
def test_documents(content, overrides, message, tmp_path):
    text = write_text(tmp_path / "text.txt")
    if content is not None:
        text.write_bytes(content)
    sizes = {"batch_size": 8, "text.tokenizer": "byte", "text.sequence_length": 16, "text.eval_stride": 16}
    overrides = {"data.source": f"text:{text}"} | sizes | overrides
    assert message in mistake(train, *config_arguments(tmp_path / "run", "austen_lm", overrides))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (b"one\ntwo\n", b"eins\n", "a.txt has 2 lines and"),
        (b"", b"", "has no pairs in the split 'train'"),
        (b"one\n", b"\xfcber\n", "b.txt is not UTF-8: invalid start byte at byte 0"),
    ],
)
def test_parallel_files(source, target, message, tmp_path):
    (tmp_path / "a.txt").write_bytes(source)
    (tmp_path / "b.txt").write_bytes(target)
    overrides = {"data.source": f"parallel:{tmp_path}/a.txt,{tmp_path}/b.txt", "text.tokenizer": "byte"}
    assert message in mistake(train, *config_arguments(tmp_path / "run", "wesnoth_translate", overrides))
    assert not (tmp_path / "run").exists()

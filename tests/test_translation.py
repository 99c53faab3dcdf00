"""A translator learns to reverse strings, by the real commands; and figures are as sacrebleu itself gives them."""

import random
import sys

import pytest
import sacrebleu

import train
from swin_jax import evaluate, generate
from swin_jax.data.text.corpora import is_held_out
from swin_jax.evaluate_translation import score
from tests.text_runs import config_arguments, mistake, result_of

LONGEST, CONTEXT, HELD_OUT = 6, 12, 0.05


def held_out_like(rng, letters, length):
    """Draw a string until it is one of the test split."""
    while not is_held_out(text := "".join(rng.choices(letters, k=length)), HELD_OUT):
        pass
    return text


@pytest.fixture(scope="module")
def reversing(tmp_path_factory):
    """A run that reverses, and the held-out strings: short ones, one longer than its context, one with a new letter."""
    folder, rng = tmp_path_factory.mktemp("reversing"), random.Random(0)
    words = list({"".join(rng.choices("abcdef", k=rng.randint(3, LONGEST))): None for _ in range(4000)})
    odd = [held_out_like(rng, "abcdef", CONTEXT + 5), held_out_like(rng, "xyz", 4)]
    (folder / "a.txt").write_text("".join(f"{word}\n" for word in words + odd))
    (folder / "b.txt").write_text("".join(f"{word[::-1]}\n" for word in words + odd))
    overrides = {
        "data.source": f"parallel:{folder}/a.txt,{folder}/b.txt",
        "total_steps": 500,
        "batch_size": 64,
        "text.tokenizer": "char",
        "text.sequence_length": CONTEXT,
        "text.source_length": CONTEXT,
        "text.held_out": HELD_OUT,
        "model.embed_dim": 48,
        "model.num_heads": 4,
        "model.mlp_ratio": 2.0,
        "model.dropout_rate": 0.0,
        "task.label_smoothing": 0.0,
        "optimizer.learning_rate": 5e-3,
    }
    workdir = folder / "run"
    result_of(train, *config_arguments(workdir, "wesnoth_translate", overrides))
    return workdir, [word for word in words if is_held_out(word, HELD_OUT)], odd


@pytest.fixture(scope="module")
def evaluated(reversing):
    """What the command told of the greedy translations, and those it wrote."""
    workdir, _, _ = reversing
    out = workdir.parent / "translations.txt"
    _, result = result_of(evaluate, f"--workdir={workdir}", "--beams=1", f"--translations={out}")
    return result, out.read_text().splitlines()


def test_every_held_out_string_is_reversed(reversing, evaluated):
    _, words, odd = reversing
    _, translations = evaluated
    assert len(words) > 100
    assert translations[: len(words)] == [word[::-1] for word in words]
    assert len(translations) == len(words) + len(odd)


def test_figures_are_sacrebleus(reversing, evaluated):
    _, words, odd = reversing
    result, translations = evaluated
    sources = words + odd
    references = [[word[::-1] for word in sources]]
    assert result["chrf"] == pytest.approx(sacrebleu.corpus_chrf(translations, references).score, abs=1e-4)
    assert result["chrf_of_copying"] == pytest.approx(sacrebleu.corpus_chrf(sources, references).score, abs=1e-4)
    # The two odd strings cannot be right, and cost 5 points.
    assert result["chrf"] > 90 > 50 > result["chrf_of_copying"]
    assert (result["pairs"], result["cut_sources"], result["step"]) == (len(sources), 1, 500)
    assert result["accuracy"] > 0.95


def test_beams_by_default_and_several_sources(reversing):
    workdir, words, _ = reversing
    sources = [f"--source={word}" for word in words[:3]]
    printed, result = result_of(generate, f"--workdir={workdir}", *sources)
    assert result["texts"] == printed.splitlines() == [word[::-1] for word in words[:3]]
    _, greedy = result_of(generate, f"--workdir={workdir}", *sources, "--temperature=0")
    for best, total, word in zip(result["scores"], greedy["scores"], words, strict=False):
        assert best == pytest.approx(total / ((5 + len(word) + 1) / 6) ** 0.6, abs=1e-4)


def test_beams_0_makes_no_translations(reversing, monkeypatch):
    monkeypatch.setitem(sys.modules, "swin_jax.evaluate_translation", None)
    _, result = result_of(evaluate, f"--workdir={reversing[0]}", "--beams=0")
    assert "loss" in result
    assert "bleu" not in result


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((f"--source={'a' * CONTEXT}",), f"has {CONTEXT + 1} tokens, more than the model's context of {CONTEXT}"),
        (("--source=abz",), "does not know: 'z' (U+007A)"),
        (("--prompt=abc",), "translates: give --source=..."),
        (("--source=abc", f"--max_new_tokens={CONTEXT}"), f"{CONTEXT} new ones are more than the model's context"),
    ],
)
def test_mistakes_are_one_line(reversing, arguments, message):
    assert message in mistake(generate, f"--workdir={reversing[0]}", *arguments)


def test_mistakes_of_evaluating(reversing):
    workdir = f"--workdir={reversing[0]}"
    assert "--beams=1 or more" in mistake(evaluate, workdir, "--beams=0", "--translations=x.txt")
    assert "there is no folder for /nowhere/x.txt" in mistake(evaluate, workdir, "--translations=/nowhere/x.txt")


def test_bleu_and_chrf_of_known_texts():
    references = ["the cat sat on the mat .", "a red bird ran over to me , and sang", "nothing is left of it"]
    translations = ["the cat sat on a mat .", "the red bird ran over to me and sang", "there is nothing left of it"]
    sources = ["die Katze sass auf der Matte .", "a red bird ran over to me , und", "nichts"]
    figures = score(translations, references, sources)
    for name, corpus_score in (("bleu", sacrebleu.corpus_bleu), ("chrf", sacrebleu.corpus_chrf)):
        assert figures[name] == pytest.approx(corpus_score(translations, [references]).score, abs=1e-4)
        assert figures[f"{name}_of_copying"] == pytest.approx(corpus_score(sources, [references]).score, abs=1e-4)
        assert 10 < figures[f"{name}_of_copying"] < figures[name] < 90
        assert f"version:{sacrebleu.__version__}" in figures[f"{name}_signature"]
    assert "tok:13a" in figures["bleu_signature"]
    assert score(references, references, sources)["bleu"] == pytest.approx(100)

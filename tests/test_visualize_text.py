"""Attention of trained models for text, from a run's folder to pictures."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from swin_jax.runs import open_run
from swin_jax.training.default_config import default_config
from swin_jax.training.loop import train
from swin_jax.visualization.drawing import draw_token_attention, save_figure
from swin_jax.visualization.recording import text_attention
from tests.test_visualize import draw, run

MODEL = {"embed_dim": 8, "depth": 1, "num_heads": 2, "mlp_ratio": 1.0}


def trained(folder, **data):
    """Train one step and return the workdir."""
    config = default_config()
    config.total_steps, config.batch_size, config.text.sequence_length = 1, 8, 12
    config.data.update(train_split="train", eval_split="test", **data)
    is_pairs = config.data.kind == "text_pairs"
    config.model.update(name="transformer" if is_pairs else "causal_transformer", **MODEL)
    config.task.name = "sequence_to_sequence" if is_pairs else "language_modeling"
    train(config, workdir=str(folder / "run"))
    return folder / "run"


@pytest.fixture(scope="module")
def novel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("novel")
    (folder / "novel.txt").write_text("a bad cab had a cabbage. " * 20)
    return trained(folder, kind="text", source=f"text:{folder / 'novel.txt'}")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    lines = ["".join(rng.choice(list("abcd "), 8)).strip() or "a" for _ in range(60)]
    (folder / "source").write_text("\n".join(lines) + "\n")
    (folder / "target").write_text("\n".join(line[::-1] for line in lines) + "\n")
    return trained(folder, kind="text_pairs", source=f"parallel:{folder / 'source'},{folder / 'target'}")


def test_a_text_is_drawn_as_the_trained_model_sees_it(novel, capsys, tmp_path):
    result, (drawn,) = draw(capsys, "attention", f"--workdir={novel}", "--text=a cab")
    assert result["files"] == [str(novel / "attention" / "decoder.0.png")]
    assert (result["step"], result["tokens"], result["layers"]) == (1, ["a", " ", "c", "a", "b"], ["decoder.0"])
    ids = [5 + sorted(set("a bad cab had a cabbage. ")).index(character) for character in "a cab"]
    (layer,) = text_attention(open_run(novel).model(), jnp.array([ids]))
    panels = [(f"head {number}", layer.probabilities[0, number]) for number in range(2)]
    labels = {"query_labels": ["a", " ", "c", "a", "b"], "key_labels": ["a", " ", "c", "a", "b"]}
    save_figure(draw_token_attention(panels, **labels, title="attention, decoder.0"), tmp_path / "expected.png")
    np.testing.assert_array_equal(drawn, np.asarray(Image.open(tmp_path / "expected.png").convert("RGB")))
    _, (prefix,) = draw(capsys, "attention", f"--workdir={novel}", "--text=a cab", "--prefix=5", f"--out={tmp_path}")
    unseen = [(pixels == (247, 251, 255)).all(-1).sum() for pixels in (drawn, prefix)]  # the palest blue, of 0
    assert unseen[0] > 2000 > 500 > unseen[1]  # ten cells above the diagonal of each head, but for the colour bar


def test_a_translation_given_and_the_models_own(pairs, capsys, tmp_path):
    arguments = ["attention", f"--workdir={pairs}", "--source=ab d", f"--out={tmp_path}"]
    result, _ = draw(capsys, *arguments, "--text=d b")
    names = ["encoder.0", "decoder.0", "decoder.0.cross"]
    assert result["layers"] == names
    assert result["files"] == [str(tmp_path / f"{name}.png") for name in names]
    assert result["source_tokens"] == ["a", "b", " ", "d", "<eos>"]
    assert result["tokens"] == ["<bos>", "d", " ", "b", "<eos>"]

    opened = open_run(pairs)
    model, tokenizer = opened.model(), opened.experiment.inputs.tokenizer
    source, target = jnp.array([[*tokenizer.encode("ab d"), tokenizer.eos_id]]), [tokenizer.bos_id]
    while len(target) < 12 and target[-1] != tokenizer.eos_id:
        padded = jnp.array([target + [0] * (12 - len(target))])
        target.append(int(model(source, padded)[0, len(target) - 1].argmax()))
    result, _ = draw(capsys, *arguments, "--layer=decoder.0.cross")
    assert result["tokens"] == tokenizer.token_texts(target)
    assert result["files"] == [str(tmp_path / "decoder.0.cross.png")]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["NOVEL"], "--text=... is missing"),
        (["NOVEL", "--text="], "the text has 0 tokens, and 1 to 12 can be drawn of this model"),
        (["NOVEL", "--text=a cab had a cab"], "the text has 15 tokens, and 1 to 12 can be drawn of this model"),
        (["NOVEL", "--text=a", "--source=b"], "--source is for a model that translates, and this one does not"),
        (["NOVEL", "--text=a", "--image=x.png"], "--image is for a model for images, and this one is not: --text=..."),
        (["NOVEL", "--text=a cab", "--prefix=6"], "prefix=6 must be from 0 to the 5 tokens of a causal model's text"),
        (["NOVEL", "--text=a cab", "--layer=encoder.0"], "no layer 'encoder.0'"),
        (["PAIRS", "--text=a"], "--source=... is missing: the text to translate"),
        (["PAIRS", "--source=abcdabcdabcd", "--text=a"], "the source has 13 tokens, and 1 to 12 can be drawn"),
        (["PAIRS", "--source=abcdabcdabcd"], "source 0 has 13 tokens, more than the model's context of 12"),
        (["PAIRS", "--source=a", "--text=a", "--prefix=1"], "prefix=1 must be"),
    ],
)
def test_mistakes_are_one_line(arguments, named, novel, pairs, capsys):
    workdir = {"NOVEL": novel, "PAIRS": pairs}[arguments[0]]
    code, out, err = run(capsys, "attention", f"--workdir={workdir}", *arguments[1:])
    assert (code, out) == (2, "")
    assert named in err
    assert len(err.splitlines()) == 1

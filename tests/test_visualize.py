"""The commands that draw: files on disk from a trained run and from published weights, and mistakes in one line."""

import json
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from swin_jax import models, visualize
from swin_jax.commands import run_subcommand
from swin_jax.convert import save_timm
from swin_jax.models import SwinTransformer, create_model
from swin_jax.training.default_config import default_config
from swin_jax.training.loop import train
from swin_jax.visualization.attention_figures import draw_image_attention, draw_text_attention

SWIN = "swin_test_patch4_window4_32"
OPTIONS = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A ViT of two layers after two steps on digits."""
    config = default_config()
    config.total_steps, config.batch_size = 2, 32
    config.model.update(name="vit", patch_size=4, embed_dim=8, depth=2, num_heads=2)
    config.data.update(image_size=16, channels=1, crop="resize", eval_crop="resize", eval_split="test[10:20]")
    config.task.update(mean=(0.5,), std=(0.5,))
    folder = tmp_path_factory.mktemp("runs") / "vit"
    train(config, workdir=str(folder))
    return folder


@pytest.fixture
def preset(monkeypatch):
    monkeypatch.setitem(models._PRESETS, SWIN, (SwinTransformer, OPTIONS))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "swin.safetensors"
    save_timm(create_model("swin", **OPTIONS, num_classes=3, rngs=nnx.Rngs(0)), path)
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    return path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_info:
        run_subcommand(visualize.COMMANDS, ["visualize.py", *map(str, arguments)])
    for _, flag_values in visualize.COMMANDS.values():
        for name in flag_values:
            flag_values[name].unparse()
    captured = capsys.readouterr()
    return exit_info.value.code, captured.out, captured.err


def draw(capsys, *arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    result = json.loads(out.splitlines()[-1])
    pixels = {path: np.asarray(Image.open(path).convert("RGB"), int) for path in result["files"]}
    for path, values in pixels.items():
        assert len(np.unique(values.reshape(-1, 3), axis=0)) > 2, path
    return result, list(pixels.values())


def test_masks(tmp_path, capsys):
    path = tmp_path / "mask.png"
    result, (causal,) = draw(capsys, "masks", "--kind=causal", "--length=6", f"--out={path}")
    assert result == {"kind": "causal", "files": [str(path)]}
    _, (windows,) = draw(
        capsys, "masks", "--kind=shifted_window", "--map_size=6,8", "--window_size=4", "--shift=2,1", f"--out={path}"
    )
    assert causal.shape != windows.shape
    _, (padding,) = draw(capsys, "masks", "--kind=padding", "--lengths=0,4", f"--out={path}")
    is_blue = (padding[..., 2] - padding[..., 0] > 100)[:-60]  # above the legend
    half = is_blue.shape[1] // 2
    assert is_blue[:, :half].sum() == 0
    assert is_blue[:, half:].sum() > 5000


def test_attention_of_a_run_on_its_first_image(workdir, capsys):
    result, (layers, _) = draw(capsys, "attention", f"--workdir={workdir}")
    folder = workdir / "attention"
    assert result["files"] == [str(folder / "layers.png"), str(folder / "rollout.png")]
    assert (result["step"], result["layers"]) == (2, ["blocks.0", "blocks.1"])
    assert 0 <= result["predicted_class"] < 10
    assert (layers[60:200, 30:200].std(-1) < 1).all()  # the image comes first, in grey
    result, (head,) = draw(capsys, "attention", f"--workdir={workdir}", "--layer=1", "--head=0", "--position=3,9")
    assert result["files"] == [str(folder / "blocks.1.png")]
    is_cyan = (head[..., 1] > 200) & (head[..., 2] > 200) & (head[..., 0] < 80)
    assert is_cyan.sum() > 10  # the position is marked


def test_examples_are_the_evaluation_splits(workdir, capsys, tmp_path):
    """Drawn from a file of the same digit it is the same picture; another digit is another one."""
    from swin_jax.data.sources import make_source

    arguments = ["attention", f"--workdir={workdir}", f"--out={tmp_path}"]
    drawn = [draw(capsys, *arguments)[1], draw(capsys, *arguments, "--example=1")[1]]
    for number, index in enumerate((10, 11)):  # of the test split, which the config slices
        path = tmp_path / f"{index}.png"
        pixels = make_source("digits", "test")[index]["image"][..., 0]
        Image.fromarray(pixels).save(path)
        _, found = draw(capsys, *arguments, f"--image={path}")
        for example, pictures in enumerate(drawn):
            assert all((a == b).all() for a, b in zip(pictures, found, strict=True)) == (example == number)


def test_attention_of_published_weights(preset, weights, photo, tmp_path, capsys):
    out = tmp_path / "drawn"
    arguments = [f"--model={SWIN}", f"--pretrained={weights}", f"--image={photo}", f"--out={out}"]
    result, (layers,) = draw(capsys, "attention", *arguments)
    assert result["layers"] == ["stages.0.blocks.0", "stages.1.blocks.0"]
    assert result["files"] == [str(out / "layers.png")]
    _, (layer,) = draw(capsys, "attention", *arguments, "--layer=stages.0.blocks.0", "--position=0,0")
    assert layer.shape == layers.shape  # the image and two panels: layers, and heads
    assert (layer != layers).any()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "a command is missing, known: masks, attention"),
        (["mask"], "unknown command 'mask', known: masks, attention; did you mean 'masks'?"),
        (["masks"], "--kind=... is missing"),
        (["masks", "--kind=shifted_windows"], "unknown kind 'shifted_windows'"),
        (["masks", "--kind=shifted_windows"], "did you mean 'shifted_window'?"),
        (["masks", "--kind=causal", "--prefix=3"], "kind 'causal' has no prefix, only length, keys"),
        (["masks", "--kind=padding", "--lengths=3,x"], "--lengths takes whole numbers such as 3,5, not '3,x'"),
        (["masks", "--kind=padding", "--lengths="], "--lengths takes whole numbers"),
        (["masks", "--kind=shifted_window", "--map_size=1,2,3"], "--map_size takes one or two whole numbers"),
        (["masks", "--kind=shifted_window", "--map_size=4"], "window_size=(7, 7) is larger than map_size=(4, 4)"),
        (["attention"], "either --workdir=DIR, or --model=NAME and --pretrained=FILE"),
        (["attention", "--workdir=RUN", "--model=x"], "either --workdir=DIR, or"),
        (["attention", "--model=x"], "either --workdir=DIR, or"),
        (["attention", "--workdir=/nowhere"], "/nowhere is no workdir"),
        (["attention", f"--model={SWIN}", "--pretrained=WEIGHTS"], "--image=FILE is missing"),
        (["attention", "--workdir=RUN", "--image=/no.png"], "the image /no.png cannot be read: No such file"),
        (["attention", "--workdir=RUN", f"--image={__file__}"], "is no image that Pillow knows"),
        (["attention", "--workdir=RUN", "--layer=2"], "no layer '2': 0 to 1, or blocks.0, blocks.1"),
        (["attention", "--workdir=RUN", "--layer=block.1"], "did you mean 'blocks.1'?"),
        (["attention", "--workdir=RUN", "--head=2"], "no head 2: each layer has 0 to 1"),
        (
            ["attention", "--workdir=RUN", "--position=3,16"],
            "position (3, 16) is outside of the model's image of 16x16",
        ),
        (["attention", "--workdir=RUN", "--text=Hello"], "--text is for a model for text, and this one is not"),
        (["attention", "--workdir=RUN", "--example=10"], "there is no --example=10: the evaluation split has 0 to 9"),
        (["attention", "--workdir=RUN", "--example=-1"], "there is no --example=-1"),
        (["attention", "--workdir=RUN", "--example=1", "--image=x.png"], "--image and --example: give one of them"),
        (["attention", "--model=vit_tiny_patch16_24", "--pretrained=x"], "did you mean 'vit_tiny_patch16_224'"),
        (["attention", "--model=gpt2", "--pretrained=x"], "--model=gpt2 is for text"),
        (["attention", f"--model={SWIN}", "--pretrained=/no.safetensors", "--image=x"], "/no.safetensors"),
        (["attention", "--workdir=RUN", "--checkpoint=7"], "no checkpoint '7'"),
    ],
)
def test_mistakes_are_one_line(arguments, named, workdir, weights, preset, capsys):
    arguments = [text.replace("RUN", str(workdir)).replace("WEIGHTS", str(weights)) for text in arguments]
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert named in err
    assert len(err.splitlines()) == 1


def test_other_commands_do_not_wait_for_matplotlib():
    """Nor for JAX, before the flags are read."""
    code = "import sys, swin_jax.visualize, swin_jax.benchmark; print({'jax', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_texts():
    """A panel for each head; queries and keys are called what they are, in the source or in the target."""
    options = {"vocab_size": 9, "embed_dim": 8, "num_heads": 2, "depth": 1}
    model = create_model("transformer", **options, rngs=nnx.Rngs(0))
    figures, names = draw_text_attention(model, [1, 2, 3], list("abc"), source=[4, 5], source_labels=list("xy"))
    expected = {"encoder.0": ("xy", "xy"), "decoder.0": ("abc", "abc"), "decoder.0.cross": ("abc", "xy")}
    assert names == list(figures) == list(expected)
    for name, (rows, columns) in expected.items():
        ax = figures[name].axes[0]
        assert "".join(label.get_text() for label in ax.get_yticklabels()) == rows
        assert "".join(label.get_text() for label in ax.get_xticklabels()) == columns
        assert [ax.get_title() for ax in figures[name].axes[:2]] == ["head 0", "head 1"]
    with pytest.raises(ValueError, match="Transformer takes a source and a target"):
        draw_text_attention(model, [1], ["a"])
    model = create_model("causal_transformer", **options, rngs=nnx.Rngs(0))
    figures, _ = draw_text_attention(model, [1, 2, 3], list("abc"), layer="0", head=1)
    assert [ax.get_title() for ax in figures["decoder.0"].axes[:-1]] == ["head 1"]
    drawn = figures["decoder.0"].axes[0].images[0].get_array()
    assert drawn[0, 0] == 1
    assert (np.triu(drawn, 1) == 0).all()
    with pytest.raises(ValueError, match="CausalTransformer takes no source"):
        draw_text_attention(model, [1], ["a"], source=[1], source_labels=["x"])
    with pytest.raises(ValueError, match="Linear is no model for text"):
        draw_text_attention(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), [1], ["a"])
    rotary = create_model("causal_transformer", **options, max_length=2, positions="rotary", rngs=nnx.Rngs(0))
    for causal, limit in ((model, 512), (rotary, 1024)):
        with pytest.raises(ValueError, match=f"the text has {limit + 1} tokens, and 1 to {limit} can be drawn"):
            draw_text_attention(causal, [1] * (limit + 1), ["a"] * (limit + 1))


def test_where_attention_comes_from_is_told():
    options = {"image_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 2}
    image = np.zeros((8, 8, 3), np.uint8)
    titles = {}
    for pool in ("cls", "gap", "map"):
        model = create_model("vit", **options, pool=pool, rngs=nnx.Rngs(0))
        figures, *_ = draw_image_attention(model, image, image / 255)
        titles[pool] = [figures[name].get_suptitle() for name in ("layers", "rollout")]
    assert titles == {
        "cls": ["attention of the class token", "rollout of the class token"],
        "gap": ["attention that each token receives", "rollout of the mean over the tokens"],
        "map": [
            "attention that each token receives (attn_pool: of the pooling's probe)",
            "rollout of the pooling's probe",
        ],
    }

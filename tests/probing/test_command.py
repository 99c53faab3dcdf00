"""The command on published weights and on a run: the features are the model's own, the figures those of the probes."""

import json

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from swin_jax import models, probe
from swin_jax.commands import run_command
from swin_jax.convert import load_pretrained, save_timm
from swin_jax.models import SwinTransformer, VisionTransformer, create_model
from swin_jax.probing.features import frozen_features, without_heads
from swin_jax.probing.few_shot import few_shot_accuracies
from swin_jax.probing.neighbors import neighbor_accuracies

NAME = "vit_test_patch8_32"
OPTIONS = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "image_size": 32}
CLASSES = ("cat", "dog")


@pytest.fixture(autouse=True)
def preset(monkeypatch):
    monkeypatch.setitem(models._PRESETS, NAME, (VisionTransformer, OPTIONS))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise around a colour of each class, as PNG files."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 5)):
        for index, name in enumerate(CLASSES):
            for number in range(count):
                pixels = generator.integers(0, 256, (36, 36, 3)) // 2 + np.array([60 + 20 * index, 60, 60])
                path = folder / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_timm(create_model("vit", **OPTIONS, num_classes=5, rngs=nnx.Rngs(0)), path)  # no head for these classes
    return path


apply = nnx.jit(lambda model, images: model(images))


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_info:
        run_command(probe.main, probe.FLAGS, ["probe.py", *arguments])
    probe.FLAGS.unparse_flags()
    for name in probe.FLAGS:
        probe.FLAGS[name].unparse()
    captured = capsys.readouterr()
    return exit_info.value.code, captured.out, captured.err


def features_by_hand(folder, weights):
    """Of one split: resized to 35 (32 / 0.9), the middle cut out, scaled to [-1, 1], through a model without a head."""
    model = create_model("vit", **OPTIONS, num_classes=0, rngs=nnx.Rngs(1))
    load_pretrained(model, weights, fresh_head=True)
    paths = sorted(folder.rglob("*.png"))
    resized = (Image.open(path).resize((35, 35), Image.Resampling.BICUBIC) for path in paths)
    images = [np.asarray(image.crop((2, 2, 34, 34))) / 127.5 - 1 for image in resized]
    labels = np.array([CLASSES.index(path.parent.name) for path in paths])
    return np.asarray(apply(model, np.stack(images).astype(np.float32))), labels


def test_published_weights(capsys, monkeypatch, photos, weights):
    seen = []

    def record(*arguments, **options):
        seen.append(frozen_features(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr("swin_jax.probing.features.frozen_features", record)
    flags = [f"--model={NAME}", f"--pretrained={weights}", f"--data=folder:{photos}", "--batch_size=7"]
    code, out, err = run(capsys, *flags, "--shots=1,3", "--neighbors=3")
    assert code == 0, err
    figures = json.loads(out.splitlines()[-1])
    for split, (features, labels) in zip(("train", "val"), seen, strict=True):
        by_hand, labels_by_hand = features_by_hand(photos / split, weights)
        # in the order of the source; OpenCV's bicubic and Pillow's differ by up to a grey level
        same = np.abs(features[:, None] - by_hand).max(-1).argmin(-1)
        assert sorted(same) == list(range(len(by_hand)))
        np.testing.assert_allclose(features, by_hand[same], atol=0.03)
        np.testing.assert_array_equal(labels, labels_by_hand[same])
    expected = few_shot_accuracies(*seen, num_classes=2, shots=(1, 3))
    expected |= neighbor_accuracies(*seen, num_classes=2, neighbors=(3,))
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert (figures["train_examples"], figures["test_examples"], figures["features"]) == (16, 10, 16)


@pytest.mark.parametrize(
    "model",
    [
        lambda classes: SwinTransformer(
            image_size=16,
            patch_size=2,
            embed_dim=8,
            depths=(1, 1),
            num_heads=(1, 2),
            window_size=4,
            num_classes=classes,
            rngs=nnx.Rngs(0),
        ),
        lambda classes: VisionTransformer(**OPTIONS, distilled=True, num_classes=classes, rngs=nnx.Rngs(0)),
    ],
    ids=["swin", "distilled vit"],
)
def test_without_heads_is_a_model_of_no_classes(model):
    size = 16 if isinstance(model(3), SwinTransformer) else 32
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    np.testing.assert_array_equal(apply(without_heads(model(3)), images), apply(model(0), images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --workdir"),
        (["--model=vit_tiny_patch16_224", "--pretrained=x.npz"], "--data=... is missing"),
        (["--workdir=nowhere"], "nowhere"),
        (["--workdir=nowhere", "--pretrained=x.npz"], "give one of them"),
        (["--workdir=nowhere", "--shots=1,two"], "--shots=1,two must be whole numbers"),
        (["--workdir=nowhere", "--batch_size=0"], "batch_size=0"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, message):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1

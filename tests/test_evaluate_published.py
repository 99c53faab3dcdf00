"""Published weights evaluated by the command: figures against Pillow and the model by hand, targets, errors."""

import json

import numpy as np
import pytest
import sklearn.datasets
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file

from swin_jax import evaluate, evaluate_published, models
from swin_jax.commands import run_command
from swin_jax.convert import load_pretrained, save_timm
from swin_jax.data.folders import FolderRecords
from swin_jax.data.sources import ImageSource
from swin_jax.models import VisionTransformer, create_model, published
from swin_jax.models.published import Preprocessing, Target

NAME = "vit_test_patch8_32"
OPTIONS = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "image_size": 32}
CLASSES = ("n01", "n02", "n10")
NUM_IMAGES = 13  # no multiple of the batch


@pytest.fixture(autouse=True)
def preset(monkeypatch):
    monkeypatch.setitem(models._PRESETS, NAME, (VisionTransformer, OPTIONS))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Parts of scikit-learn's photos as JPEGs, in folders of classes."""
    folder = tmp_path_factory.mktemp("photos")
    photos = sklearn.datasets.load_sample_images().images
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        top, left = rng.integers(0, 300), rng.integers(0, 400)
        part = photos[number % 2][top : top + 60 + 5 * number, left : left + 90]
        path = folder / CLASSES[number % 3] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(part).save(path, quality=90)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random float16 weights of three classes in timm's layout."""
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_timm(create_model("vit", **OPTIONS, num_classes=3, rngs=nnx.Rngs(0)), path)
    rng = np.random.default_rng(5)
    tensors = {name: rng.normal(0, 0.5, value.shape).astype(np.float16) for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def logits_by_hand(photos, weights):
    """Of every photo, by its path: resized to 35 (32 / 0.9) on the shorter side, cut, scaled to [-1, 1]."""
    model = create_model("vit", **OPTIONS, num_classes=3, rngs=nnx.Rngs(1))
    load_pretrained(model, weights)
    paths, images = sorted(photos.rglob("*.jpg")), []
    for path in paths:
        image = Image.open(path)
        size = tuple(35 if side == min(image.size) else int(35 * side / min(image.size)) for side in image.size)
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (round((side - 32) / 2) for side in size)
        images.append(np.asarray(image.crop((left, top, left + 32, top + 32))) / 127.5 - 1)
    return paths, np.asarray(model(np.stack(images).astype(np.float32)))


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_info:
        run_command(evaluate.main, evaluate.FLAGS, ["evaluate.py", *arguments])
    evaluate.FLAGS.unparse_flags()
    for name in evaluate.FLAGS:
        evaluate.FLAGS[name].unparse()
    captured = capsys.readouterr()
    return exit_info.value.code, captured.out, captured.err


def arguments_of(weights, photos, *more):
    return (f"--model={NAME}", f"--pretrained={weights}", f"--data=folder:{photos}", *more)


def test_the_commands_figures_are_those_of_pillow_and_the_model(weights, photos, logits_by_hand, capsys):
    code, out, err = run(capsys, *arguments_of(weights, photos, "--batch_size=5"))
    assert (code, err) == (0, "")
    result = json.loads(out.splitlines()[-1])
    paths, logits = logits_by_hand
    labels = np.array([CLASSES.index(path.parent.name) for path in paths])
    hits = np.sum(logits.argmax(-1) == labels)
    assert 0 < hits < NUM_IMAGES
    assert (result["count"], result["accuracy"], result["top5"]) == (NUM_IMAGES, hits / NUM_IMAGES, 1.0)
    log_likelihood = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert result["loss"] == pytest.approx(-log_likelihood[np.arange(NUM_IMAGES), labels].mean(), rel=1e-3)
    low, high = result["accuracy_interval"]
    assert 0 <= low < result["accuracy"] < high <= 1
    assert result["targets"] == []
    assert result["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert "no published figure applies: 13 images and 3 classes" in out
    assert "parameters loaded" in out


def test_any_of_several_labels_is_right_and_none_is_not_counted(weights, logits_by_hand):
    paths, logits = logits_by_hand
    worst, middle, best = logits.argsort(-1).T
    right = [[best[n], middle[n]] if n % 3 else [middle[n], worst[n]] for n in range(2, NUM_IMAGES)]
    chosen = [[], [0, 1, 2], *right]
    expected = [int(best[n]) in labels for n, labels in enumerate(chosen) if labels]

    class Records(FolderRecords):
        def __getitem__(self, index):
            return {"image": paths[index].read_bytes(), "label": np.array(chosen[index], np.int32)}

    records = Records(paths=tuple(map(str, paths)), labels=None)
    source = ImageSource(name="real", records=records, order=np.arange(NUM_IMAGES), num_classes=3, multi_label=True)
    figures = evaluate_published.run_evaluation(
        NAME, str(weights), source=source, preprocessing=published.preprocessing(NAME), batch_size=8
    )
    assert figures["count"] == NUM_IMAGES - 1
    assert figures["accuracy"] == pytest.approx(np.mean(expected))
    likelihood = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    losses = [-np.log(likelihood[n, labels].sum()) for n, labels in enumerate(chosen) if labels]
    assert figures["loss"] == pytest.approx(np.mean(losses), rel=1e-3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--model=vit_tset_patch8_32",), f"unknown model 'vit_tset_patch8_32'; did you mean '{NAME}'"),
        (("--model=gpt2",), "gpt2 takes no images"),
        (("--pretrained=/nowhere.safetensors",), "no such checkpoint file: /nowhere.safetensors"),
        (("--data=folder:/nowhere",), "the data folder /nowhere does not exist"),
        (("--split=val",), "no split 'val'"),
        (("--variant=in1k",), f"unknown variant 'in1k' of {NAME}"),
        (("--protocol=google",), "unknown protocol 'google'"),
        (("--batch_size=-1",), "batch_size=-1"),
        (("--image_size=33",), "patch_size"),
        (("--workdir=x",), "give one of them"),
        (("--data=",), "--data=... is missing"),
        (("--model=", "--pretrained=", "--data="), "--workdir=... is missing, or --model=..."),
    ],
)
def test_mistakes_are_one_line(changed, message, weights, photos, capsys):
    code, _, err = run(capsys, *arguments_of(weights, photos, *changed))
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_another_number_of_classes_is_told(weights, photos, tmp_path, capsys):
    (tmp_path / "n01").symlink_to(photos / "n01")
    (tmp_path / "n02").symlink_to(photos / "n02")
    code, _, err = run(capsys, *arguments_of(weights, tmp_path))
    assert code == 2
    assert f"the 2 classes of folder:{tmp_path} all are not those of {weights}" in err
    assert "its head has the shape (16, 3) in the file, (16, 2) in the model" in err


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vit_wide_patch8_32", {"embed_dim": 24}, "does not fit this VisionTransformer: 19 have another shape"),
        (
            "vit_test_patch8_64",
            {"image_size": 64},
            "(1, 65, 16) in the model); take the preset of the file's own resolution, with --image_size for another",
        ),
        ("vit_map_patch8_32", {"pool": "map"}, "are missing (attn_pool.attention.proj.bias"),
    ],
)
def test_a_file_of_another_model_is_not_taken_for_one_of_other_classes(
    name, changes, message, weights, photos, monkeypatch, capsys
):
    monkeypatch.setitem(models._PRESETS, name, (VisionTransformer, OPTIONS | changes))
    code, _, err = run(capsys, *arguments_of(weights, photos, f"--model={name}"))
    assert code == 2
    assert message in err
    assert "classes" not in err
    assert "pass" not in err
    assert len(err.splitlines()) == 1


def test_a_damaged_image_is_named(weights, photos, tmp_path, capsys):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        data = next((photos / name).iterdir()).read_bytes()
        (tmp_path / name / "x.jpg").write_bytes(data[: len(data) // 2] if name == "n02" else data)
    code, _, err = run(capsys, *arguments_of(weights, tmp_path))
    assert code == 2
    assert f"{tmp_path}/n02/x.jpg" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    [(0.8, 10, 0.4902, 0.9433), (0, 20, 0, 0.1611), (0.81388, 50_000, 0.81045, 0.81727)],
)
def test_wilsons_interval(share, count, low, high):
    assert evaluate_published.wilson_interval(share, count) == pytest.approx((low, high), abs=5e-5)


SWIN = "swin_tiny_patch4_window7_224"


@pytest.mark.parametrize(
    ("accuracy", "top5", "protocol", "passed"),
    [
        (0.81388, 0.9554, "timm", [True, None]),
        (0.81480, 0.9550, "timm", [True, None]),
        (0.81490, 0.9554, "timm", [False, None]),
        (0.81388, 0.9566, "timm", [False, None]),
        (0.8117, 0.9552, "official", [None, True]),
        (0.8105, 0.9552, "official", [None, False]),
    ],
)
def test_a_figure_passes_within_the_tolerance_of_one_measured_alike(accuracy, top5, protocol, passed):
    figures = {"accuracy": accuracy, "top5": top5}
    preprocessing = published.preprocessing(SWIN, protocol=protocol)
    rows = [
        evaluate_published.compare(target, figures, name=SWIN, preprocessing=preprocessing)
        for target in published.targets(SWIN, "ms_in1k", "imagenet")
    ]
    assert [row["passed"] for row in rows] == passed
    target = Target("ms_in1k", "authors", None, 81.388, None)
    row = evaluate_published.compare(target, figures, name=SWIN, preprocessing=Preprocessing())
    assert (row["passed"], set(row["differences"])) == (None, {"accuracy"})


@pytest.mark.parametrize(
    ("data", "split", "count", "num_classes", "multi_label", "found"),
    [
        ("tfds:imagenet2012", "validation", 50_000, 1000, False, "imagenet"),
        ("folder:/data", "all", 50_000, 1000, False, "imagenet"),
        ("folder:/data", "train[:50000]", 50_000, 1000, False, None),
        ("tfds:imagenet2012", "validation[:90%]", 45_000, 1000, False, None),
        ("folder:/data", "validation", 50_000, 999, False, None),
        ("tfds:imagenet2012_real", "validation", 50_000, 1000, True, "real"),
        ("tfds:imagenet_v2", "test", 10_000, 1000, False, "v2"),
        ("tfds:imagenet_v2/matched-frequency:3.0.0", "test", 10_000, 1000, False, "v2"),
        ("tfds:imagenet_v2/topimages", "test", 10_000, 1000, False, None),
    ],
)
def test_targets_are_for_the_whole_data_set_only(data, split, count, num_classes, multi_label, found):
    source = ImageSource(
        name=data, records=None, order=np.arange(count), num_classes=num_classes, multi_label=multi_label
    )
    assert evaluate_published.known_dataset(data, split, source) == found


def test_the_table_of_targets(weights, photos, monkeypatch, capsys):
    """Were these photos the validation set: one row passes, one fails, one was measured otherwise."""
    figures = {"timm": {f"{NAME}.a": (0.0, 100.0), f"{NAME}.b": (50.0, 50.0)}, "official": {f"{NAME}.a": (1.0,)}}
    monkeypatch.setattr(published, "_FIGURES", figures)
    monkeypatch.setattr(evaluate_published, "known_dataset", lambda *arguments: "imagenet")
    monkeypatch.setattr(
        evaluate_published,
        "run_evaluation",
        lambda *arguments, **options: {"accuracy": 0.0005, "top5": 1.0, "loss": 1.0, "count": 13, "seconds": 1.0},
    )
    code, out, _ = run(capsys, *arguments_of(weights, photos))
    assert code == 0
    assert "--variant=... picks one" in out
    rows = [line.split("  ")[-1] for line in out.splitlines() if line.startswith(("timm, ", "authors, "))]
    assert rows == ["pass", "measured with other preprocessing", "FAIL"]
    result = json.loads(out.splitlines()[-1])
    assert [row["passed"] for row in result["targets"]] == [True, None, False]
    assert result["targets"][0]["differences"] == {"accuracy": 0.05, "top5": 0.0}
    code, out, _ = run(capsys, *arguments_of(weights, photos, "--variant=b"))
    assert [row["variant"] for row in json.loads(out.splitlines()[-1])["targets"]] == ["b"]

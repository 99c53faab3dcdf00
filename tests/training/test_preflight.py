"""What is found before compilation, by hand on small sources; a run over a damaged file, stopped and skipping."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from swin_jax.commands import load_config
from swin_jax.data import unreadable
from swin_jax.data.sources import array_source, make_source
from swin_jax.errors import UserError
from swin_jax.training import loop, preflight
from swin_jax.training.inputs import ImageInputs, open_inputs
from swin_jax.training.sharding import make_mesh

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """40 PNGs of noise in two classes."""
    root = tmp_path_factory.mktemp("images")
    for number in range(40):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return root


def config_of(folder, *overrides):
    data = (f"data.source=folder:{folder}", "data.channels=3", "data.crop=random_resized", "data.eval_crop=resize")
    model = ("model.depth=1", "model.embed_dim=16", "model.num_heads=2", "model.patch_size=4")
    run = (
        "batch_size=8",
        "total_epochs=2",
        "log_every_steps=1",
        "task.mean=(0.5,)",
        "task.std=(0.25,)",
        "checkpoint_every_epochs=1",
    )
    return load_config(str(ROOT / "configs" / "digits" / "vit.py"), (*data, *model, *run, *overrides))


def check(folder, *overrides, num_images=256, on_corrupt="stop"):
    inputs = open_inputs(config_of(folder, *overrides, f"data.on_corrupt={on_corrupt}"))
    return preflight.check_inputs(inputs, num_images=num_images, seed=0, on_corrupt=on_corrupt, worker_count=0)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(preflight, "RATE_SECONDS", 0.05)


def test_what_is_fine_takes_a_line(images, quick):
    report = check(images)
    (line,) = report.lines
    assert f"folder:{images} train: 36 images to train, 4 to evaluate, 2 classes; about" in line
    assert report.images_per_second > 0
    assert {name: value.shape[1:] for name, value in report.batch.items()} == {"image": (16, 16, 3), "label": ()}
    assert preflight.check_inputs(None, num_images=0, seed=0, on_corrupt="stop", worker_count=0) == preflight.Report()


def test_what_is_odd_is_told(images, quick):
    lines = check(images, "data.eval_split=train[:10]", "data.num_classes=5").lines
    assert any("data.num_classes=5, but" in line and "has 2" in line for line in lines)
    assert any("10 of the 10 images of" in line and "are trained on" in line for line in lines)
    halves = check(images, "data.train_split=train[10:]", "data.eval_split=train[:20]").lines
    assert any("10 of the 20 images" in line for line in halves)
    assert len(check(images, "data.train_split=train[10:]", "data.eval_split=train[:10]").lines) == 1
    missing = array_source("mine", np.zeros((6, 2, 2, 1), np.uint8), np.array([0, 2, 2, 5, 0, 2]), num_classes=7)
    (line,) = preflight.class_warnings(missing, 7)
    assert "no image of 4 of 7 classes: 1; 3; 4; 6" in line


def test_images_in_memory_are_not_timed():
    config = load_config(str(ROOT / "configs" / "digits" / "vit.py"))
    report = preflight.check_inputs(ImageInputs(config), num_images=256, seed=0, on_corrupt="stop", worker_count=0)
    assert len(report.lines) == 1
    assert report.images_per_second is None


def test_unreadable_images_are_all_named(images, tmp_path, quick):
    for path in images.rglob("*.png"):
        target = tmp_path / path.relative_to(images)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes()[:200] if path.stem in ("6", "7") else path.read_bytes())
    with pytest.raises(UserError, match=r"2 of 40 sampled images .*png.*; .*png.*; data.on_corrupt=skip goes on"):
        check(tmp_path, "data.train_split=all")
    lines = check(tmp_path, "data.train_split=all", "data.eval_split=all", on_corrupt="skip").lines
    told = [line for line in lines if "are unreadable" in line]
    assert len(told) == 2
    for line in told:
        assert "2 of 40 sampled images" in line
        assert str(tmp_path / "a" / "6.png") in line
        assert str(tmp_path / "b" / "7.png") in line


def test_a_wrong_label_stops_whatever_the_config_says(images):
    source = make_source(f"folder:{images}", "all")
    object.__setattr__(source.records, "labels", np.full(40, 2, np.int32))
    with pytest.raises(UserError, match=r"label 2 of .* is outside of num_classes=2"):
        list(preflight.sample(source, num_images=9, num_classes=2, channels=3, seed=0, on_corrupt="skip"))


def test_the_input_is_held_against_the_model(monkeypatch):
    """A product of [8, 100] and [100, 50] has 2 * 8 * 100 * 50 operations: 10 kFLOP an image."""
    mesh = make_mesh(devices=jax.devices()[:1])
    step = jax.jit(lambda state, batch, seed: (batch["image"] @ state, seed))
    batch = {"image": np.zeros((2, 100), np.float32), "label": np.zeros(2, np.int32)}
    state = jnp.zeros((100, 50))

    def told(rate):
        report = preflight.Report(images_per_second=rate, batch=batch)
        return list(preflight.compare(report, step, state, mesh, batch_size=8))

    assert told(100.0) == []  # what this processor can do is not known
    monkeypatch.setattr(preflight, "PEAK_FLOPS", {jax.devices()[0].device_kind: 1e9})
    assert told(None) == []
    (slow,), (fast,) = told(39_000.0), told(41_000.0)  # wanted: 0.4 * 1e9 / 1e4 = 40,000
    assert slow.startswith("warning: the input makes about 39,000 images/s, the model could take 40,000")
    assert fast.startswith("the input makes about 41,000 images/s, the model could take 40,000")


def test_a_run_over_a_damaged_file(images, tmp_path, capsys, quick):
    """It stops and names the file; told to skip, the same workdir trains, counts, and resumes to the same end."""
    unreadable.warn_once.cache_clear()
    data = tmp_path / "data"
    for path in images.rglob("*.png"):
        (data / path.parent.name).mkdir(parents=True, exist_ok=True)
        (data / path.parent.name / path.name).write_bytes(path.read_bytes())
    source = make_source(f"folder:{data}", "train")
    bad = pathlib.Path(source.describe(5).split(" of folder:")[0])
    bad.write_bytes(bad.read_bytes()[:200])
    mesh = "mesh.data=8"
    with pytest.raises(UserError, match=str(bad)):
        loop.train(config_of(data, mesh, "data.preflight=0"), workdir=str(tmp_path / "run"))
    with pytest.raises(UserError, match=str(bad)):
        loop.train(config_of(data, mesh), workdir=str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()

    result = loop.train(config_of(data, mesh, "data.on_corrupt=skip"), workdir=str(tmp_path / "run"))
    straight = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    skipped = {line["step"]: line["train/skipped"] for line in straight if "train/skipped" in line}
    assert result["skipped"] == skipped[8] >= 1
    assert list(skipped) == list(range(1, 9))
    assert result["eval/count"] == 4
    assert f"{bad}" in capsys.readouterr().out  # the preflight's warning
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    again = loop.train(config_of(data, mesh, "data.on_corrupt=skip"), workdir=str(tmp_path / "run"))
    assert "going on from step 4 of 8" in capsys.readouterr().out
    for key in ("skipped", "eval/loss", "step"):
        assert again[key] == result[key]

"""The measured input: what is measured does the same work, clocks of our own, and the command on a few images."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from swin_jax import benchmark
from swin_jax.benchmarking import data
from swin_jax.benchmarking.data import Options, Rates
from swin_jax.commands import run_subcommand
from swin_jax.data.sources import make_source
from swin_jax.errors import UserError

OPTIONS = Options(image_size=48, interpolation="bilinear", decoder="turbo", batch_size=4)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_info:
        run_subcommand(benchmark.COMMANDS, ["benchmark.py", *arguments])
    for name in benchmark.DATA_FLAGS:
        benchmark.DATA_FLAGS[name].unparse()
    captured = capsys.readouterr()
    return exit_info.value.code, captured.out, captured.err


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    data.write_photos(folder)
    return folder


def test_photos_are_32_different_jpegs_of_real_ones(photos):
    paths = sorted(photos.rglob("*.jpg"))
    assert len({path.read_bytes() for path in paths}) == 32
    assert {Image.open(path).size for path in paths} == {(500, 375)}
    assert min(np.asarray(Image.open(path)).std() for path in paths) > 20


def test_both_ways_do_the_same_work(photos):
    """Every image once an epoch, random crops of the same statistics; the tail that fills no batch is left out."""
    source = data.repeated(make_source(f"folder:{photos}", "train"), 70)
    assert [source.describe(index) for index in (0, 32, 64)] == [source.describe(0)] * 3
    ours = np.concatenate(list(data.pipeline(source, OPTIONS, seed=0, num_threads=1)))
    pillow = np.concatenate(list(data.pillow_batches(source, OPTIONS, seed=0)))
    assert ours.shape == pillow.shape == (68, 48, 48, 3)
    assert ours.dtype == pillow.dtype == np.uint8
    assert abs(ours.mean() - pillow.mean()) < 8
    assert abs(ours.std() - pillow.std()) < 8
    with pytest.raises(UserError, match="in memory"):
        data.repeated(make_source("digits", "train"), 10)


def test_rates_are_images_by_the_clock():
    clock = iter([10.0, 12.5])
    assert data.rate(iter([np.zeros(4), np.zeros(6)]), lambda: next(clock)) == 4.0
    rates = Rates(ours=(200.0, 330.0, 100.0), pillow=(100.0, 110.0, 50.0))
    assert rates.ratios == pytest.approx((2.0, 2.0, 3.0))
    text = data.table(rates, {"read": 0.001, "decode": 0.003}, {2: 77.4})
    lines = [line.split() for line in text.splitlines() if line]
    assert ["median", "of", "the", "rounds", "200", "100", "2.00"] in lines
    assert ["decode", "3000", "us", "60%"] in lines
    assert ["threads", "and", "the", "rest", "1000", "us", "20%"] in lines
    assert ["2", "threads", "77", "images/s"] in lines


@pytest.mark.parametrize("decoder", ["turbo", "pillow"])
def test_command(photos, capsys, decoder):
    few = ["--images=16", "--batch_size=8", "--rounds=2", "--image_size=64", "--threads=1,2", f"--decoder={decoder}"]
    code, out, err = run(capsys, "data", f"--data=folder:{photos}", *few)
    assert (code, err) == (0, "")
    result = json.loads(out.splitlines()[-1])
    assert len(result["images_per_cpu_second"]["ours"]) == len(result["images_per_cpu_second"]["pillow"]) == 2
    assert 0 < result["ratio"]["low"] <= result["ratio"]["median"] <= result["ratio"]["high"]
    assert list(result["cpu_seconds_per_image"]) == ["read", "decode", "crop and resize", "batch"]
    assert all(seconds > 0 for seconds in result["cpu_seconds_per_image"].values())
    assert list(result["images_per_second_by_threads"]) == ["1", "2"]
    sizes = [path.stat().st_size for path in pathlib.Path(photos).rglob("*.jpg")]
    assert min(sizes) < result["bytes_per_image"] < max(sizes)
    assert f"decoder {decoder}" in out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["data", "--images=3", "--batch_size=4"], "--images=3 do not fill a batch of 4"),
        (["data", "--rounds=0"], "--rounds=0 must be at least 1"),
        (["data", "--threads=0"], "--threads must be at least 1"),
        (["data", "--data=digits"], "is in memory"),
        (["data", "--data=folder:/nowhere"], "/nowhere does not exist"),
        (["data", "--decoder=fast"], "turbo"),
        (["dats"], "did you mean 'data'"),
    ],
)
def test_mistakes_are_one_line(arguments, named, capsys):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert named in err
    assert len(err.splitlines()) == 1

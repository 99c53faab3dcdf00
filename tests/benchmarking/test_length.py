"""The cost of length: exponents of known curves, what the programs compute, and the command on tiny sizes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from swin_jax import benchmark
from swin_jax.benchmarking import length
from swin_jax.benchmarking.length import Series, attention_program, fit_exponent, table
from swin_jax.benchmarking.timing import Program, Timing, compile_program, measure
from swin_jax.commands import run_subcommand


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_info:
        run_subcommand(benchmark.COMMANDS, ["benchmark.py", *arguments])
    for name in benchmark.LENGTH_FLAGS:
        benchmark.LENGTH_FLAGS[name].unparse()
    captured = capsys.readouterr()
    return exit_info.value.code, captured.out, captured.err


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.7, 2.0])
def test_exponent_of_a_power_law(exponent):
    sizes = [64, 128, 256, 512, 1000]
    assert fit_exponent(sizes, [3e-6 * size**exponent for size in sizes]) == pytest.approx(exponent, abs=1e-9)


def test_exponent_is_that_of_the_upper_half():
    sizes = [1, 2, 4, 8, 16, 32]
    costs = [5.0, 5.0, 5.0, *(7.0 * size**2 for size in sizes[3:])]  # an overhead first, then the square
    assert fit_exponent(sizes, costs) == pytest.approx(2.0)


def test_exponent_is_the_least_squares_line():
    sizes, noise = np.array([10, 20, 40, 80, 160, 320]), np.array([0, 0, 0, 0.1, -0.2, 0.05])
    x, y = np.log(sizes[3:]), np.log(sizes[3:]) * 1.5 + noise[3:]
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    assert fit_exponent(sizes.tolist(), np.exp(np.log(sizes) * 1.5 + noise).tolist()) == pytest.approx(slope)


@pytest.mark.parametrize(("sizes", "costs"), [([], []), ([8], [1.0]), ([8, 16], [0, 3]), ([8, 16], [None, None])])
def test_exponent_that_cannot_be_told(sizes, costs):
    assert fit_exponent(sizes, costs) is None


def test_timing_is_median_and_quartiles_of_a_call(monkeypatch):
    """A clock of our own: calls last 1, 2, 3, ... ms, and two of them warm up."""
    now, lasted = [0.0], []

    def call():
        lasted.append(len(lasted) + 1)
        now[0] += lasted[-1] / 1e3
        return jnp.zeros(())

    monkeypatch.setattr("swin_jax.benchmarking.timing.time.perf_counter", lambda: now[0])
    timing = measure({"a": Program(call, None)}, samples=5, sample_seconds=0.0)["a"]
    assert lasted == [1, 2, 3, 4, 5, 6, 7]
    assert (timing.median, timing.low, timing.high) == pytest.approx((5e-3, 4e-3, 6e-3))
    lasted.clear()
    timing = measure({"a": Program(call, None)}, samples=1, sample_seconds=5e-3)["a"]
    assert len(lasted) == 2 + 3  # three calls of 2 ms, as the second was, fill 5 ms
    assert timing.median == pytest.approx(4e-3)


def test_temporaries_are_those_of_xla():
    """Two products of which the first [256, 256] float32 is not returned."""
    program = compile_program(lambda x: jnp.tanh(x @ x.T) @ x, jnp.ones((256, 4)))
    assert program.temporary_bytes >= 256 * 256 * 4
    np.testing.assert_allclose(program.run(), np.full((256, 4), 256 * np.tanh(4)), rtol=1e-5)


@pytest.mark.parametrize("name", ["full attention", "causal attention", "windowed attention"])
def test_attention_that_is_measured(name):
    """Output and gradients against a softmax written down here, in numpy's double precision."""
    output, gradients = attention_program(name, 8, window=4, num_heads=2, head_dim=3, dtype=jnp.float32).run()
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value, gradient = (
        np.asarray(jax.random.normal(each, output.shape), np.float64).reshape(-1, output.shape[-3], 2, 3)
        for each in keys
    )
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(3)
    if name == "causal attention":
        scores = np.where(np.tri(8, dtype=bool), scores, -np.inf)
    assert scores.shape[-1] == (4 if name == "windowed attention" else 8)
    probabilities = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhd->bqhd", probabilities, value)
    np.testing.assert_allclose(output.reshape(expected.shape), expected, atol=1e-5)
    value_gradient = np.einsum("bhqk,bqhd->bkhd", probabilities, gradient)
    np.testing.assert_allclose(gradients[2].reshape(expected.shape), value_gradient, atol=1e-5)
    towards = np.einsum("bqhd,bkhd->bhqk", gradient, value)
    of_scores = probabilities * (towards - (towards * probabilities).sum(-1, keepdims=True))
    query_gradient = np.einsum("bhqk,bkhd->bqhd", of_scores, key) / np.sqrt(3)
    np.testing.assert_allclose(gradients[0].reshape(expected.shape), query_gradient, atol=1e-5)


def test_table_has_the_figures():
    timings = tuple(Timing(size / 1e6, size / 2e6, size / 1e5) for size in (1000, 2000))
    text = table([Series("full attention", (1000, 2000), timings, (10**6, 4 * 10**6))])
    assert text.splitlines()[1].split() == ["full", "attention", "1000", "1.000", "0.500", "to", "10.000", "1.00"]
    assert "time ~ tokens^1.00, memory ~ tokens^2.00" in text.splitlines()[-1]


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(length.MODELS, "ViT", {**length.MODELS["ViT"], "depth": 1, "embed_dim": 8})
    shallow = {"depths": (1,), "num_heads": (2,), "embed_dim": 8}  # in which no window shifts
    monkeypatch.setitem(length.MODELS, "Swin", {**length.MODELS["Swin"], **shallow})
    path = tmp_path / "plots" / "length.png"
    arguments = ["--lengths=16,8,32", "--window=8", "--head_dim=4", "--image_sizes=64,128"]
    code, out, err = run(capsys, "length", *arguments, "--samples=2", "--sample_seconds=0", f"--out={path}")
    assert (code, err) == (0, "")
    result = json.loads(out.splitlines()[-1])
    series = {each["name"]: each for each in result["series"]}
    assert list(series) == ["full attention", "causal attention", "windowed attention", "ViT", "Swin"]
    assert series["full attention"]["tokens"] == [8, 16, 32]
    assert series["Swin"]["tokens"] == [256, 1024]
    for each in series.values():
        assert all(0 < timing["low"] <= timing["median"] <= timing["high"] for timing in each["seconds"])
        assert len(each["seconds"]) == len(each["temporary_bytes"]) == len(each["tokens"])
    # Memory is no matter of luck: four times the tokens.
    growth = {name: each["temporary_bytes"][-1] / each["temporary_bytes"][-2] for name, each in series.items()}
    assert growth["ViT"] > 8
    assert growth["Swin"] < 5
    assert series["ViT"]["memory_exponent"] == pytest.approx(np.log2(growth["ViT"]) / 2)
    assert len(out.splitlines()) > 3 * 3 + 2 * 2
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10  # several lines in colours, and text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["lenght"], "unknown command 'lenght', known: train, infer, attention, length, data; did you mean 'length'?"),
        ([], "a command is missing, known: train, infer, attention, length, data"),
        (["length", "--lengths=12", "--window=8"], "windows of 8 tokens do not divide a length of 12"),
        (["length", "--image_sizes=48"], "image size 48 is no multiple of 32"),
        (["length", "--lengths=a"], "--lengths takes whole numbers such as 3,5, not 'a'"),
        (["length", "--lengths=0"], "must be at least 1"),
        (["length", "--samples=0"], "--samples=0 must be at least 1"),
        (["length", "--dtype=int8"], "float32"),
    ],
)
def test_mistakes_are_one_line(arguments, named, capsys):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert named in err
    assert len(err.splitlines()) == 1

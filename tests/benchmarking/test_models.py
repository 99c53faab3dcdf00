"""The step that is timed: its FLOPs by hand, and the command."""

import json

import pytest

from swin_jax import benchmark
from swin_jax.benchmarking.models import Work, compile_work
from swin_jax.commands import run_subcommand
from swin_jax.errors import UserError
from swin_jax.models.vit import VisionTransformer

MODEL, SIDE = "vit_tiny_patch16_224", 32


class Shallow(VisionTransformer):
    """ViT-Ti of three layers: it compiles sooner."""

    def __init__(self, *, num_classes, image_size, in_channels, dtype, scan, drop_path_rate, rngs):
        options = {"num_classes": num_classes, "image_size": image_size, "in_channels": in_channels, "dtype": dtype}
        options |= {"drop_path_rate": drop_path_rate, "scan": scan, "rngs": rngs}
        super().__init__(embed_dim=192, depth=3, num_heads=3, **options)


def forward_flops(*, tokens, dim, depth, side=SIDE, patch=16, num_classes=1000):
    """Twice the multiplications of a ViT's matrix products, for one image."""
    block = tokens * dim * (3 * dim + dim + 8 * dim) + 2 * tokens**2 * dim
    return 2 * (depth * block + (side // patch) ** 2 * 3 * patch**2 * dim + dim * num_classes)


@pytest.mark.parametrize(("microbatch", "scan", "devices"), [(0, False, 1), (2, True, 1), (2, False, 2)])
def test_flops_are_those_of_the_matrix_products_however_the_batch_is_cut(microbatch, scan, devices):
    cut = {"microbatch": microbatch, "scan": scan, "devices": devices}
    compiled = compile_work(Work("infer", MODEL, batch_size=4, image_size=SIDE, **cut))
    by_hand = forward_flops(tokens=5, dim=192, depth=12)
    assert by_hand < compiled.flops / 4 < 1.1 * by_hand  # XLA counts what is between the products as well
    logits = compiled.program.run()
    assert logits.shape == (4 // (microbatch or 4), microbatch or 4, 1000)
    assert len(logits.sharding.device_set) == devices


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_info:
        run_subcommand(benchmark.COMMANDS, ["benchmark.py", *arguments])
    for name in benchmark.STEP_FLAGS:
        benchmark.STEP_FLAGS[name].unparse()
    captured = capsys.readouterr()
    return exit_info.value.code, captured.out, captured.err


def test_training_command(capsys):
    options = (
        f"--model={__name__}:Shallow",
        f"--image_size={SIDE}",
        "--batch_size=2",
        "--samples=2",
        "--sample_seconds=0.01",
        "--devices=2",
        "--scan",
    )
    code, out, _ = run(capsys, "train", *options)
    found = json.loads(out.splitlines()[-1])
    assert code == 0
    forward = forward_flops(tokens=5, dim=192, depth=3)
    adamw = 20 * 1.7e6 / 2  # some 20 operations for each of the parameters, for two images
    assert 3 * forward < found["flops_per_image"] < 3.3 * forward + adamw
    assert found["images_per_second"] == pytest.approx(2 / found["seconds"]["median"])
    assert found["fraction_of_matmul"] == pytest.approx(found["flops_per_second"] / found["matmul_flops_per_second"])
    assert 0 < found["fraction_of_matmul"] < 1.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("infer", "--model=swin_tiny_patch4_window7_22"), "did you mean 'swin_tiny_patch4_window7_224'"),
        (("train", "--batch_size=8", "--microbatch=3"), "--batch_size=8 is no multiple of --microbatch=3"),
        (("infer", "--batch_size=8", "--microbatch=2", "--devices=4"), "--devices=4 cannot share 2 image(s)"),
        (("infer", "--batch_size=999", "--devices=999"), "--devices=999, and there are "),
        (("train", "--against=tim"), "--against=tim: known are timm"),
        (("train", "--against=eager", "--torch_python=/none"), "--torch_python=/none: No such file or directory"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, message):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_unknown_work():
    with pytest.raises(UserError, match="no multiple"):
        Work("train", MODEL, batch_size=8, microbatch=16)

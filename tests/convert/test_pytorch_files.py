"""PyTorch's own files, read by PyTorch, which the other tests do without:

pip install torch && python -m pytest -m slow tests/convert/test_pytorch_files.py
"""

import argparse
import collections

import numpy as np
import pytest

from swin_jax.convert import load_pretrained, read_checkpoint
from swin_jax.errors import UserError
from tests.convert import goldens
from tests.convert.test_load import assert_same_parameters
from tests.convert.test_readers import Bomb, refusal

pytestmark = pytest.mark.slow


def state_dict(name: str):
    import torch

    weights = goldens.part(name, "weights")
    return collections.OrderedDict((key, torch.from_numpy(np.array(value))) for key, value in weights.items())


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_files_of_every_format_load(options, wrapper, tmp_path):
    import torch

    weights = state_dict("official_swin")
    torch.save({wrapper: weights} if wrapper else weights, tmp_path / "model.pth", **options)
    model = goldens.build("official_swin")
    assert load_pretrained(model, tmp_path / "model.pth").layout == "official Swin"
    logits, _ = goldens.run(model, goldens.part("official_swin", "images")["32x32"])
    np.testing.assert_allclose(logits, goldens.part("official_swin", "logits")["32x32"], atol=1e-5)


@pytest.mark.parametrize("name", goldens.TEXT_MODELS)
def test_text_weights_as_a_pytorch_file_are_those_of_safetensors(name, tmp_path):
    import torch

    weights = state_dict(name)
    table = weights.get("transformer.wte.weight", weights.get("model.shared.weight"))
    torch.save({**weights, "lm_head.weight": table}, tmp_path / "pytorch_model.bin")
    model = goldens.build(name)
    assert load_pretrained(model, tmp_path / "pytorch_model.bin").ignored.keys() == {"lm_head.weight"}
    assert_same_parameters(model, goldens.load(name, tmp_path)[0])


def test_a_training_checkpoint_with_its_options_loads(tmp_path):
    import torch

    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {"model": state_dict("timm_deit3"), "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save({**content, "args": argparse.Namespace(lr=0.1)}, tmp_path / "model.pth")
    report = load_pretrained(goldens.build("timm_deit3"), tmp_path / "model.pth")
    assert report.ignored == dict.fromkeys(("optimizer", "epoch", "args"), "beside 'model'")


def test_half_precision_loads(tmp_path):
    import torch

    weights = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.ones(3, dtype=torch.float16)}
    torch.save(weights, tmp_path / "model.pth")
    tensors, _ = read_checkpoint(tmp_path / "model.pth")
    assert all(tensor.dtype == np.float32 and np.all(tensor == 1) for tensor in tensors.values())


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_code_is_refused_and_truncation_told(options, tmp_path):
    import torch

    torch.save({"model": Bomb(tmp_path / "trace")}, tmp_path / "bomb.pth", **options)
    assert "refused, not run" in refusal(tmp_path / "bomb.pth")
    assert not (tmp_path / "trace").exists()
    torch.save(state_dict("timm_vit"), tmp_path / "model.pth", **options)
    content = (tmp_path / "model.pth").read_bytes()
    for keep in (0.1, 0.5, 0.99):
        (tmp_path / "cut.pth").write_bytes(content[: int(keep * len(content))])
        assert "damaged or truncated" in refusal(tmp_path / "cut.pth")


def test_what_is_refused_is_named_in_short(tmp_path):
    import torch

    torch.save({"model": state_dict("timm_vit"), "metric": np.float64(80.1)}, tmp_path / "model.pth")
    assert refusal(tmp_path / "model.pth").endswith(
        "refused, not run: Unsupported global: GLOBAL numpy._core.multiarray.scalar"
    )


def test_an_innocent_looking_class_is_refused_too(tmp_path):
    """What the quick look at the imports lets pass, PyTorch's own loader still refuses."""
    (tmp_path / "model.pth").write_bytes(b"\x80\x02ctorch.hub\nload\n(X\x01\x00\x00\x00atR.")
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / "model.pth")

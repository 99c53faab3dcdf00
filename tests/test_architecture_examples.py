"""The examples of docs/architecture.md, run as printed."""

import json
import re
import sys
from pathlib import Path

import pytest

from swin_jax.training.default_config import default_config
from swin_jax.training.loop import train

DOCUMENT = Path(__file__).parent.parent / "docs" / "architecture.md"
EXAMPLES = dict(re.findall(r"```python\n# (my_\w+\.py)\n(.*?)```", DOCUMENT.read_text(), re.DOTALL))


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The smallest run, with the examples importable."""
    for name, code in EXAMPLES.items():
        (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    for name in EXAMPLES:
        sys.modules.pop(name.removesuffix(".py"), None)
    config = default_config()
    config.total_steps, config.batch_size = 2, 32
    config.model.update(patch_size=2, embed_dim=8, depths=(2,), num_heads=(2,), window_size=2)
    config.data.update(image_size=8, channels=1, crop="resize", eval_crop="resize", eval_split="test[:40]")
    config.task.update(mean=(0.5,), std=(0.5,))
    return config


def test_each_way_of_adding_has_an_example_of_under_15_lines():
    assert set(EXAMPLES) == {"my_block.py", "my_model.py", "my_task.py", "my_data.py"}
    for name, code in EXAMPLES.items():
        assert len(code.strip().splitlines()) < 15, name


@pytest.mark.parametrize("example", ["block", "model", "task", "data"])
def test_example_trains(config, tmp_path, example):
    if example == "block":
        config.model.attention = "my_block:MeanAttention"
    elif example == "model":
        for key in [key for key in config.model if key != "name"]:
            del config.model[key]
        config.model.update(name="my_model:TinyConvNet", width=8)
    elif example == "task":
        config.task.name = "my_task:BinaryCrossEntropy"
    else:
        config.data.source = "my_data:stripes"
    summary = train(config, workdir=str(tmp_path / "run"))
    assert summary["step"] == 2
    assert 0.0 <= summary["eval/accuracy"] <= 1.0
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    if example == "task":  # ten binary questions at chance, not one of ten
        assert abs(first["train/loss"] - 0.693) < 0.15

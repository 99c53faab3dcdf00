"""The committed goldens, and our models with their weights loaded."""

import json
from functools import cache
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from swin_jax.convert import LoadReport, load_pretrained
from swin_jax.models import create_model

# These models run once, so compiling is what they cost.
COMPILE_FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
FOLDER = Path(__file__).parents[1] / "golden"

# The goldens that are a model, and the layout that the report on it names.
MODELS = {
    "timm_swin": "timm Swin",
    "timm_swin_gradients": "timm Swin",
    "timm_swin_rectangles": "timm Swin",
    "timm_swin_shrunk": "timm Swin",
    "official_swin": "official Swin",
    "hf_swin": "HF Swin",
    "timm_vit": "timm ViT",
    "timm_vit_gap": "timm ViT",
    "timm_vit_gap_no_token": "timm ViT",
    "timm_vit_map": "timm ViT",
    "timm_deit3": "timm ViT",
    "timm_deit_distilled": "timm ViT",
    "hf_vit": "HF ViT",
    "hf_deit": "HF ViT",
    "google_augreg": "Google ViT",
    "google_big_vision_map": "big_vision ViT",
    "google_big_vision_gap": "big_vision ViT",
}
TEXT_MODELS = {"hf_gpt2": "HF GPT-2", "hf_marian": "HF Marian"}


@cache
def read(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as archive:
        return dict(archive)


def part(name: str, prefix: str) -> dict[str, np.ndarray]:
    """Return the entries under `prefix/`, without it."""
    return {key.removeprefix(f"{prefix}/"): value for key, value in read(name).items() if key.startswith(f"{prefix}/")}


def build(name: str, **changes) -> nnx.Module:
    """Return a model of the golden's architecture, of shapes alone: all values are to come from a file."""
    arguments = json.loads(str(read(name)["about"]))["model"] | changes
    return nnx.eval_shape(lambda: create_model(**arguments, rngs=nnx.Rngs(0)))


def text_inputs(name: str) -> tuple[tuple[np.ndarray, ...], dict[str, np.ndarray], np.ndarray]:
    """Return what a text golden's model is called with, and which of its logits `[B, N]` are no padding's."""
    entries = read(name)
    if "source" not in entries:
        segments = _segments(entries["tokens"], entries["lengths"])
        return (entries["tokens"],), {"segments": segments}, segments > 0
    labels, source = entries["labels"], entries["source"]
    is_target, start = labels >= 0, entries["decoder_start_id"]
    target = np.roll(np.where(is_target, labels, start), 1, axis=1)
    target[:, 0] = start
    segments = {
        "source_segments": _segments(source, entries["source_lengths"]),
        "target_segments": is_target.astype(int),
    }
    return (source, target), segments, is_target


def _segments(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return (np.arange(tokens.shape[1]) < lengths[:, None]).astype(np.int32)


def write_weights(weights: dict[str, np.ndarray], folder: Path) -> Path:
    """Write weights as a file of the kind that their layout is published in."""
    if any("/" in key for key in weights):
        np.savez(folder / "weights.npz", **weights)
        return folder / "weights.npz"
    weights = {key: np.ascontiguousarray(value) for key, value in weights.items()}
    safetensors.numpy.save_file(weights, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def load(name: str, folder: Path) -> tuple[nnx.Module, LoadReport]:
    model = build(name)
    return model, load_pretrained(model, write_weights(part(name, "weights"), folder))


def run(model: nnx.Module, images: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return logits and features."""
    graph, state = nnx.split(model)

    def forward(state, images):
        model = nnx.merge(graph, state)
        return model(images), model.features(images)

    return jax.jit(forward, compiler_options=COMPILE_FAST)(state, images)

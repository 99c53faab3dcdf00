"""Run Google's own ViT code on the weights of the google_*.npz goldens, whose outputs there are timm's.

The two differ by 1e-4 and more: Google's GELU is the tanh approximation, timm's the exact one. Run with a Python that
has this package (flax) and clones of https://github.com/google-research/vision_transformer and .../big_vision:

    python tests/golden/make_google_goldens.py --vit_repository=DIR --big_vision_repository=DIR
"""

import argparse
import sys
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from flax.traverse_util import unflatten_dict

from tests.golden import reference

FOLDER = Path(__file__).parent
SHAPE = dict(num_classes=5, depth=2, width=16, num_heads=4, mlp_dim=64, patch=(4, 4))


def stand_in(*names: str) -> None:
    """Let imports pass that the model code makes for other purposes (reading files, ResNets)."""
    for name in names:
        sys.modules[name] = types.ModuleType(name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])


def read(name: str, prefix: str, renames: dict[str, str]) -> tuple[dict, np.ndarray]:
    """Return a golden's weights as a tree under the names that today's Flax gives, and its images."""
    weights = {}
    with np.load(FOLDER / f"{name}.npz") as archive:
        for key in archive.files:
            if key.startswith("weights/"):
                path = key.removeprefix("weights/").removeprefix(prefix)
                for old, new in renames.items():
                    path = path.replace(old, new)
                weights[tuple(path.split("/"))] = archive[key]
        return unflatten_dict(weights), archive["images/16x16"]


def run_vision_transformer(repository: Path) -> np.ndarray:
    stand_in("vit_jax", "vit_jax.models_resnet")
    code = reference.load_official(repository, "vit_jax/models_vit.py")
    encoder = dict(
        num_layers=SHAPE["depth"],
        mlp_dim=SHAPE["mlp_dim"],
        num_heads=SHAPE["num_heads"],
        dropout_rate=0.0,
        attention_dropout_rate=0.0,
    )
    model = code.VisionTransformer(
        num_classes=SHAPE["num_classes"],
        patches=types.SimpleNamespace(size=SHAPE["patch"]),
        transformer=encoder,
        hidden_size=SHAPE["width"],
    )
    renames = {"Attention_1": "Attention_0", "LayerNorm_2": "LayerNorm_1", "MlpBlock_3": "MlpBlock_0"}
    weights, images = read("google_augreg", "", renames)
    return model.apply({"params": weights}, images, train=False)


def run_big_vision(repository: Path, name: str, prefix: str, pool: str) -> np.ndarray:
    stand_in("big_vision", "big_vision.utils", "big_vision.models", "big_vision.models.common")
    code = reference.load_official(repository, "big_vision/models/vit.py")
    options = {key: SHAPE[key] for key in ("num_classes", "depth", "width", "num_heads", "mlp_dim")}
    weights, images = read(name, prefix, {})
    logits, _ = code._Model(patch_size=SHAPE["patch"], pool_type=pool, **options).apply({"params": weights}, images)
    return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vit_repository", type=Path, required=True)
    parser.add_argument("--big_vision_repository", type=Path, required=True)
    arguments = parser.parse_args()
    big_vision = arguments.big_vision_repository
    logits = {
        "google_augreg": run_vision_transformer(arguments.vit_repository),
        "google_big_vision_map": run_big_vision(big_vision, "google_big_vision_map", "params/", "map"),
        "google_big_vision_gap": run_big_vision(big_vision, "google_big_vision_gap", "opt/target/", "gap"),
    }
    np.savez_compressed(FOLDER / "google_own_code.npz", **{f"logits/{k}": np.asarray(v) for k, v in logits.items()})


if __name__ == "__main__":
    main()

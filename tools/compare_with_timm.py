"""Compare presets at full size with timm: random weights over to ours, logits and features, and weights back to timm.

Run with a Python that has this package and torch, torchvision and timm:

    python tools/compare_with_timm.py [--models NAME ...] [--tolerance=1e-4]

Without --models: one of each family and of the distinct shapes in it. All weights are random everywhere. Prints a JSON
object for each model; the exit code is 1 if a difference is above the tolerance.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from flax import nnx  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from swin_jax.convert import load_pretrained, save_timm  # noqa: E402
from swin_jax.models import create_model  # noqa: E402
from tests.golden.reference import import_timm  # noqa: E402

MODELS = (
    "swin_tiny_patch4_window7_224",
    "swin_small_patch4_window7_224",
    "swin_base_patch4_window7_224",
    "swin_base_patch4_window12_384",
    "swin_large_patch4_window7_224",
    "swin_tiny_c24_patch4_window8_256",
    "vit_tiny_patch16_224",
    "vit_small_patch32_384",
    "vit_base_patch8_224",
    "vit_large_patch14_224",
    "vit_base_patch16_gap_224",
    "vit_medium_patch16_gap_256",
    "vit_base_patch16_siglip_224",
    "deit_small_patch16_224",
    "deit_base_distilled_patch16_384",
    "deit3_medium_patch16_224",
    "deit3_large_patch16_384",
)
# Published, but not in timm: configs/swin/swin_tiny_c24_patch4_window8_256.yaml of the official repository.
OTHERS = {
    "swin_tiny_c24_patch4_window8_256": (
        "swin_tiny_patch4_window7_224",
        dict(img_size=256, window_size=8, num_heads=(4, 8, 16, 32)),
    )
}


def randomize(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif parameter.ndim == 1:  # norms, LayerScale
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith(("table", "token", "pos_embed", "latent")):
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)


def compare(name: str, timm, folder: Path) -> dict:
    timm_name, options = OTHERS.get(name, (name, {}))
    reference = timm.create_model(timm_name, num_classes=1000, **options).eval()
    randomize(reference)
    size = reference.patch_embed.img_size
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    is_swin = name.startswith("swin")
    with torch.no_grad():
        expected = reference(images).numpy()
        selected = {} if is_swin else {"indices": 1}
        features = reference.forward_intermediates(images, norm=not is_swin, intermediates_only=True, **selected)
    file = folder / f"{name}.safetensors"
    save_file(reference.state_dict(), file)

    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))
    report = load_pretrained(model, file)
    graph, state = nnx.split(model)
    batch = images.permute(0, 2, 3, 1).numpy()

    def forward(state, batch):
        model = nnx.merge(graph, state)
        return model(batch), model.features(batch)

    logits, maps = jax.jit(forward)(state, batch)
    differences = [
        float(np.abs(np.asarray(ours) - theirs.permute(0, 2, 3, 1).numpy()).max())
        for ours, theirs in zip(maps, features, strict=True)
    ]
    save_timm(model, file)
    fresh = timm.create_model(timm_name, num_classes=1000, **options).eval()
    fresh.load_state_dict(load_file(file), strict=True)
    with torch.no_grad():
        logits_back = fresh(images).numpy()
    file.unlink()
    return {
        "model": name,
        "image_size": list(size),
        "logits_std": round(float(expected.std()), 3),
        "logits_difference": float(np.abs(np.asarray(logits) - expected).max()),
        "features_std": [round(float(feature.std()), 2) for feature in features],
        "features_difference": differences,
        "parameters_loaded": len(report.loaded),
        "logits_difference_back_in_timm": float(np.abs(logits_back - expected).max()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    arguments = parser.parse_args()
    timm = import_timm()
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            start = time.perf_counter()
            result = compare(name, timm, Path(folder))
            print(json.dumps(result | {"seconds": round(time.perf_counter() - start, 1)}), flush=True)
            back = result["logits_difference_back_in_timm"]
            worst = max(back, result["logits_difference"], *result["features_difference"])
            if not worst <= arguments.tolerance:
                failed.append(name)
            gc.collect()
            jax.clear_caches()
    print(json.dumps({"compared": len(arguments.models), "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

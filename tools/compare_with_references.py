"""Compare presets at full size with timm, HF transformers or the official code: logits, and features of every stage.

Run with a Python that has this package and torch, torchvision and timm (for HF also transformers):

    python tools/compare_with_references.py --reference=timm
    python tools/compare_with_references.py --reference=hf
    python tools/compare_with_references.py --reference=official --swin_repository=DIR --deit_repository=DIR

DIR is a clone of https://github.com/microsoft/Swin-Transformer and of https://github.com/facebookresearch/deit.
`--models NAME ...` picks some; without it, one of each family and of the distinct shapes in it. `--depth=N` cuts timm's
ViT to N blocks of full width, where all of them do not fit into memory.

All weights are random everywhere. They go from the reference to ours through a file as it is published; those of timm
back to timm as well. Images are of the native size and, where the reference takes one, of another. Prints a JSON object
for each model, with the largest absolute differences; the exit code is 1 if one is above `--tolerance`.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from flax import nnx  # noqa: E402

from swin_jax.convert import load_pretrained, save_timm  # noqa: E402
from swin_jax.models import create_model  # noqa: E402
from tests.golden.reference import import_timm  # noqa: E402

import_timm()
from tools.references import Reference  # noqa: E402


def compare(name: str, build: Callable[[str], Reference], folder: Path) -> dict:
    """Return the differences of one model. Reference and ours are held one after the other, for they may be large."""
    reference = build(name)
    images = {size: torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1)) for size in reference.sizes}
    expected = {size: reference.run(batch) for size, batch in images.items()}
    file, options, read_back = reference.save(folder), reference.options, reference.read_back
    del reference
    gc.collect()

    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **options))
    report = load_pretrained(model, file)
    file.unlink()
    graph, state = nnx.split(model)

    @jax.jit
    def forward(state, batch):
        model = nnx.merge(graph, state)
        return model(batch), model.features(batch)

    by_size = {}
    for size, batch in images.items():
        logits, maps = expected[size]
        our_logits, our_maps = forward(state, batch.permute(0, 2, 3, 1).numpy())
        pairs = [(our_logits, logits), *zip(our_maps, (m.permute(0, 2, 3, 1) for m in maps), strict=True)]
        differences = [float(np.abs(np.asarray(ours) - theirs.numpy()).max()) for ours, theirs in pairs]
        spreads = [round(float(theirs.std()), 2) for _, theirs in pairs]
        by_size["x".join(map(str, size))] = {
            "logits": differences[0],
            "features": differences[1:],
            "logits_std": spreads[0],
            "features_std": spreads[1:],
        }
    result = {"model": name, **options, "layout": report.layout, "loaded": len(report.loaded), "sizes": by_size}
    if read_back:
        save_timm(model, folder / "back.safetensors")
        del model, state
        jax.clear_caches()
        gc.collect()
        native = next(iter(images))
        logits = read_back(folder / "back.safetensors")(images[native])
        result["logits_back_in_timm"] = float((logits - expected[native][0]).abs().max())
    return result


def worst_of(result: dict) -> float:
    differences = [result.get("logits_back_in_timm", 0.0)]
    for found in result["sizes"].values():
        differences += [found["logits"], *found["features"]]
    return float(np.max(differences))  # NaN if one is


def references_of(arguments: argparse.Namespace) -> tuple[Callable[[str], Reference], tuple[str, ...]]:
    """Return what builds the chosen reference's models, and the names of those compared by default."""
    if arguments.reference == "timm":
        from tools.references import timm_models

        return partial(timm_models.build, depth=arguments.depth), timm_models.MODELS
    if arguments.reference == "hf":
        from tools.references import hf_models

        return hf_models.build, hf_models.MODELS
    from tools.references import official_models

    swin, deit = arguments.swin_repository, arguments.deit_repository
    if not swin and not deit:
        raise SystemExit("--reference=official needs --swin_repository or --deit_repository")
    models = (*(official_models.SWIN_MODELS if swin else ()), *(official_models.DEIT_MODELS if deit else ()))
    return partial(official_models.build, swin_repository=swin, deit_repository=deit), models


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", choices=("timm", "hf", "official"), required=True)
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--depth", type=int)
    parser.add_argument("--swin_repository", type=Path)
    parser.add_argument("--deit_repository", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    arguments = parser.parse_args()
    build, models = references_of(arguments)
    models, failed, worst = arguments.models or models, [], 0.0
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name in models:
            start = time.perf_counter()
            result = compare(name, build, Path(folder))
            difference = worst_of(result)
            seconds = round(time.perf_counter() - start, 1)
            print(json.dumps(result | {"worst": difference, "seconds": seconds}), flush=True)
            if not difference <= arguments.tolerance:
                failed.append(name)
            worst = max(worst, difference)
            gc.collect()
            jax.clear_caches()
    print(json.dumps({"reference": arguments.reference, "compared": len(models), "worst": worst, "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

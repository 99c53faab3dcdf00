"""Make the golden files beside this script from the reference implementations.

Run with a Python that has torch, timm, transformers, safetensors and scipy < 1.14 (for BEiT's interp2d), and a clone of
https://github.com/microsoft/Swin-Transformer:

    python tests/golden/make_goldens.py --swin_repository=DIR [--only NAME ...]

Every golden is one .npz. `about` is JSON: the reference, its versions, and the arguments of our model. `weights/KEY`
are under the reference's own keys. Then, by image size: `images/SIZE` [B, H, W, C], `logits/SIZE` and
`features/SIZE/STAGE` [B, h, w, C]; `gradients/KEY`; and what else a golden is about. All weights are random everywhere:
biases, norms, tables, LayerScale, tokens.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from tests.golden import reference  # noqa: E402

reference.import_timm()
from tests.golden import augment_goldens, swin_goldens, text_goldens, training_goldens, vit_goldens  # noqa: E402

GOLDENS = (
    swin_goldens.timm_swin,
    swin_goldens.timm_swin_gradients,
    swin_goldens.timm_swin_rectangles,
    swin_goldens.timm_swin_shrunk,
    swin_goldens.official_swin,
    swin_goldens.hf_swin,
    vit_goldens.timm_vit,
    vit_goldens.timm_vit_gap,
    vit_goldens.timm_vit_gap_no_token,
    vit_goldens.timm_vit_map,
    vit_goldens.timm_deit3,
    vit_goldens.timm_deit_distilled,
    vit_goldens.hf_vit,
    vit_goldens.hf_deit,
    vit_goldens.google_augreg,
    vit_goldens.google_big_vision_map,
    vit_goldens.google_big_vision_gap,
    text_goldens.hf_gpt2,
    text_goldens.hf_marian,
    training_goldens.resized_tables,
    training_goldens.trajectory_swin,
    training_goldens.trajectory_vit,
    training_goldens.learning_rate_curves,
    augment_goldens.timm_augment,
    training_goldens.layer_decay_scales,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swin_repository", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=[make.__name__ for make in GOLDENS])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for make in GOLDENS:
        if arguments.only and make.__name__ not in arguments.only:
            continue
        entries = make(arguments)
        arrays = {k: v.detach().numpy() if isinstance(v, torch.Tensor) else np.asarray(v) for k, v in entries.items()}
        path = Path(__file__).with_name(f"{make.__name__}.npz")
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

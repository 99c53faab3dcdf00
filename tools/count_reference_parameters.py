"""Count the parameters of the published models from the reference implementations, and write the table the tests use.

Run with a Python that has torch and timm, and a clone of https://github.com/microsoft/Swin-Transformer:

    python tools/count_reference_parameters.py --swin_repository=DIR

All models have 1000 classes. Only parameters count (`parameters()`), no buffers.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from tests.golden.reference import import_timm, load_official  # noqa: E402

TABLE = ROOT / "tests/models/published_parameter_counts.py"
SIZES = "tiny|small|medium|base|large|huge|giant|gigantic"
TIMM_NAMES = (
    rf"swin_({SIZES})_patch4_window\d+_\d+",
    rf"vit_({SIZES})_patch\d+(_gap|_siglip)?_\d+",
    rf"deit3?_({SIZES})(_distilled)?_patch\d+_\d+",
)


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swin_repository", type=Path, required=True)
    arguments = parser.parse_args()

    timm = import_timm()
    counts = {}
    for name in timm.list_models():
        if any(re.fullmatch(pattern, name) for pattern in TIMM_NAMES):
            with torch.device("meta"):
                counts[name] = count(timm.create_model(name, num_classes=1000))
    swin = load_official(arguments.swin_repository, "models/swin_transformer.py")
    # configs/swin/swin_tiny_c24_patch4_window8_256.yaml: heads 24 wide
    counts["swin_tiny_c24_patch4_window8_256"] = count(
        swin.SwinTransformer(img_size=256, embed_dim=96, depths=(2, 2, 6, 2), num_heads=(4, 8, 16, 32), window_size=8)
    )

    lines = "".join(f'    "{name}": {counts[name]:_},\n' for name in sorted(counts))
    TABLE.write_text(
        f'"""Exact parameter counts of the published models with 1000 classes, from the reference implementations.\n\n'
        f"Written by tools/count_reference_parameters.py with timm {timm.__version__} and, for the c24 model,\n"
        f'the official Swin code. Buffers are not counted.\n"""\n\nPUBLISHED_PARAMETER_COUNTS = {{\n{lines}}}\n'
    )
    print(f"{len(counts)} models in {TABLE}")


if __name__ == "__main__":
    main()

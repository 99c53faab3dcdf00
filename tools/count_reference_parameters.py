"""Count the parameters of the published models from the reference implementations, and write the table the tests use.

Run with a Python that has torch, timm and transformers, and a clone of https://github.com/microsoft/Swin-Transformer:

    python tools/count_reference_parameters.py --swin_repository=DIR

All image models have 1000 classes. Only parameters count (`parameters()`), no buffers, and tied ones once.
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
HEADER = '''\
"""Exact parameter counts of the published models, from the reference implementations. Images have 1000 classes.

Written by tools/count_reference_parameters.py with timm {timm}; for the c24 model, the official Swin code; for GPT-2
and Marian, HF transformers {transformers}; for the Transformer, PyTorch's layers. Buffers are not counted, but the bias
of Marian's logits is, and its sinusoids are not.

The Transformer's paper (arXiv 1706.03762, table 3) gives 65 million for base and 213 for big, and does not say what is
counted. Here they are 63.1 and 214.2, with its about 37,000 tokens in one table for both languages. No one vocabulary
gives both of the paper's: base would need 40,700 tokens, big 35,800.
"""
'''
TIMM_NAMES = (
    rf"swin_({SIZES})_patch4_window\d+_\d+",
    rf"vit_({SIZES})_patch\d+(_gap|_siglip)?_\d+",
    rf"deit3?_({SIZES})(_distilled)?_patch\d+_\d+",
)


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def count_texts() -> dict[str, int]:
    """Count GPT-2 and Marian as HF transformers has them, and the paper's base and big of PyTorch's own layers."""
    from tests.golden.text_goldens import PUBLISHED_GPT2, full_size

    counts = {}
    for name in (*PUBLISHED_GPT2, "opus_mt"):
        with torch.device("meta"):
            model = full_size(name)
        model.tie_weights()
        # HF has Marian's sinusoids as frozen parameters, and as a buffer the bias of its logits, which was learned.
        parameters = [tensor for key, tensor in model.named_parameters() if "embed_positions" not in key]
        counts[name] = sum(tensor.numel() for tensor in (*parameters, *model.buffers()))
    for name, width, num_heads in (("transformer_base", 512, 8), ("transformer_big", 1024, 16)):
        encoder = torch.nn.TransformerEncoderLayer(width, num_heads, 4 * width)
        decoder = torch.nn.TransformerDecoderLayer(width, num_heads, 4 * width)
        counts[name] = 6 * (count(encoder) + count(decoder)) + 37_000 * width
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swin_repository", type=Path, required=True)
    arguments = parser.parse_args()

    timm = import_timm()
    import transformers  # after timm, for it imports torchvision too

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

    counts |= count_texts()
    lines = "".join(f'    "{name}": {counts[name]:_},\n' for name in sorted(counts))
    TABLE.write_text(
        HEADER.format(timm=timm.__version__, transformers=transformers.__version__)
        + f"\nPUBLISHED_PARAMETER_COUNTS = {{\n{lines}}}\n"
    )
    print(f"{len(counts)} models in {TABLE}")


if __name__ == "__main__":
    main()

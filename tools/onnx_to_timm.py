"""Take the DINOv2 backbone out of an ONNX file, and write it as timm's `.safetensors`, which `load_pretrained` reads.

Run with a Python that has numpy, onnx and safetensors; the ONNX file is read, never run:

    python tools/onnx_to_timm.py --onnx=FILE.onnx --out=FILE.safetensors [--backbone=backbone.]

For graphs that PyTorch exported from HF's Dinov2Model. The exporter transposes and renames the weights of linear layers
(`onnx::MatMul_1966`), and folds the position embedding into two constants; both are found from the graph: a weight by
the bias that is added to its product, the positions by the concatenation they meet in. Every tensor under the prefix
`--backbone`, and every unnamed one, must find its place; the others (a decoder's) are left out. The last line is a JSON
object that counts them.
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

try:
    import numpy as np
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper
    from safetensors.numpy import save_file
except ImportError as error:
    sys.exit(f"{error}: pip install numpy onnx safetensors")

Tensors = dict[str, np.ndarray]

NAMES = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.(\d+)\.(norm[12]|mlp\.fc[12])\.(weight|bias)", r"blocks.\1.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)", r"blocks.\1.attn.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
)
UNNAMED = "onnx::"


def read_backbone(graph: onnx.GraphProto, prefix: str) -> tuple[Tensors, list[str]]:
    """Return the backbone's tensors under HF's names, and the names of the tensors that are not the backbone's."""
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    names = {name: name.removeprefix(prefix) for name in initializers if name.startswith(prefix)}
    transposed = set()
    for node in graph.node:
        if node.op_type == "Add":
            bias = next((name for name in node.input if name in names and name.endswith(".bias")), None)
            product = next((producers[name] for name in node.input if name in producers), None)
            weight = product.input[1] if bias and product and product.op_type == "MatMul" else None
            if weight in initializers:
                names[weight] = names[bias].removesuffix("bias") + "weight"
                transposed.add(weight)
    positions = _positions(graph, initializers, producers)
    left_out = [name for name in initializers if name not in names and name not in positions]
    unexplained = [name for name in left_out if name.startswith(UNNAMED)]
    if not names or len(positions) != 2 or unexplained:
        raise SystemExit(
            f"this is no DINOv2 as HF's is exported: {len(names)} tensors under {prefix!r}, {len(positions)} of the "
            f"two constants of the position embedding, {len(unexplained)} unexplained constants {unexplained[:4]}"
        )
    tensors = {}
    for name, theirs in names.items():
        array = numpy_helper.to_array(initializers[name])
        tensors[theirs] = array.T if name in transposed else array
    parts = [numpy_helper.to_array(initializers[name]) for name in positions]
    tensors["embeddings.position_embeddings"] = np.concatenate(parts, axis=1)
    return tensors, left_out


def _positions(graph: onnx.GraphProto, initializers: dict, producers: dict) -> list[str]:
    """Return the constants of the class token's position and of the grid's, which the graph resizes and joins to it."""
    for node in graph.node:
        if node.op_type == "Concat" and len(node.input) == 2 and node.input[0] in initializers:
            grid = node.input[1]
            while grid in producers and producers[grid].input:
                grid = producers[grid].input[0]
            if grid in initializers:
                return [node.input[0], grid]
    return []


def to_timm(tensors: Tensors) -> Tensors:
    """Return HF's tensors under timm's names, query, key and value joined."""
    renamed, unknown = {}, []
    for name, tensor in tensors.items():
        pattern, template = next(((p, t) for p, t in NAMES if re.fullmatch(p, name)), (None, None))
        if pattern:
            renamed[re.sub(pattern, template, name)] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise SystemExit(f"{len(unknown)} tensors of the backbone have no place in timm's layout: {unknown[:4]}")
    parts = defaultdict(dict)
    for name in list(renamed):
        if match := re.fullmatch(r"(.*\.attn\.)(query|key|value)(\..*)", name):
            parts[f"{match[1]}qkv{match[3]}"][match[2]] = renamed.pop(name)
    for name, part in parts.items():
        missing = {"query", "key", "value"} - part.keys()
        if missing:
            raise SystemExit(f"{name} lacks its {', '.join(sorted(missing))}")
        renamed[name] = np.concatenate([part["query"], part["key"], part["value"]])
    return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in renamed.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", default="backbone.", help="prefix of the backbone's tensors")
    arguments = parser.parse_args()

    try:
        graph = onnx.load(arguments.onnx).graph
    except (OSError, DecodeError) as error:
        raise SystemExit(f"{arguments.onnx} cannot be read as ONNX: {error}") from error
    tensors, left_out = read_backbone(graph, arguments.backbone)
    tensors = to_timm(tensors)
    save_file(tensors, arguments.out, metadata={"format": "pt"})
    parameters = sum(tensor.size for tensor in tensors.values())
    counts = {"tensors": len(tensors), "parameters": parameters, "left_out": left_out}
    print(json.dumps({"out": str(arguments.out), **counts}))


if __name__ == "__main__":
    main()

"""timm's side of a contest, where PyTorch and timm are installed; see swin_jax/benchmarking/contest.py.

    python benchmarks/timm_worker.py '{"mode": "train", "model": "swin_tiny_patch4_window7_224", "batch_size": 8, ...}'

The same work: AdamW on cross-entropy with inputs at hand, or logits of a batch without gradients; `compile` is
torch.compile. With '{"products": [[rows, inputs, outputs], ...]}' those of dense layers alone, see products.py. It
imports nothing of `swin_jax`, so that PyTorch may live in an environment of its own.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.golden.reference import import_timm


def start(work: dict):
    import torch

    timm = import_timm()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, work["dtype"])
    size = work["image_size"]
    options = {"drop_path_rate": 0.0} | ({} if size == 224 else {"img_size": size})
    model = timm.create_model(work["model"], num_classes=work["num_classes"], **options).to(device)
    images = torch.randn(work["batch_size"], 3, size, size, device=device)
    labels = torch.arange(work["batch_size"], device=device)
    autocast = torch.autocast(device, dtype, enabled=dtype != torch.float32)
    training = work["mode"] == "train"
    model.train(training)
    forward = torch.compile(model) if work["compile"] else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05) if training else None

    def train():
        with autocast:
            loss = torch.nn.functional.cross_entropy(forward(images).float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def infer():
        with torch.inference_mode(), autocast:
            forward(images)

    def run(calls: int) -> None:
        for _ in range(calls):
            (train if training else infer)()
        if device == "cuda":
            torch.cuda.synchronize()

    run(2)
    return run, f"torch {torch.__version__}, timm {timm.__version__}"


def start_products(layers: list[list[int]]):
    import torch

    arrays = {}
    for rows, inputs, outputs in layers:
        sides = ((rows, inputs), (outputs, inputs), (rows, outputs))  # x, the kernel as PyTorch has it, the gradient
        arrays[rows, inputs, outputs] = [torch.ones(side) for side in sides]

    def run(calls: int) -> None:
        for layer in calls * layers:
            x, kernel, gradient = arrays[tuple(layer)]
            x @ kernel.T, gradient @ kernel, gradient.T @ x

    run(2)
    return run, f"torch {torch.__version__}"


def peak_bytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def main() -> None:
    begun = time.perf_counter()
    work = json.loads(sys.argv[1])
    run, version = start_products(work["products"]) if "products" in work else start(work)
    print("ready " + json.dumps({"version": version, "ready_seconds": time.perf_counter() - begun}), flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        run(int(line))
        seconds = (time.perf_counter() - begun) / int(line)
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}), flush=True)


if __name__ == "__main__":
    main()

"""A table of models against timm, training and inference, and a plot of it.

    python benchmarks/table.py --out=docs/figures/bench --models=swin_tiny_patch4_window7_224 --batch_sizes=8
    python benchmarks/table.py --out=h200 --gpu --torch_python=PYTHON_WITH_TORCH_AND_TIMM

Each row is a run of `python -m swin_jax.benchmark`, ours and timm's by turns, and is kept in OUT/rows.jsonl as soon as
it is there: a second call, with the same options, goes on where the first one stopped. `--gpu` stands for the models,
the batch and the precision of an H200, with its targets beside what was reached (training, images/s;
docs/performance.md).
"""

import argparse
import itertools
import json
import pathlib
import statistics
import subprocess
import sys

CPU_MODELS = ["swin_tiny_patch4_window7_224", "vit_small_patch16_224"]
# A good result of XLA alone, and one with kernels of our own: images/s of training on one H200.
GPU_TARGETS = {
    "swin_tiny_patch4_window7_224": (5500, 9000),
    "swin_small_patch4_window7_224": (3500, 6000),
    "swin_base_patch4_window7_224": (2400, 4000),
    "swin_large_patch4_window7_224": (1350, 2100),
    "vit_small_patch16_224": (8000, 14000),
    "vit_base_patch16_224": (3200, 4500),
    "vit_large_patch16_224": (1050, 1400),
}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a folder")
    parser.add_argument("--gpu", action="store_true", help="bfloat16, batch 128, against eager and compiled")
    parser.add_argument("--models", type=lambda text: text.split(","))
    parser.add_argument("--modes", type=lambda text: text.split(","), default=["train", "infer"])
    parser.add_argument("--batch_sizes", type=lambda text: [int(size) for size in text.split(",")])
    parser.add_argument("--against", help="as of python -m swin_jax.benchmark train; empty: none")
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("options", nargs="*", help="more for python -m swin_jax.benchmark, after --")
    found = parser.parse_args(arguments)
    found.models = found.models or (list(GPU_TARGETS) if found.gpu else CPU_MODELS)
    found.batch_sizes = found.batch_sizes or ([128] if found.gpu else [8])
    found.against = ("eager,compiled" if found.gpu else "timm") if found.against is None else found.against
    found.options += ["--dtype=bfloat16"] if found.gpu else []
    return found


def measure(mode: str, model: str, batch_size: int, options: argparse.Namespace) -> dict:
    """Run the benchmark and return its JSON line, or the line that says what went wrong."""
    command = [sys.executable, "-m", "swin_jax.benchmark", mode, f"--model={model}", f"--batch_size={batch_size}"]
    rivals = [f"--against={options.against}", f"--torch_python={options.torch_python}"] if options.against else []
    command += [*rivals, *options.options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def markdown(rows: list[dict]) -> str:
    """Return the table: images/s of all contestants, and by how much our faster setting is ahead of each of timm's."""
    names = list(dict.fromkeys(name for row in rows for name in row.get("contest", {})))
    head = ["", "model", "batch", "dtype", *names, "share of a matrix product", "targets"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        start = [row["mode"], row["model"], str(row["batch_size"])]
        if "error" in row:
            lines.append([*start, row["error"]])
            continue
        cells = []
        for name in names:
            seconds = row.get("contest", {}).get(name, {}).get("seconds")
            ratio = max((each[name]["median"] for each in row.get("ratios", {}).values() if name in each), default=None)
            rate = f"{row['batch_size'] / statistics.median(seconds):.2f}" if seconds else "-"
            cells.append(f"{rate} ({ratio:.2f} x)" if ratio and name.startswith("timm") else rate)
        share = row.get("fraction_of_matmul")
        is_goal = row["mode"] == "train" and row["device"] != "cpu"
        targets = "{} to {}".format(*GPU_TARGETS[row["model"]]) if is_goal and row["model"] in GPU_TARGETS else ""
        lines.append([*start, row["dtype"], *cells, f"{share:.2f}" if share else "-", targets])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def plot(rows: list[dict], path: pathlib.Path) -> None:
    """Draw images/s of each contestant as a multiple of the first of timm's, with quartiles."""
    import numpy as np
    from matplotlib.figure import Figure

    rows = [row for row in rows if "contest" in row]
    names = [name for name in rows[0]["contest"] if all(name in row["contest"] for row in rows)]
    anchor = next(name for name in names if name.startswith("timm"))
    figure = Figure(figsize=(1.5 + 1.6 * len(rows), 3.6), dpi=90, layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(names):
        quartiles = []
        for row in rows:
            theirs, own = (np.asarray(row["contest"][each]["seconds"]) for each in (anchor, name))
            quartiles.append(np.quantile(theirs / own, (0.25, 0.5, 0.75)))
        low, median, high = np.transpose(quartiles)
        at = np.arange(len(rows)) + (place - len(names) / 2) * 0.8 / len(names)
        axes.bar(at, median, 0.8 / len(names), yerr=(median - low, high - median), label=name, error_kw={"lw": 0.8})
    labels = [f"{row['mode']}\n{row['model'].split('_patch')[0]}\nbatch {row['batch_size']}" for row in rows]
    axes.set_xticks(range(len(rows)), labels, fontsize=7)
    axes.set_ylabel(f"images/s against {anchor}", fontsize=8)
    axes.axhline(1.0, color="black", linewidth=0.6)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, metadata={"Software": None})


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "rows.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    rows = [row for row in rows if "contest" in row or not options.against]  # what lacks the rivals is measured again
    done = {(row["mode"], row["model"], row["batch_size"]) for row in rows}
    for key in itertools.product(options.modes, options.models, options.batch_sizes):
        if key in done:
            continue
        row = dict(zip(("mode", "model", "batch_size"), key, strict=True)) | measure(*key, options)
        rows.append(row)
        print(markdown([row]), flush=True)
        if "error" not in row:
            with kept.open("a") as file:
                file.write(json.dumps(row) + "\n")
    (options.out / "table.md").write_text(markdown(rows) + "\n")
    print("\n" + markdown(rows))
    if any("contest" in row for row in rows):
        plot(rows, options.out / "table.png")


if __name__ == "__main__":
    main(sys.argv[1:])

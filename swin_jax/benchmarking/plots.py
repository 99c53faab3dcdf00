"""Plots of measured costs, by matplotlib's Figure alone, without pyplot."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from swin_jax.benchmarking.length import ATTENTION, Series, describe_exponent


def plot_length(series: Sequence[Series], *, title: str) -> Figure:
    """Draw time (median and quartiles) and memory over tokens, on logarithmic axes, with the fitted exponents."""
    groups = {
        "attention": [each for each in series if each.name in ATTENTION],
        "models over image size": [each for each in series if each.name not in ATTENTION],
    }
    groups = {name: members for name, members in groups.items() if members}
    figure = Figure(figsize=(8.0, 0.4 + 3.2 * len(groups)), dpi=90, layout="constrained")
    figure.suptitle(title, fontsize=9)
    for row, (name, members) in zip(figure.subplots(len(groups), 2, squeeze=False), groups.items(), strict=True):
        for each in members:
            medians, lows, highs = ([1e3 * getattr(t, key) for t in each.timings] for key in ("median", "low", "high"))
            label = f"{each.name}: tokens^{describe_exponent(each.time_exponent)}"
            style = {"marker": "o", "markersize": 3, "linewidth": 1.2, "linestyle": "--" if "causal" in label else "-"}
            (line,) = row[0].plot(each.tokens, medians, label=label, **style)
            row[0].fill_between(each.tokens, lows, highs, color=line.get_color(), alpha=0.2, linewidth=0)
            if None not in each.temporary_bytes:
                label = f"{each.name}: tokens^{describe_exponent(each.memory_exponent)}"
                megabytes = [size / 1e6 for size in each.temporary_bytes]
                row[1].plot(each.tokens, megabytes, label=label, **style)
        sizes = sorted({tokens for each in members for tokens in each.tokens})
        for ax, unit in zip(row, ("ms a step", "MB of temporaries"), strict=True):
            ax.set(xscale="log", yscale="log")
            ax.set_xlabel("tokens", fontsize=8)
            ax.set_ylabel(unit, fontsize=8)
            ax.set_title(name, fontsize=9)
            ax.tick_params(labelsize=7)
            ax.minorticks_off()
            ax.set_xticks(sizes, list(map(str, sizes)), rotation=60)
            ax.grid(alpha=0.4, linewidth=0.5)
            ax.legend(fontsize=7)
    return figure

"""Small PNG plots of a run."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # no display is needed, and none may be asked for

from matplotlib import pyplot as plt

from bench.results import RowResult, Run

BAR_ROWS = ("actors", "durable", "memory", "alone")
OURS, THEIRS = "#1f6f8b", "#b9b9b9"
DPI = 80


def write_plots(run: Run, directory: Path) -> list[Path]:
    """Write one plot for each row that a picture helps, and return the files."""
    written = []
    for result in run.rows:
        path = directory / f"{result.row.id}.png"
        drawn = _draw_bars(result, path) if result.row.id in BAR_ROWS else _draw_curves(result, path)
        if drawn:
            written.append(path)
    return written


def _draw_bars(result: RowResult, path: Path) -> bool:
    """Draw the row's headline metric, on a logarithmic axis since the systems lie orders of magnitude apart."""
    metric = result.row.headline
    bars = [
        (name, median, outcome.values[metric.key])
        for name, outcome in result.outcomes.items()
        if (median := outcome.median(metric.key)) is not None
    ]
    if not bars:
        return False
    names = [name for name, _, _ in bars]
    medians = [median for _, median, _ in bars]
    spread = [
        [median - min(values) for _, median, values in bars],
        [max(values) - median for _, median, values in bars],
    ]
    figure, axes = plt.subplots(figsize=(7, 0.5 * len(bars) + 1.2), layout="constrained")
    colours = [OURS if name.startswith("Callboard") else THEIRS for name in names]
    drawn = axes.barh(names, medians, xerr=spread, color=colours, ecolor="#444444")
    axes.bar_label(drawn, labels=[f" {median:,.0f}" for median in medians], fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_xlabel(f"{metric.heading}, log scale")
    axes.set_title(result.row.title, fontsize=9)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return True


def _draw_curves(result: RowResult, path: Path) -> bool:
    """Draw the cost of each step along the run, relative to its own beginning."""
    curves = {
        name: outcome.series["us_per_step"]
        for name, outcome in result.outcomes.items()
        if outcome.series.get("us_per_step")
    }
    if not curves:
        return False
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for name, curve in curves.items():
        share = [100 * index / (len(curve) - 1) for index in range(len(curve))]
        axes.plot(share, curve, label=name, linewidth=2 if name.startswith("Callboard") else 1)
    axes.set_yscale("log")
    axes.set_xlabel("how far the run has come, %")
    axes.set_ylabel("µs per step, log scale")
    axes.set_title(result.row.title, fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return True

"""Draws diagnostics as pictures; matplotlib is the extra `plots`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from visq.errors import VisqError


def pyplot() -> Any:
    """Returns matplotlib's pyplot for machines without a display; raises VisqError where it is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise VisqError("plots need matplotlib: pip install 'visq[plots]'") from error
    return plt


def plot_diagnostics(report: dict[str, Any], folder: Path) -> list[Path]:
    """Writes the pictures of one `diagnose` report as PNG files, but those that lack data, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if report["sites"]:
        written += [plot_sqnr(report["sites"], folder / "sqnr.png")]
        inner = [row for row in report["sites"] if row["kind"] == "inner"]
        if inner:
            written += [plot_distributions(inner[:12], folder / "distributions.png")]
    if report["scans"]:
        written += [plot_recurrence(report["scans"], folder / "error_along_time.png")]
        factored = [row for row in report["scans"] if "channel_after" in row]
        if factored:
            written += [plot_reparameterization(factored[:6], folder / "reparameterization.png")]
    return written


def plot_sqnr(sites: list[dict[str, Any]], path: Path) -> Path:
    """Draws the SQNR of every site, worst first."""
    rows = sorted((row for row in sites if row["sqnr_db"] is not None), key=lambda row: row["sqnr_db"])[:60]
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8, 1 + 0.16 * len(rows)))
    axes.barh([row["name"] for row in rows], [row["sqnr_db"] for row in rows])
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=6)
    axes.set(xlabel="SQNR in dB", title="sites that lose most")
    return saved(figure, path)


def plot_distributions(sites: list[dict[str, Any]], path: Path) -> Path:
    """Draws histograms of the tensors inside the recurrence."""
    plt = pyplot()
    figure, grid = plt.subplots(len(sites), 1, figsize=(7, 1.4 * len(sites)), squeeze=False)
    for axes, row in zip(grid[:, 0], sites, strict=True):
        edges, share = row["histogram"]["edges"], row["histogram"]["share"]
        axes.stairs(share, edges, fill=True)
        axes.set_yscale("log")
        axes.set_title(row["name"], fontsize=7)
        axes.tick_params(labelsize=6)
    return saved(figure, path)


def plot_recurrence(scans: list[dict[str, Any]], path: Path) -> Path:
    """Draws the relative error of h and y against the time step, a line for each scan (arXiv 2501.16738, Fig. 7)."""
    plt = pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(11, 4), sharex=True)
    for axes, what in zip(panels, ("h", "y"), strict=True):
        for row in scans:
            axes.plot(row[f"{what}_error"], label=row["name"], linewidth=1)
        axes.set(xlabel="time step, in scan order", ylabel=f"relative error of {what}", yscale="log")
    panels[1].legend(fontsize=5, ncols=2)
    return saved(figure, path)


def plot_reparameterization(scans: list[dict[str, Any]], path: Path) -> Path:
    """Draws the largest |h| by channel before and after it is divided by the channel factor r_C."""
    plt = pyplot()
    figure, grid = plt.subplots(len(scans), 2, figsize=(9, 1.6 * len(scans)), squeeze=False, sharex="col")
    for line, row in zip(grid, scans, strict=True):
        for axes, key in zip(line, ("channel_maximum", "channel_after"), strict=True):
            axes.plot(sorted(value for value in row[key] if value is not None))
            axes.set_yscale("log")
            axes.tick_params(labelsize=6)
        line[0].set_ylabel(row["name"], fontsize=5)
    grid[0, 0].set_title("largest |h| by channel, sorted")
    grid[0, 1].set_title("divided by the channel factor")
    return saved(figure, path)


def plot_accuracy(rows: list[dict[str, Any]], path: Path) -> Path:
    """Draws top-1 against bits, a line for each method, from the rows of `visq compare --json`; several seeds are
    averaged."""
    points: dict[str, dict[tuple[int, int], list[float]]] = {}
    fp32 = [row["top1"] for row in rows if row["recipe"] == "fp32"]
    for row in rows:
        if row["recipe"] != "fp32":
            bits = (row["activation_bits"], row["weight_bits"])
            method = row["recipe"].split("-w")[0] + f" ({row['scope']})"
            points.setdefault(method, {}).setdefault(bits, []).append(row["top1"])
    if not points:
        raise VisqError("the comparison holds no quantized model to plot")
    order = sorted({bits for line in points.values() for bits in line})
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8, 5))
    for method, line in points.items():
        here = [bits for bits in order if bits in line]
        means = [sum(line[bits]) / len(line[bits]) for bits in here]
        axes.plot([order.index(bits) for bits in here], means, marker="o", label=method)
    if fp32:
        axes.axhline(sum(fp32) / len(fp32), linestyle=":", color="black", label="FP32")
    axes.set_xticks(range(len(order)), [f"W{w}A{a}" for a, w in order])
    axes.set_ylabel("top-1 in percent")
    axes.legend(fontsize=7)
    return saved(figure, path)


def saved(figure: Any, path: Path) -> Path:
    """Writes a figure and forgets it."""
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot().close(figure)
    return path

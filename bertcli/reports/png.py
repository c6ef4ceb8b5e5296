"""Charts as PNG files for papers and slides, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bertcli.console import escape_control
from bertcli.reports.analysis import ConfusionMatrix
from bertcli.reports.charts import Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOTS_PER_INCH = 200
SIZE = (5.0, 3.4)  # inches
CELL_SIZE = 0.55  # inches


def save_charts(folder: Path, charts: Sequence[Chart], confusion_matrix: ConfusionMatrix | None = None) -> None:
    """Save each chart as `folder/<name>.png`, and the confusion matrix as `confusion.png`."""
    from matplotlib.figure import Figure

    for chart in charts:
        figure = Figure(figsize=SIZE, layout="constrained")
        _draw(figure.subplots(), chart)
        figure.savefig(folder / f"{chart.name}.png", dpi=DOTS_PER_INCH)
    if confusion_matrix is not None:
        side = 2.0 + CELL_SIZE * len(confusion_matrix.labels)
        figure = Figure(figsize=(side, side), layout="constrained")
        _draw_confusion_matrix(figure.subplots(), confusion_matrix)
        figure.savefig(folder / "confusion.png", dpi=DOTS_PER_INCH)


def _draw(axes: Axes, chart: Chart) -> None:
    names: set[str] = set()
    for series in chart.series:
        xs, ys = [x for x, _ in series.points], [y for _, y in series.points]
        color, label = f"C{series.color % 10}", None if series.name in names else _escape_math(series.name)
        names.add(series.name)
        if series.kind == "bars":
            axes.bar(xs, ys, width=series.bar_width * 0.9, color=color, label=label)
        elif series.kind == "dots" or len(xs) == 1:
            axes.plot(xs, ys, ".", markersize=4, color=color, label=label)
        else:
            axes.plot(xs, ys, color=color, label=label)
    low, high, bottom, top = chart.bounds
    if chart.diagonal:
        axes.plot([low, high], [low, high], "--", linewidth=1, color="gray")
    if chart.limits is not None:
        axes.set_xlim(low, high)
        axes.set_ylim(bottom, top)
    elif chart.y_from_zero:
        axes.set_ylim(bottom=0)
    axes.set(title=chart.title, xlabel=chart.x, ylabel=chart.y)
    if len(names) > 1:
        axes.legend()


def _draw_confusion_matrix(axes: Axes, confusion_matrix: ConfusionMatrix) -> None:
    indices = range(len(confusion_matrix.labels))
    shares = [[count / max(1, sum(row)) for count in row] for row in confusion_matrix.counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in indices:
        for column in indices:
            color = "white" if shares[row][column] > 0.6 else "black"
            axes.text(column, row, str(confusion_matrix.counts[row][column]), ha="center", va="center", color=color)
    names = [_escape_math(label) for label in confusion_matrix.labels]
    axes.set_xticks(indices, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(indices, names)
    axes.set(xlabel="predicted", ylabel="gold")


def _escape_math(name: str) -> str:
    """Escape characters that matplotlib would parse as mathtext."""
    return escape_control(name).replace("$", r"\$")

"""Charts as plain numbers, which report pages draw as SVG and `png` draws with matplotlib."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bertcli.metrics.scores import best_value
from bertcli.runs.history import SCORE_PREFIX

Point = tuple[float, float]
Records = Sequence[dict[str, Any]]

MAX_CURVE_POINTS = 400
MAX_DOTS = 1000  # in a scatter chart
MAX_BARS = 30  # in a histogram
MAX_TICKS = 5  # per axis, approximately


@dataclass(frozen=True)
class Series:
    """A named series of points in one color."""

    name: str
    points: list[Point]
    kind: Literal["line", "dots", "bars"] = "line"
    color: int = 0
    bar_width: float = 0.0  # in units of x; a bar's point is the center of its top edge


@dataclass(frozen=True)
class Chart:
    """A chart with labeled axes; `name` is safe as a file name."""

    name: str
    title: str
    x: str
    y: str
    series: list[Series]
    diagonal: bool = False  # draw the line x = y
    y_from_zero: bool = False
    limits: tuple[float, float] | None = None  # of both axes; None fits the points

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Minimum and maximum x, then minimum and maximum y; each range is non-empty."""
        if self.limits is not None:
            return *self.limits, *self.limits
        points = [point for series in self.series for point in series.points]
        margin = max((series.bar_width for series in self.series), default=0.0) / 2
        xs, ys = [x for x, _ in points], [y for _, y in points]
        zero = [0.0] if self.y_from_zero else []
        low, high, bottom, top = min(xs) - margin, max(xs) + margin, min(ys + zero), max(ys + zero)
        if self.diagonal:
            low, high = bottom, top = min(low, bottom), max(high, top)
        return *_nonempty(low, high), *_nonempty(bottom, top)


def _nonempty(low: float, high: float) -> tuple[float, float]:
    """Return the range itself, widened if it is empty."""
    return (low, high) if high > low else (low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2)


def curve_points(records: Records, key: str) -> list[Point]:
    """Return (step, value) of each record with a finite value; long curves are averaged over consecutive points."""
    points = [(float(record["step"]), record[key]) for record in records if _is_finite(record.get(key))]
    size = -(-len(points) // MAX_CURVE_POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], math.fsum(value for _, value in group) / len(group)) for group in groups]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def history_charts(train: Records, evaluations: Records) -> list[Chart]:
    """Return the charts of a run that have points: loss, scores, learning rate, gradient norm, speed."""
    names = list(dict.fromkeys(key for record in evaluations for key in record if key.startswith(SCORE_PREFIX)))
    losses = [name for name in names if name.endswith("loss")]
    perplexities = [name for name in names if name.endswith("perplexity")]
    scores = [name for name in names if name not in losses + perplexities]
    charts = [
        _chart("loss", "Loss", "loss", [("training", train, "train/loss"), *_eval_curves(evaluations, losses)]),
        _chart("scores", "Validation scores", "score", _eval_curves(evaluations, scores)),
        *(_chart("perplexity", "Perplexity", "perplexity", _eval_curves(evaluations, [name])) for name in perplexities),
        _chart("learning-rate", "Learning rate", "learning rate", [("learning rate", train, "learning_rate")]),
        _chart(
            "speed", "Speed", "tokens per second", [("tokens per second", train, "tokens_per_second")], from_zero=True
        ),
        _chart("gradient-norm", "Gradient norm before clipping", "norm", [("norm", train, "train/grad_norm")]),
    ]
    return [chart for chart in charts if chart.series]


def _eval_curves(records: Records, keys: Iterable[str]) -> list[tuple[str, Records, str]]:
    return [(key.removeprefix(SCORE_PREFIX).replace("loss", "validation loss"), records, key) for key in keys]


def _chart(
    name: str, title: str, y: str, sources: Iterable[tuple[str, Records, str]], *, from_zero: bool = False
) -> Chart:
    curves = [(label, curve_points(records, key)) for label, records, key in sources]
    series = [Series(label, points, color=color) for color, (label, points) in enumerate(curves) if points]
    return Chart(name, title, "step", y, series, y_from_zero=from_zero)


def overlay_charts(histories: Sequence[tuple[str, int, Records, Records]], metric: str) -> list[Chart]:
    """Return charts that overlay the curves of several runs.

    Args:
        histories: name, color, training and evaluation records of each run; runs of the same color share a name.
        metric: the score to plot along with the losses.
    """
    specs = [
        ("score", f"Validation {metric}", metric, 1, f"{SCORE_PREFIX}{metric}"),
        ("training-loss", "Training loss", "loss", 0, "train/loss"),
        ("validation-loss", "Validation loss", "loss", 1, f"{SCORE_PREFIX}loss"),
        ("learning-rate", "Learning rate", "learning rate", 0, "learning_rate"),
        ("speed", "Speed", "tokens per second", 0, "tokens_per_second"),
    ]
    charts = []
    for name, title, y, source, key in specs:
        if name == "score" and metric == "loss":
            continue
        series = [
            Series(label, points, color=color)
            for label, color, *records in histories
            if (points := curve_points(records[source], key))
        ]
        charts.append(Chart(name, title, "step", y, series, y_from_zero=name == "speed"))
    return [chart for chart in charts if chart.series]


def trials_chart(trials: Mapping[int, tuple[float, bool]], metric: str) -> Chart:
    """Return a chart of the scores of the trials of a search, and of the best score so far.

    Args:
        trials: score of each trial by number, and whether it was pruned.
    """
    complete = [(float(number), score) for number, (score, is_pruned) in trials.items() if not is_pruned]
    pruned = [(float(number), score) for number, (score, is_pruned) in trials.items() if is_pruned]
    scores = [score for _, score in complete]
    best = [(number, best_value(metric, scores[: index + 1])) for index, (number, _) in enumerate(complete)]
    series = [
        Series("complete", complete, "dots", color=0),
        Series("pruned", pruned, "dots", color=1),
        Series("best so far", best, color=2),
    ]
    return Chart("trials", f"Validation {metric} by trial", "trial", metric, [one for one in series if one.points])


def scatter_chart(pairs: Sequence[Point]) -> Chart:
    """Return a chart of predicted against gold values of a regression task."""
    stride = -(-len(pairs) // MAX_DOTS) or 1
    dots = Series("rows", list(pairs[::stride]), "dots")
    return Chart("scatter", "Predicted vs. gold", "gold", "predicted", [dots], diagonal=True)


def length_histogram(values: Sequence[int]) -> Chart:
    """Return a histogram of the lengths of rows in tokens."""
    low, high = min(values), max(values)
    width = max(1, math.ceil((high - low + 1) / MAX_BARS))
    counts = [0] * ((high - low) // width + 1)
    for value in values:
        counts[(value - low) // width] += 1
    bars = [(low + width * (index + 0.5), float(count)) for index, count in enumerate(counts)]
    series = Series("rows", bars, "bars", bar_width=float(width))
    return Chart("lengths", "Length of validation rows", "tokens", "rows", [series], y_from_zero=True)


def nice_ticks(low: float, high: float) -> list[float]:
    """Return round numbers between `low` and `high`: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / MAX_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def tick_label(value: float) -> str:
    """Format an axis value: `1500` → `1.5k`, `0.0005` → `5e-4`."""
    if value == 0:
        return "0"
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    if abs(value) < 1e-2:
        digits, _, exponent = f"{value:.3e}".partition("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:.4g}"


WIDTH, HEIGHT = 360, 224
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 38  # margins around the plot
MAX_MARKED_POINTS = 30  # a line with more points has no dots
NUM_COLORS = 8


@dataclass(frozen=True)
class Tick:
    """A labeled position on an axis."""

    position: float
    label: str


@dataclass(frozen=True)
class Shape:
    """One series as an SVG path, dots and bars (x, y, width, height), in picture coordinates."""

    name: str
    color: int
    path: str
    dots: list[Point]
    bars: list[tuple[float, float, float, float]]
    is_dashed: bool = False  # whether an earlier series has the same color


@dataclass(frozen=True)
class Drawing:
    """A chart laid out in a picture of `WIDTH` by `HEIGHT`."""

    chart: Chart
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    shapes: list[Shape]
    diagonal: tuple[Point, Point] | None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM

    @property
    def legend(self) -> list[Shape]:
        """The first shape of each name; empty if there is only one."""
        first = list({shape.name: shape for shape in reversed(self.shapes)}.values())[::-1]
        return first if len(first) > 1 else []


def draw(chart: Chart) -> Drawing:
    """Lay out a chart in picture coordinates."""
    x_low, x_high, y_low, y_high = chart.bounds

    def to_picture(point: Point) -> Point:
        x = LEFT + (point[0] - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    def shape(series: Series) -> Shape:
        points = [to_picture(point) for point in series.points]
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points) if series.kind == "line" and len(points) > 1 else ""
        with_dots = series.kind == "dots" or (series.kind == "line" and len(points) <= MAX_MARKED_POINTS)
        bars = []
        if series.kind == "bars":
            half = series.bar_width / 2
            for x, y in series.points:
                (left, top), (right, bottom) = to_picture((x - half, y)), to_picture((x + half, max(0.0, y_low)))
                bars.append((left, top, round(max(1.0, right - left - 1), 1), round(bottom - top, 1)))
        dots = points if with_dots else []
        return Shape(series.name, series.color % NUM_COLORS, path, dots, bars, series.color >= NUM_COLORS)

    return Drawing(
        chart=chart,
        x_ticks=[Tick(to_picture((value, y_low))[0], tick_label(value)) for value in nice_ticks(x_low, x_high)],
        y_ticks=[Tick(to_picture((x_low, value))[1], tick_label(value)) for value in nice_ticks(y_low, y_high)],
        shapes=[shape(series) for series in chart.series],
        diagonal=(to_picture((x_low, x_low)), to_picture((x_high, x_high))) if chart.diagonal else None,
    )

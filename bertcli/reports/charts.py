"""What reports draw, as plain numbers: a page lays it out as SVG, matplotlib draws it as a file for a paper."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Point = tuple[float, float]


Records = Sequence[dict[str, Any]]


MOST_POINTS = 400  # of a curve


MOST_DOTS = 1000  # of a scatter


MOST_BARS = 30  # of a histogram


MOST_TICKS = 5  # of an axis, about


SCORE = "eval/validation/"


@dataclass(frozen=True)
class Series:
    """What belongs together in a chart and has one colour."""

    name: str
    points: list[Point]
    kind: Literal["line", "dots", "bars"] = "line"
    color: int = 0
    bar_width: float = 0.0  # in units of x; a bar's point is the middle of its top


@dataclass(frozen=True)
class Chart:
    """A chart with its axes; `name` is fit for a file."""

    name: str
    title: str
    x: str
    y: str
    series: list[Series]
    diagonal: bool = False  # draw the line of equal x and y
    y_from_zero: bool = False
    limits: tuple[float, float] | None = None  # of both axes; None: as the points need

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Least and greatest x, least and greatest y, never the same."""
        if self.limits is not None:
            return *self.limits, *self.limits
        points = [point for series in self.series for point in series.points]
        margin = max((series.bar_width for series in self.series), default=0.0) / 2
        xs, ys = [x for x, _ in points], [y for _, y in points]
        zero = [0.0] if self.y_from_zero else []
        low, high, bottom, top = min(xs) - margin, max(xs) + margin, min(ys + zero), max(ys + zero)
        if self.diagonal:
            low, high = bottom, top = min(low, bottom), max(high, top)
        return *_apart(low, high), *_apart(bottom, top)


def _apart(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2)


def points_of(records: Records, key: str) -> list[Point]:
    """(step, value) of each record that has a finite number there; long curves as means of neighbours."""
    found = [(float(record["step"]), record[key]) for record in records if _is_number(record.get(key))]
    size = -(-len(found) // MOST_POINTS) or 1
    groups = [found[at : at + size] for at in range(0, len(found), size)]
    return [(group[-1][0], math.fsum(value for _, value in group) / len(group)) for group in groups]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def curves(train: Records, evaluations: Records) -> list[Chart]:
    """The histories of a run: loss, scores, learning rate, gradient norm, speed; those that have points."""
    names = list(dict.fromkeys(key for record in evaluations for key in record if key.startswith(SCORE)))
    losses = [name for name in names if name.endswith("loss")]
    apart = [name for name in names if name.endswith("perplexity")]
    scores = [name for name in names if name not in losses + apart]
    charts = [
        _chart("loss", "Loss", "loss", [("training", train, "train/loss"), *_of(evaluations, losses)]),
        _chart("scores", "Validation scores", "score", _of(evaluations, scores)),
        *(_chart("perplexity", "Perplexity", "perplexity", _of(evaluations, [name])) for name in apart),
        _chart("learning-rate", "Learning rate", "rate", [("learning rate", train, "learning_rate")]),
        _chart("speed", "Speed", "tokens a second", [("tokens a second", train, "tokens_per_second")], from_zero=True),
        _chart("gradient-norm", "Gradient norm before clipping", "norm", [("norm", train, "train/grad_norm")]),
    ]
    return [chart for chart in charts if chart.series]


def _of(records: Records, keys: Iterable[str]) -> list[tuple[str, Records, str]]:
    return [(key.removeprefix(SCORE).replace("loss", "validation loss"), records, key) for key in keys]


def _chart(
    name: str, title: str, y: str, sources: Iterable[tuple[str, Records, str]], *, from_zero: bool = False
) -> Chart:
    found = [(label, points_of(records, key)) for label, records, key in sources]
    series = [Series(label, points, color=at) for at, (label, points) in enumerate(found) if points]
    return Chart(name, title, "step", y, series, y_from_zero=from_zero)


def overlaid(histories: Sequence[tuple[str, int, Records, Records]], metric: str) -> list[Chart]:
    """The same curves of several runs in one chart each.

    Args:
        histories: name, colour, training and evaluation records of each run; runs of one colour have one name.
        metric: the score to show beside the losses.
    """
    wanted = [
        ("score", f"Validation {metric}", metric, 1, f"{SCORE}{metric}"),
        ("training-loss", "Training loss", "loss", 0, "train/loss"),
        ("validation-loss", "Validation loss", "loss", 1, f"{SCORE}loss"),
        ("learning-rate", "Learning rate", "rate", 0, "learning_rate"),
        ("speed", "Speed", "tokens a second", 0, "tokens_per_second"),
    ]
    charts = []
    for name, title, y, which, key in wanted:
        if name == "score" and metric == "loss":
            continue
        series = [
            Series(label, points, color=color)
            for label, color, *records in histories
            if (points := points_of(records[which], key))
        ]
        charts.append(Chart(name, title, "step", y, series, y_from_zero=name == "speed"))
    return [chart for chart in charts if chart.series]


def scatter(pairs: Sequence[Point]) -> Chart:
    """Right against predicted numbers."""
    stride = -(-len(pairs) // MOST_DOTS) or 1
    dots = Series("rows", list(pairs[::stride]), "dots")
    return Chart("scatter", "Predicted against right", "right", "predicted", [dots], diagonal=True)


def histogram(values: Sequence[int]) -> Chart:
    """How many rows have which length."""
    low, high = min(values), max(values)
    width = max(1, math.ceil((high - low + 1) / MOST_BARS))
    counts = [0] * ((high - low) // width + 1)
    for value in values:
        counts[(value - low) // width] += 1
    bars = [(low + width * (at + 0.5), float(count)) for at, count in enumerate(counts)]
    series = Series("rows", bars, "bars", bar_width=float(width))
    return Chart("lengths", "Length of the validation rows", "tokens", "rows", [series], y_from_zero=True)


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers between `low` and `high`: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / MOST_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def tick_label(value: float) -> str:
    """`1500` → `1.5k`, `0.0005` → `5e-4`."""
    if value == 0:
        return "0"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    if abs(value) < 1e-2:
        digits, _, exponent = f"{value:.3e}".partition("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:.4g}"


WIDTH, HEIGHT = 360, 224


LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 38  # around the plot


FEW_POINTS = 30  # of a line, that each get a dot


NUM_COLORS = 8


@dataclass(frozen=True)
class Tick:
    """A mark of an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Shape:
    """One series: a path, dots and bars (x, y, width, height), in the units of the picture."""

    name: str
    color: int
    path: str
    dots: list[Point]
    bars: list[tuple[float, float, float, float]]
    is_dashed: bool = False  # where there are more series than colours


@dataclass(frozen=True)
class Drawing:
    """A chart in a picture of `WIDTH` by `HEIGHT`."""

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
        """The first shape of each name; none if there is nothing to tell apart."""
        first = list({shape.name: shape for shape in reversed(self.shapes)}.values())[::-1]
        return first if len(first) > 1 else []


def draw(chart: Chart) -> Drawing:
    """Lay a chart out."""
    x_low, x_high, y_low, y_high = chart.bounds

    def place(point: Point) -> Point:
        x = LEFT + (point[0] - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    def shape(series: Series) -> Shape:
        places = [place(point) for point in series.points]
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in places) if series.kind == "line" and len(places) > 1 else ""
        with_dots = series.kind == "dots" or (series.kind == "line" and len(places) <= FEW_POINTS)
        bars = []
        if series.kind == "bars":
            half = series.bar_width / 2
            for x, y in series.points:
                (left, top), (right, bottom) = place((x - half, y)), place((x + half, max(0.0, y_low)))
                bars.append((left, top, round(max(1.0, right - left - 1), 1), round(bottom - top, 1)))
        dots = places if with_dots else []
        return Shape(series.name, series.color % NUM_COLORS, path, dots, bars, series.color >= NUM_COLORS)

    return Drawing(
        chart=chart,
        x_ticks=[Tick(place((value, y_low))[0], tick_label(value)) for value in nice_ticks(x_low, x_high)],
        y_ticks=[Tick(place((x_low, value))[1], tick_label(value)) for value in nice_ticks(y_low, y_high)],
        shapes=[shape(series) for series in chart.series],
        diagonal=(place((x_low, x_low)), place((x_high, x_high))) if chart.diagonal else None,
    )

"""Charts laid out for SVG: where each line, bar, dot and word stands. The page's template writes them down.

Own code, because what matplotlib takes half a second for is to be there at the end of each run, to follow light and
dark, and to be readable on a phone.
"""

from __future__ import annotations

from dataclasses import dataclass

from bertcli.runs.charts import Chart, Point, Series, nice_ticks, tick_label

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

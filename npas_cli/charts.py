"""Charts as inline SVG text: colours come from the page's CSS classes, so one drawing serves light, dark and print. Pure functions; imports nothing of npas."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 860, 58, 16, 14, 42  # pixels at full size


def esc(text: object) -> str:
    """``text`` for HTML and SVG, also inside attributes."""
    return html.escape(str(text), quote=True)


def signed(value: float, digits: int = 1) -> str:
    """+0.3 or a true minus sign."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class Axis:
    """A linear scale from values ``low..high`` to pixels ``start..end`` (start > end: upward)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixel of ``value``, two decimals, held inside the frame."""
        share = min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, count: int = 6) -> list[float]:
        """Round values (1, 2 or 5 times a power of ten) inside the axis, about ``count`` of them."""
        step = _step((self.high - self.low) / count)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]

    def label(self, value: float, count: int = 6) -> str:
        """``value`` with as many decimals as the ticks need."""
        step = _step((self.high - self.low) / count)
        return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}".replace("-", "\N{MINUS SIGN}")


def across(low: float, high: float) -> Axis:
    """The x axis of a drawing of full width."""
    return Axis(low, high, LEFT, WIDTH - RIGHT)


def _step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))


def padded(values: Iterable[float], margin: float = 0.05, low: float | None = None) -> tuple[float, float]:
    """The range of ``values`` with a margin on both sides (not below ``low``); never empty."""
    found = list(values) or [0.0, 1.0]
    least, most = min(found), max(found)
    pad = margin * (most - least) or abs(most) * 0.05 or 1.0
    return (least - pad if low is None else max(low, least - pad), most + pad)


def floor(values: Iterable[float], least: float) -> float:
    """Where to cut the scale below, so that a few far outliers don't press all others together: three times as far below the best as half of the values are, and at least ``least``."""
    found = sorted(values)
    if not found:
        return 0.0
    return max(found[0], found[-1] - max(least, 3 * (found[-1] - found[len(found) // 2])))


def svg(height: float, body: Sequence[str], title: str, width: float = WIDTH) -> str:
    """A drawing with an accessible title."""
    return f'<div class="wide"><svg class="plot" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{esc(title)}" xmlns="http://www.w3.org/2000/svg">{"".join(body)}</svg></div>'


def text(x: float, y: float, words: object, anchor: str = "start", cls: str = "label") -> str:
    """One line of text."""
    return f'<text class="{cls}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{esc(words)}</text>'


def mark(shape: str, x: float, y: float, cls: str, tip: str = "") -> str:
    """A data point: circle, ring, square, diamond, star, cross, down or tick, centred on (x, y), with a tooltip."""
    return f'<g class="mark {cls}">{f"<title>{esc(tip)}</title>" if tip else ""}{SHAPES[shape](x, y)}</g>'


def _polygon(points: Sequence[tuple[float, float]]) -> Callable[[float, float], str]:
    return lambda x, y: f'<polygon points="{" ".join(f"{x + a:.2f},{y + b:.2f}" for a, b in points)}"/>'


def _star() -> list[tuple[float, float]]:
    angles = [math.pi * k / 5 - math.pi / 2 for k in range(10)]
    return [((9.0, 4.0)[k % 2] * math.cos(a), (9.0, 4.0)[k % 2] * math.sin(a)) for k, a in enumerate(angles)]


SHAPES: dict[str, Callable[[float, float], str]] = {
    "circle": lambda x, y: f'<circle cx="{x:g}" cy="{y:g}" r="4.5"/>',
    "ring": lambda x, y: f'<circle cx="{x:g}" cy="{y:g}" r="9" fill="none"/>',
    "square": _polygon([(-6, -6), (6, -6), (6, 6), (-6, 6)]),
    "diamond": _polygon([(0, -7.5), (7.5, 0), (0, 7.5), (-7.5, 0)]),
    "star": _polygon(_star()),
    "cross": lambda x, y: f'<path d="M{x - 4:g} {y - 4:g}l8 8m0 -8l-8 8" fill="none"/>',
    "down": _polygon([(-4.5, -4), (4.5, -4), (0, 4)]),
    "tick": lambda x, y: f'<path d="M{x:g} {y - 5:g}v10" fill="none"/>',
}


def polyline(points: Sequence[tuple[float, float]], cls: str) -> str:
    """A line through pixel points."""
    return f'<polyline class="line {cls}" points="{" ".join(f"{x:g},{y:g}" for x, y in points)}"/>'


def steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points of a staircase that keeps each y until the next x."""
    return [p for i, (x, y) in enumerate(points) for p in ([(x, points[i - 1][1]), (x, y)] if i else [(x, y)])]


def rule(x1: float, y1: float, x2: float, y2: float, cls: str) -> str:
    """A straight line."""
    return f'<line class="{cls}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'


def frame(x: Axis, y: Axis, x_name: str, y_name: str, y_count: int = 6, whole: bool = False) -> list[str]:
    """Grid, tick labels and axis names. ``whole``: x has whole numbers only (trials, epochs). An empty ``x_name`` leaves the x labels to the panel below."""
    body = []
    for v in y.ticks(y_count):
        body += [rule(x.start, y(v), x.end, y(v), "grid"), text(x.start - 8, y(v) + 4, y.label(v, y_count), "end", "tick")]
    for v in x.ticks(8):
        if not whole or abs(v - round(v)) < 1e-9:
            body.append(rule(x(v), y.start, x(v), y.end, "grid"))
            body += [text(x(v), y.start + 17, f"{v:g}" if whole else x.label(v, 8), "middle", "tick")] if x_name else []
    body += [rule(x.start, y.start, x.end, y.start, "axis")]
    body += [text((x.start + x.end) / 2, y.start + 35, x_name, "middle")] if x_name else []
    middle = (y.start + y.end) / 2
    return [*body, f'<text class="label" text-anchor="middle" transform="translate(14 {middle:g}) rotate(-90)">{esc(y_name)}</text>']


def legend(items: Sequence[tuple[str, str, str]]) -> str:
    """An HTML list of (shape or "line", class, words)."""
    cells = []
    for shape, cls, words in items:
        drawing = polyline([(2, 11), (26, 11)], cls) if shape == "line" else mark(shape, 14, 11, cls)
        cells.append(f'<li><svg viewBox="0 0 28 22" width="28" height="22" aria-hidden="true" xmlns="http://www.w3.org/2000/svg">{drawing}</svg>{esc(words)}</li>')
    return f'<ul class="legend">{"".join(cells)}</ul>'


@dataclass(frozen=True)
class Series:
    """One line of a line chart: y by x, drawn as ``cls``; ``dots`` marks each point."""

    name: str
    points: Sequence[tuple[float, float]]
    cls: str
    dots: bool = False


def lines(series: Sequence[Series], x_name: str, y_name: str, title: str, height: float = 260, low: float | None = None) -> str:
    """A line chart with its legend; whole numbers on x. ``low``: least value of the y axis."""
    points = [p for s in series for p in s.points]
    x = across(*_span([p[0] for p in points]))
    y = Axis(*padded([p[1] for p in points], low=low), height - BOTTOM, TOP)
    body = frame(x, y, x_name, y_name, 5, whole=True)
    for s in series:
        pixels = [(x(a), y(b)) for a, b in s.points]
        body.append(polyline(pixels, s.cls))
        body += [mark("circle", px, py, s.cls, f"{s.name}: {b:.4g} at {a:g}") for (px, py), (a, b) in zip(pixels, s.points, strict=True)] if s.dots else []
    return legend([("line", s.cls, s.name) for s in series if s.points]) + svg(height, body, title)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The plain range for whole numbers on x, with half a step where there is only one."""
    low, high = float(min(values, default=0.0)), float(max(values, default=1.0))
    return (low, high) if high > low else (low - 0.5, high + 0.5)

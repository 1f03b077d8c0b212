"""Small charts as inline SVG. Colours are the page's, by class, so they follow light and dark.

Every chart is 400 units wide: on a phone it is shown at about its own size, so its 12-unit text stays readable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from softlabels.core.printable import printable

__all__ = [
    "Bin",
    "Dot",
    "Series",
    "dots",
    "histogram",
    "lines",
    "same_lines",
    "scatter",
    "shares",
    "style_of",
]

WIDTH = 400
STYLES = 6


class Series(NamedTuple):
    """A line."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    """(x, low, high), drawn pale behind it."""
    said: str = ""
    """What is written at its end."""


class Dot(NamedTuple):
    """A value with its interval."""

    name: str
    style: str
    value: float
    low: float | None
    high: float | None


class Bin(NamedTuple):
    """A column of a histogram."""

    low: float
    high: float
    positions: int
    share: float


def style_of(index: int) -> str:
    """The style of run number `index`: the first has the accent colour."""
    return f"s{index % STYLES}"


def same_lines(series: Iterable[Series]) -> list[Series]:
    """Lines, where those that are the same are one, which says whose it is."""
    found: dict[object, list[Series]] = {}
    for s in series:
        found.setdefault((tuple(s.points), tuple(s.band)), []).append(s)
    return [
        same[0] if len(same) == 1 or not same[0].points else _one_of(same)
        for same in found.values()
    ]


def _one_of(same: Sequence[Series]) -> Series:
    name = " = ".join(s.name for s in same)
    return same[0]._replace(name=name, said=name)


# -- marks: `format` escapes what it puts into Markup ------------------------------------------------

SVG = Markup('<svg viewBox="0 0 {} {:g}" role="img" aria-label="{}">{}</svg>')
TEXT = Markup('<text x="{:.6g}" y="{:.6g}" text-anchor="{}"{}>{}</text>')
LINE = Markup('<line x1="{:.6g}" y1="{:.6g}" x2="{:.6g}" y2="{:.6g}" class="{}"></line>')
RECT = Markup(
    '<rect x="{:.6g}" y="{:.6g}" width="{:.6g}" height="{:.6g}" rx="{:.6g}" class="{}">{}</rect>'
)
CIRCLE = Markup('<circle cx="{:.6g}" cy="{:.6g}" r="{:.6g}" class="{}">{}</circle>')
POLYLINE = Markup('<polyline points="{}" class="{}">{}</polyline>')
CLASS, TITLE, NOTHING = Markup(' class="{}"'), Markup("<title>{}</title>"), Markup()


def _svg(height: float, label: str, parts: Sequence[Markup]) -> Markup:
    return SVG.format(WIDTH, height, printable(label), NOTHING.join(parts))


def _text(
    x: float, y: float, words: str, *, anchor: str = "start", class_: str | None = None
) -> Markup:
    marked = NOTHING if class_ is None else CLASS.format(class_)
    return TEXT.format(x, y, anchor, marked, printable(words))


def _title(words: str) -> Markup:
    return TITLE.format(printable(words))


# -- scales ----------------------------------------------------------------------------------------


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from `low` to `high`."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _bounds(values: Sequence[float], pad: float = 0.06) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * pad or abs(high) * 0.05 or 1.0
    return low - room, high + room


def _number(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}"


# -- charts ----------------------------------------------------------------------------------------


def dots(items: Sequence[Dot], *, form: str, label: str) -> Markup:
    """Values on one scale, each on a line of its own with its interval; lower or higher is left to the caption."""
    every = [x for d in items for x in (d.value, d.low, d.high) if x is not None]
    low, high = _bounds(every, 0.08)
    row, left, right = 46, 6, WIDTH - 6

    def at(x: float) -> float:
        return left + (x - low) / (high - low) * (right - left)

    parts: list[Markup] = []
    bottom = row * len(items) + 8
    for tick in _ticks(low, high, 5):
        parts += [
            LINE.format(at(tick), 8, at(tick), bottom, "grid"),
            _text(at(tick), bottom + 16, _number(tick), anchor="middle"),
        ]
    for i, d in enumerate(items):
        y = row * i + 34
        parts += [
            _text(left, y - 14, d.name, class_="name"),
            _text(right, y - 14, format(d.value, form), anchor="end", class_="value"),
            LINE.format(left, y, right, y, "grid"),
        ]
        if d.low is not None and d.high is not None:
            width = max(at(d.high) - at(d.low), 1)
            parts.append(RECT.format(at(d.low), y - 5, width, 10, 5, f"band {d.style}", NOTHING))
        parts.append(CIRCLE.format(at(d.value), y, 6, f"dot {d.style}", NOTHING))
    return _svg(bottom + 22, label, parts)


def lines(
    series: Sequence[Series],
    *,
    x_name: str,
    y_name: str,
    label: str,
    y_form: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
    y_range: tuple[float, float] | None = None,
    named: bool = False,
) -> Markup:
    """Lines over a common x; a series of one point is a dot. With `log_y` every y must be above 0.

    `named` writes the name of each series beside its first point. A band is drawn on a linear y only.
    """
    if log_y:
        series = [s._replace(points=[(x, math.log10(y)) for x, y in s.points]) for s in series]
    drawn = [s for s in series if s.points]
    xs = [x for s in drawn for x, _ in s.points]
    every = [y for s in drawn for _, y in s.points] + [
        y for s in drawn for _, *ys in s.band for y in ys
    ]
    low, high = y_range or _bounds(every, 0.1 if named else 0.06)
    first, last = min(xs), max(xs)
    if first == last:
        first, last = first - 0.5, last + 0.5
    left, right, top, bottom = 44, WIDTH - 10, 22, 210

    def scale(x: float) -> float:
        return math.log(x) if log_x else x

    def at(x: float, y: float) -> tuple[float, float]:
        across = (scale(x) - scale(first)) / (scale(last) - scale(first))
        return left + across * (right - left), bottom - (y - low) / (high - low) * (bottom - top)

    parts: list[Markup] = [_text(0, 10, y_name)]
    for tick in _powers(low, high) if log_y else _ticks(low, high, 4):
        y = at(first, tick)[1]
        words = _power(tick) if log_y else format(tick, y_form) if y_form else _number(tick)
        parts += [
            LINE.format(left, y, right, y, "grid"),
            _text(left - 6, y + 4, words, anchor="end"),
        ]
    ticks = sorted(set(xs)) if log_x else _ticks(first, last, 5)
    shown = ticks[:: max(1, math.ceil(len(ticks) / 8))]
    for tick in shown:
        parts.append(_text(at(tick, low)[0], bottom + 16, _number(tick), anchor="middle"))
    parts.append(_text(right, bottom + 33, x_name, anchor="end"))
    parts.append(LINE.format(left, bottom, right, bottom, "axis"))
    for s in drawn:
        if len(s.band) > 1:
            edge = [at(x, y) for x, y, _ in s.band] + [at(x, y) for x, _, y in reversed(s.band)]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in edge)
            parts.append(POLYLINE.format(path, f"band {s.style}", NOTHING))
    for s in reversed(drawn):
        points = [at(x, y) for x, y in s.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(POLYLINE.format(path, f"line {s.style}", _title(s.name)))
        if len(points) <= 12:
            parts += [CIRCLE.format(x, y, 3.5, f"dot {s.style}", NOTHING) for x, y in points]
        if s.said:
            x, y = points[-1]
            parts.append(_text(x, y - 8, s.said, anchor="end", class_="name"))
        if named:
            x, y = points[0]
            anchor = "start" if x < WIDTH / 2 else "end"
            parts.append(
                _text(
                    x + (8 if anchor == "start" else -8),
                    y - 8,
                    s.name,
                    anchor=anchor,
                    class_="name",
                )
            )
    return _svg(bottom + 38, label, parts)


def _power(logarithm: float) -> str:
    """The number of a logarithm, as an axis has it."""
    number = 10**logarithm
    return _number(number) if abs(logarithm) < 4 else format(number, ".0e")


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten between two logarithms, and their 2 and 5 where these are few."""
    steps = (0.0,) if high - low > 3 else (0.0, math.log10(2), math.log10(5))
    whole = range(math.floor(low), math.ceil(high) + 1)
    return [p + s for p in whole for s in steps if low <= p + s <= high]


def scatter(
    points: Sequence[tuple[float, float, int]],
    *,
    style: str,
    x_name: str,
    y_name: str,
    label: str,
    behind: Sequence[tuple[float, float, int]] = (),
) -> Markup:
    """(x, y, weight) in the unit square, with its diagonal; areas are the weights. `behind` is drawn hollow."""
    left, right, top, bottom = 44, 290, 22, 268

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x * (right - left), bottom - y * (bottom - top)

    parts: list[Markup] = [_text(0, 10, y_name)]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = at(tick, tick)
        parts += [
            LINE.format(left, y, right, y, "grid"),
            LINE.format(x, top, x, bottom, "grid"),
            _text(left - 6, y + 4, f"{tick:.0%}", anchor="end"),
            _text(x, bottom + 16, f"{tick:.0%}", anchor="middle"),
        ]
    parts += [
        LINE.format(*at(0, 0), *at(1, 1), "diagonal"),
        _text(right, bottom + 33, x_name, anchor="end"),
    ]
    for group, class_ in ((behind, "hollow t"), (points, f"dot {style}")):
        total = sum(n for _, _, n in group) or 1
        for x, y, n in group:
            words = _title(f"{n:,} at confidence {x:.1%}, right {y:.1%}")
            parts.append(CIRCLE.format(*at(x, y), 2.5 + 14 * math.sqrt(n / total), class_, words))
    return _svg(bottom + 38, label, parts)


def shares(rows: Sequence[tuple[str, str, Sequence[tuple[str, float]]]], *, label: str) -> Markup:
    """Bars of 100 %: (name, what is said at its right, [(style, share)])."""
    row = 58
    parts: list[Markup] = []
    for i, (name, said, segments) in enumerate(rows):
        y = row * i
        parts += [
            _text(0, y + 14, name, class_="name"),
            _text(WIDTH, y + 14, said, anchor="end"),
        ]
        x = 0.0
        for style, share in segments:
            width = share * WIDTH
            if width <= 0:
                continue
            gap = min(1.5, width / 4)
            title = _title(f"{share:.1%}")
            parts.append(RECT.format(x, y + 22, width - gap, 26, 3, f"bar {style}", title))
            if width >= 40:
                class_ = "value" if style == "g3" else "on"
                parts.append(_text(x + 8, y + 39, f"{share:.0%}", class_=class_))
            x += width
    return _svg(row * len(rows), label, parts)


def histogram(bins: Sequence[Bin], *, form: str, x_name: str) -> Markup:
    """Columns as high as the bins' shares; `form` is that of their edges."""
    left, right, top, bottom = 44, WIDTH - 6, 12, 180
    most = max((b.share for b in bins), default=0) or 1
    width = (right - left) / max(len(bins), 1)
    parts: list[Markup] = []
    for tick in _ticks(0, most, 4):
        y = bottom - tick / most * (bottom - top)
        parts += [
            LINE.format(left, y, right, y, "grid"),
            _text(left - 6, y + 4, f"{tick * 100:g}%", anchor="end"),
        ]
    every = max(1, math.ceil(len(bins) / 9))
    for i, b in enumerate(bins):
        x, tall = left + i * width, b.share / most * (bottom - top)
        low, high = format(b.low, form), format(b.high, form)
        parts.append(
            RECT.format(
                x + width * 0.08,
                bottom - tall,
                width * 0.84,
                tall,
                min(2.0, width * 0.2),
                "bar s0",
                _title(f"{low} to {high}: {b.positions:,} positions"),
            )
        )
        if i % every == 0:
            parts.append(_text(x + width / 2, bottom + 16, low, anchor="middle"))
    parts.append(LINE.format(left, bottom, right, bottom, "axis"))
    parts.append(_text(right, bottom + 33, x_name, anchor="end"))
    return _svg(bottom + 38, f"positions by {x_name}", parts)

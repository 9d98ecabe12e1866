"""Charts as inline SVG: bars, lines, a heat map. Their colors are those of the page's style sheet.

charts.lines({"train": [(1, 2.5), (2, 1.9)]}, label="Loss", x="epoch", y="loss")
"""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tfrecords.errors import extra

with extra("preprocess"):
    from markupsafe import Markup
    from PIL import Image

_WIDTH, _HEIGHT = 360, 216
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 24, 28, 42  # margins around the plot
_SERIES = 4  # colors and dashes of lines in the style sheet


def bars(
    values: Sequence[float],
    edges: Sequence[float],
    *,
    label: str,
    x: str,
    y: str,
    percent_x: bool = False,
    whole: bool = False,
) -> Markup:
    """Returns a histogram.

    Args:
        values: height of each bar, not negative.
        edges: where the bars begin on the x axis, and where the last one ends.
        label: what the chart shows, for those who do not see it.
        x, y: what stands at the axes.
        percent_x: whether x is a fraction, to be shown as a percentage.
        whole: whether x counts something, so that a bar from 2 to 3 stands over 2.
    """
    shift = 0.5 if whole else 0.0
    highest = max(values, default=0) or 1
    axes = _Axes(
        (edges[0] - shift, edges[-1] - shift),
        (0, highest),
        percent=(percent_x, False),
        whole=(whole, all(float(value).is_integer() for value in values)),
    )
    parts = [axes.draw(x, y)]
    for value, low, high in zip(values, edges, edges[1:], strict=False):
        left, right = axes.x(low - shift), axes.x(high - shift)
        gap = min(1, (right - left) / 8)
        top = axes.y(value)
        last = high - 1 if whole else high
        span = axes.text_x(low) + (f" to {axes.text_x(last)}" if last > low else "")
        title = f"{span}: {value:,.7g}"
        parts.append(
            Markup('<rect class="bar-fill" x="{}" y="{}" width="{}" height="{}"><title>{}</title>'
                   "</rect>").format(
                _short(left + gap), _short(top), _short(right - left - 2 * gap),
                _short(_HEIGHT - _BOTTOM - top), title,
            )
        )  # fmt: skip
    return _svg(label, parts)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    label: str,
    x: str,
    y: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    percent: bool = False,
    log_y: bool = False,
    mark: float | None = None,
    points: bool = False,
) -> Markup:
    """Returns lines over a common axis, with a legend.

    Lines differ in color and in their dashes. Points that are not finite are left out.

    Args:
        series: points (x, y) of each line, by its name; at most four lines differ in looks.
        label: what the chart shows, for those who do not see it.
        x, y: what stands at the axes.
        x_range, y_range: of the axes; those of the points if absent.
        percent: whether y is a fraction, to be shown as a percentage.
        log_y: whether y is shown by its logarithm.
        mark: draws a vertical line here, such as at the best epoch.
        points: whether each point is drawn as a dot, too.
    """
    shown = {
        name: [p for p in some if all(map(math.isfinite, p)) and (p[1] > 0 or not log_y)]
        for name, some in series.items()
    }
    everything = [point for some in shown.values() for point in some] or [(0, 1)]
    axes = _Axes(
        x_range or _span([point[0] for point in everything], pad=False),
        y_range or _span([point[1] for point in everything], pad=not log_y),
        percent=(False, percent),
        log_y=log_y,
    )
    parts = [axes.draw(x, y)]
    if mark is not None:
        at = _short(axes.x(mark))
        parts.append(
            Markup('<line class="mark" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
                at, _TOP, _HEIGHT - _BOTTOM
            )
        )
    for number, some in enumerate(shown.values()):
        places = [(_short(axes.x(a)), _short(axes.y(b))) for a, b in some]
        path = " ".join(f"{a},{b}" for a, b in places)
        look = number % _SERIES
        parts.append(Markup('<polyline class="line line-{}" points="{}"/>').format(look, path))
        if points or len(places) == 1:
            parts += [
                Markup('<circle class="dot dot-{}" cx="{}" cy="{}" r="3"/>').format(look, *place)
                for place in places
            ]
    legend = Markup("").join(
        Markup(
            '<li><svg viewBox="0 0 28 8" aria-hidden="true"><polyline class="line line-{}"'
            ' points="1,4 27,4"/></svg>{}</li>'
        ).format(number % _SERIES, name)
        for number, name in enumerate(shown)
    )
    chart = _svg(label, parts)
    return chart + Markup('<ul class="legend">{}</ul>').format(legend) if len(shown) > 1 else chart


def heat(values: np.ndarray, *, label: str, aspect: float) -> Markup:
    """Returns a heat map with its scale: the larger a value, the fuller the color of its place.

    Args:
        values: float [rows, columns] in [0, 1].
        label: what the chart shows, for those who do not see it.
        aspect: width / height of the whole.
    """
    alpha = Image.fromarray(np.round(values * 255).astype(np.uint8))
    out = io.BytesIO()
    Image.merge("LA", (alpha, alpha)).save(out, "PNG", optimize=True)
    return Markup(
        '<div class="heat" role="img" aria-label="{}" style="aspect-ratio: {}">'
        '<i style="mask-image: url(data:image/png;base64,{})"></i></div>'
        '<p class="scale">0 % <i></i> 100 %</p>'
    ).format(label, _short(aspect), base64.b64encode(out.getvalue()).decode())


class _Axes:
    """Turns values into places in the picture, and draws the ticks."""

    def __init__(
        self,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        percent: tuple[bool, bool] = (False, False),
        whole: tuple[bool, bool] = (False, False),
        log_y: bool = False,
    ):
        self._x_range = _wide(*x_range)
        self._log = log_y
        low, high = y_range
        self._y_range = _wide(math.log10(low), math.log10(high)) if log_y else _wide(low, high)
        x_ticks, y_ticks = _ticks(*self._x_range, 5, whole[0]), _ticks(*self._y_range, 4, whole[1])
        if log_y and self._y_range[1] - self._y_range[0] >= 1:
            powers = range(
                math.ceil(self._y_range[0] - 1e-9), math.floor(self._y_range[1] + 1e-9) + 1
            )
            y_ticks = [float(power) for power in powers]
        self._x_ticks, self._y_ticks = x_ticks, y_ticks
        self.text_x = _writer(x_ticks, percent[0])
        self._text_y: Callable[[float], str] = _writer(y_ticks, percent[1])
        if log_y:
            self._text_y = lambda power: f"{10**power:.2g}"

    def x(self, value: float) -> float:
        low, high = self._x_range
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        return self._place_y(math.log10(value) if self._log else value)

    def _place_y(self, value: float) -> float:
        low, high = self._y_range
        share = min(max((value - low) / (high - low), 0), 1)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share

    def draw(self, x: str, y: str) -> Markup:
        """Returns grid, numbers and what stands at the axes."""
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        parts = []
        for value in self._y_ticks:
            at = _short(self._place_y(value))
            parts.append(
                Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
                       '<text class="end" x="{}" y="{}" dy=".35em">{}</text>').format(
                    _LEFT, right, at, at, _LEFT - 6, at, self._text_y(value))
            )  # fmt: skip
        for value in self._x_ticks:
            parts.append(
                Markup('<text class="middle" x="{}" y="{}">{}</text>').format(
                    _short(self.x(value)), bottom + 16, self.text_x(value)
                )
            )
        parts.append(
            Markup(
                '<line class="axis" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>'
                '<text class="middle name" x="{3}" y="{4}">{5}</text>'
                '<text class="name" x="0" y="11">{6}</text>'
            ).format(_LEFT, right, bottom, (_LEFT + right) // 2, _HEIGHT - 8, x, y)
        )
        return Markup("").join(parts)


def _svg(label: str, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(_WIDTH, _HEIGHT, label, Markup("").join(parts))


def _span(values: Sequence[float], pad: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.05 if pad else 0.0
    below = low - room if low < 0 or low - room > 0 else 0.0
    return below, high + room


def _wide(low: float, high: float) -> tuple[float, float]:
    """Returns a range that is not empty."""
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, count: int, whole: bool) -> list[float]:
    """Returns round values within a range, about `count` of them, or whole numbers only."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough * 0.999)
    step = max(step, 1.0) if whole else step
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [step * number for number in range(first, last + 1)]


def _writer(ticks: Sequence[float], percent: bool) -> Callable[[float], str]:
    """Returns what writes numbers with as many digits as tell the ticks apart."""
    scale = 100 if percent else 1
    step = (ticks[1] - ticks[0]) * scale if len(ticks) > 1 else 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))

    def write(value: float) -> str:
        return f"{value * scale:,.{digits}f}" + (" %" if percent else "")

    return write


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")

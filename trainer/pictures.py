"""Pictures for people: photos with their boxes and names, contact sheets, training curves."""

import functools
import math
import os
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont, ImageOps

Box = Sequence[float] | np.ndarray
Rectangle = tuple[int, int, int, int]
Color = tuple[int, int, int]

_TRUE_COLOR = (20, 80, 230)
_PREDICTED_COLOR = (214, 24, 24)


def draw_boxes(
    image: np.ndarray | Image.Image,
    true: tuple[Box, str] | None = None,
    predicted: tuple[Box, str, float] | None = None,
) -> Image.Image:
    """Draws the true box in blue and the predicted one in red, each with its name.

    Lines and text scale with the photo. A photo whose shorter side has fewer than 320 pixels is
    enlarged to that; a strip that would become too long gets a gray margin instead. The names are
    on filled labels, which are always inside the picture and never overlap; they begin with `true:`
    and `predicted:`, so that color is not needed to distinguish them. A name too long for two lines
    is cut with an ellipsis. Where both boxes coincide, both colors show: red outside, blue inside.

    Args:
        image: uint8 [height, width, 3], RGB; or a picture of any mode. It is not changed.
        true: box (xmin, ymin, xmax, ymax) as fractions of the photo, and name.
        predicted: box, name and probability in [0, 1]. A box that reaches beyond the photo is cut
            at its edge, an inverted one is drawn around its corners, one that is not finite is not
            drawn.

    Returns:
        A new RGB picture.
    """
    photo = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture, photo_size = _enlarge(photo.convert("RGB"))
    draw = ImageDraw.Draw(picture)
    short = min(picture.size)
    line = max(3, round(short / 150))
    font = _font(max(15, round(short / 24)))
    marks = []
    if true:
        # Wider, so that it shows inside a predicted box at the same place.
        marks.append((true[0], "true: ", true[1], "", _TRUE_COLOR, line + max(3, line // 2)))
    if predicted:
        box, name, probability = predicted
        percent = f" ({_percent(probability)})"
        marks.append((box, "predicted: ", name, percent, _PREDICTED_COLOR, line))
    labels: list[tuple[str, Rectangle, Color]] = []
    for box, prefix, name, suffix, color, width in marks:
        around = _to_pixels(box, photo_size)
        _outline(draw, around, width, color)
        text = _fit(prefix, name, suffix, font, picture.width - 2 * _padding(font))
        place = _place(text, font, around, picture.size, [other for _, other, _ in labels])
        labels.append((text, place, color))
    for text, place, color in labels:
        _draw_label(draw, text, font, place, color)
    return picture


def gallery(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Lays pictures out as a contact sheet, row by row, each in a cell of 480 x 360 pixels.

    Args:
        pictures: at least one, of any sizes; each is scaled to its cell with its proportions kept.
        columns: at least 1; fewer are used when there are fewer pictures.

    Returns:
        An RGB picture, 490 pixels wide for each column and 370 high for each row, and 10 more.

    Raises:
        ValueError: there are no pictures, or `columns` is less than 1.
    """
    if not pictures or columns < 1:
        raise ValueError(f"a gallery of {len(pictures)} pictures in {columns} columns")
    width, height, gap = 480, 360, 10
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    size = (columns * (width + gap) + gap, rows * (height + gap) + gap)
    sheet = Image.new("RGB", size, (245, 245, 245))
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        cell = ImageOps.contain(picture.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
        x = gap + column * (width + gap) + (width - cell.width) // 2
        y = gap + row * (height + gap) + (height - cell.height) // 2
        sheet.paste(cell, (x, y))
    return sheet


_PANELS: tuple[tuple[str, dict[str, tuple[str, str]]], ...] = (
    ("loss", {"loss": ("training", "C0"), "val_loss": ("validation", "C1")}),
    ("box loss", {"box_loss": ("training", "C0"), "val_box_loss": ("validation", "C1")}),
    ("label loss", {"label_loss": ("training", "C0"), "val_label_loss": ("validation", "C1")}),
    ("mean IoU", {"mean_iou": ("training", "C0"), "val_mean_iou": ("validation", "C1")}),
    (
        "right name",
        {
            "top1": ("top-1, training", "C0"),
            "top5": ("top-5, training", "C9"),
            "val_top1": ("top-1, validation", "C1"),
            "val_top5": ("top-5, validation", "C3"),
        },
    ),
    ("learning rate", {"learning_rate": ("", "C2")}),
)
"""Each panel: title, and key in the history -> (name in the legend, color)."""


def curves(history: Sequence[dict[str, float]], path: str) -> None:
    """Draws losses, mean IoU, top-1, top-5 and learning rate over the epochs as a PNG.

    Args:
        history: a record for each epoch, with `epoch` and any of `loss`, `box_loss`, `label_loss`,
            `mean_iou`, `top1`, `top5`, the same with `val_` in front, and `learning_rate`. A record
            without a key has no point in that curve; a panel without points is not drawn.
        path: of the PNG file to write.

    Raises:
        ValueError: nothing in the history can be drawn.
    """
    keys = {key for record in history for key in record}
    panels = [(title, lines) for title, lines in _PANELS if keys & lines.keys()]
    if not panels:
        raise ValueError(f"the history has none of the values to draw, only {sorted(keys)}")
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5 * columns, 3.6 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for i, (title, lines) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        for key, (label, color) in lines.items():
            points = [(record["epoch"], record[key]) for record in history if key in record]
            if points:
                _curve(axes, points, label, color)
        _finish(axes, title)
    figure.savefig(path)


def _curve(axes: Axes, points: list[tuple[float, float]], label: str, color: str) -> None:
    marker = "o" if len(points) <= 30 else ""  # a single epoch has no line to see
    epochs, values = zip(*points, strict=True)
    dashes = "--" if "top-5" in label else "-"
    axes.plot(epochs, values, dashes, color=color, label=label, marker=marker, markersize=4)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)


_SHORTEST, _LONGEST = 320, 3200


def _enlarge(photo: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
    """Returns the picture to draw on, and how much of it, from the left top, the photo takes."""
    scale = max(1.0, min(_SHORTEST / min(photo.size), _LONGEST / max(photo.size)))
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    if size != photo.size:
        photo = photo.resize(size, Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (max(size[0], _SHORTEST), max(size[1], _SHORTEST)), (128, 128, 128))
    canvas.paste(photo)
    return canvas, size


@functools.lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Matplotlib's, because Pillow's own stops at ASCII and a Citroën would be a Citro□n.
    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf")
    return ImageFont.truetype(path, size)


def _percent(probability: float) -> str:
    return f"{100 * probability:.0f} %" if math.isfinite(probability) else "? %"


def _to_pixels(box: Box, size: tuple[int, int]) -> Rectangle | None:
    """Returns the corner pixels of a box that is cut at the edges, or None if it is not finite."""
    fractions = np.asarray(box, np.float64)
    if not np.isfinite(fractions).all():
        return None
    pixels = np.round(np.clip(fractions.reshape(2, 2), 0, 1) * size).astype(int)
    low = np.minimum(pixels.min(axis=0), np.array(size) - 1)
    high = np.maximum(pixels.max(axis=0) - 1, low)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _outline(draw: ImageDraw.ImageDraw, box: Rectangle | None, width: int, color: Color) -> None:
    if box:
        # In a box narrower than two lines, Pillow would draw beyond it.
        width = max(1, min(width, (box[2] - box[0]) // 2, (box[3] - box[1]) // 2))
        draw.rectangle(box, outline=color, width=width)


def _place(
    text: str,
    font: ImageFont.FreeTypeFont,
    box: Rectangle | None,
    size: tuple[int, int],
    others: Sequence[Rectangle],
) -> Rectangle:
    """Finds the best free place for a label: at its box if possible, inside the picture always.

    Returns:
        Left, top, right and bottom in pixels, right and bottom exclusive.
    """
    lines = text.split("\n")
    width = math.ceil(max(font.getlength(line) for line in lines)) + 2 * _padding(font)
    height = len(lines) * _line_height(font) + 2 * _padding(font)
    left, top, _, bottom = box or (0, 0, size[0] - 1, size[1] - 1)
    left = min(left, size[0] - width)
    above, below, lowest = top - height, bottom + 1, size[1] - height
    # The first label stands above its box, the second below. No label is as high as a third of the
    # picture, so that beside the first there is always room at the top or at the bottom.
    tops = [below, above, below - height, top] if others else [above, below, top, below - height]
    tops += [lowest, 0]
    places = [(left, y, left + width, y + height) for y in tops if 0 <= y <= lowest]
    return next(p for p in places if not any(_overlap(p, other) for other in others))


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _fit(prefix: str, name: str, suffix: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Returns the text on at most two lines, its name cut as far as it must be."""
    name = " ".join(name.split())
    for length in range(min(len(name), 200), -1, -1):
        shown = name if length == len(name) else f"{name[:length].rstrip()}…"
        lines = _wrap(f"{prefix}{shown}{suffix}", font, width)
        if len(lines) <= 2 and all(font.getlength(line) <= width for line in lines):
            break
    return "\n".join(lines)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.replace(" %", "\N{NO-BREAK SPACE}%").split(" "):
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return sum(font.getmetrics())


def _padding(font: ImageFont.FreeTypeFont) -> int:
    return round(font.size / 4)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont,
    place: Rectangle,
    color: Color,
) -> None:
    left, top, right, bottom = place
    draw.rectangle((left, top, right - 1, bottom - 1), fill=color)
    for i, line in enumerate(text.split("\n")):
        position = (left + _padding(font), top + _padding(font) + i * _line_height(font))
        draw.text(position, line, fill="white", font=font)

"""Vehicles of the built-in sample: ten kinds as polygons, posed and painted.

Only the shape of the body distinguishes the kinds: colors have one distribution for all.
"""

import colorsys
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Points = np.ndarray  # float [n, 2]: x, y
Shape = tuple[str, Points]  # a filled polygon and its tone: what it is made of, see `_palette`

_SUPERSAMPLING = 2  # painted this many times larger and scaled down, for smooth edges
_SHADED = {"paint", "cargo", "glass"}  # tones that fade from top to bottom


class Part(NamedTuple):
    """A polygon of a vehicle, in meters: rear at x = 0, front to the right, ground at y = 0."""

    tone: str
    corners: tuple[tuple[float, float], ...]
    rounding: float = 0.06  # radius of its corners


@dataclass(frozen=True)
class Kind:
    """A kind of vehicle: class name, parts from back to front, x and radius of its wheels."""

    name: str
    parts: tuple[Part, ...]
    wheels: tuple[float, ...]
    radius: float


def _box(tone: str, x0: float, y0: float, x1: float, y1: float, rounding: float = 0.06) -> Part:
    return Part(tone, ((x0, y0), (x0, y1), (x1, y1), (x1, y0)), rounding)


def _oval(tone: str, x: float, y: float, rx: float, ry: float) -> Part:
    turn = [i * math.tau / 40 for i in range(40)]
    return Part(tone, tuple((x + rx * math.cos(a), y + ry * math.sin(a)) for a in turn), 0)


def _lines(*ends: tuple[float, float, float]) -> tuple[Part, ...]:
    """Upright lines such as those of doors, each (x, lower y, upper y)."""
    return tuple(_box("line", x - 0.012, low, x + 0.012, high, 0) for x, low, high in ends)


# fmt: off
KINDS = (
    Kind(
        "Audi 100 Wagon 1994",
        (
            _box("trim", 0.6, 1.6, 2.9, 1.68),
            Part("paint", ((0, 0.3), (0, 0.9), (0.22, 1.58), (2.95, 1.58), (3.65, 1.04),
                (4.65, 0.92),
                            (4.85, 0.72), (4.85, 0.3)), 0.14),
            Part("glass", ((0.28, 1.08), (0.4, 1.48), (1.2, 1.48), (1.2, 1.06))),
            Part("glass", ((1.3, 1.06), (1.3, 1.48), (2.15, 1.48), (2.15, 1.05))),
            Part("glass", ((2.25, 1.05), (2.25, 1.48), (2.88, 1.48), (3.42, 1.03))),
            *_lines((1.25, 0.62, 1.05), (2.2, 0.38, 1.05), (3.35, 0.38, 1.02)),
            _box("line", 1.85, 0.88, 2.07, 0.92), _box("line", 3.0, 0.88, 3.22, 0.92),
            _box("tail", 0.02, 0.72, 0.14, 1.05), _box("lamp", 4.55, 0.68, 4.81, 0.82),
        ),
        (0.95, 3.9), 0.35,
    ),
    Kind(
        "Volkswagen Golf Hatchback 1991",
        (
            Part("paint", ((0, 0.3), (0.02, 0.9), (0.55, 1.58), (2.1, 1.58), (2.7, 1.04),
                (3.45, 0.92),
                            (3.6, 0.72), (3.6, 0.3)), 0.12),
            Part("glass", ((0.34, 1.05), (0.66, 1.47), (1.05, 1.47), (1.05, 1.04))),
            Part("glass", ((1.15, 1.04), (1.15, 1.47), (2.04, 1.47), (2.5, 1.02))),
            *_lines((1.1, 0.38, 1.04), (2.45, 0.38, 1.02)),
            _box("line", 1.2, 0.86, 1.42, 0.9),
            _box("tail", 0.03, 0.7, 0.15, 0.95), _box("lamp", 3.38, 0.66, 3.57, 0.82),
        ),
        (0.72, 2.9), 0.34,
    ),
    Kind(
        "Volkswagen Beetle Hatchback 2012",
        (
            Part("paint", ((0.3, 0.4), (0.5, 1.1), (1.1, 1.66), (2.1, 1.7), (2.75, 1.3),
                (2.95, 0.98),
                            (3.7, 0.9), (4.05, 0.4)), 0.5),
            _oval("paint", 0.75, 0.45, 0.72, 0.58), _oval("paint", 3.4, 0.45, 0.72, 0.58),
            _box("paint", 0.8, 0.27, 3.4, 0.6),
            Part("glass", ((0.85, 1.12), (1.2, 1.5), (1.5, 1.53), (1.5, 1.1)), 0.14),
            Part("glass", ((1.6, 1.1), (1.6, 1.54), (2.05, 1.53), (2.6, 1.08)), 0.14),
            *_lines((1.55, 0.36, 1.1), (2.6, 0.36, 1.08)),
            _box("line", 1.65, 0.92, 1.87, 0.96), _box("trim", 1.3, 0.25, 2.85, 0.31),
            _oval("tail", 0.17, 0.74, 0.07, 0.12), _oval("lamp", 3.93, 0.72, 0.1, 0.15),
        ),
        (0.75, 3.4), 0.38,
    ),
    Kind(
        "Audi S5 Convertible 2012",
        (
            _oval("skin", 2.0, 1.2, 0.14, 0.17), _box("cloth", 1.75, 0.85, 2.25, 1.08, 0.1),
            _oval("hair", 1.96, 1.27, 0.16, 0.13),
            _box("seat", 1.5, 0.8, 1.78, 1.22, 0.1), _box("seat", 0.95, 0.8, 1.2, 1.15, 0.1),
            Part("glass", ((2.95, 0.95), (2.45, 1.4), (2.38, 1.38), (2.72, 0.93)), 0.02),
            Part("trim", ((3.02, 0.93), (2.44, 1.43), (2.38, 1.4), (2.92, 0.93)), 0.02),
            Part("paint", ((0, 0.28), (0, 0.9), (0.8, 1.0), (1.0, 0.92), (2.6, 0.92), (3.0, 0.98),
                            (4.4, 0.82), (4.65, 0.6), (4.65, 0.28)), 0.14),
            *_lines((1.62, 0.36, 0.92), (2.95, 0.36, 0.94)),
            _box("line", 1.7, 0.76, 1.92, 0.8),
            _box("tail", 0.02, 0.7, 0.22, 0.84), _box("lamp", 4.32, 0.58, 4.6, 0.72),
        ),
        (0.9, 3.72), 0.36,
    ),
    Kind(
        "Jeep Wrangler SUV 2012",
        (
            _box("tyre", -0.16, 0.82, 0.14, 1.6, 0.1),
            Part("paint", ((0.1, 0.52), (0.1, 1.2), (0.16, 1.96), (2.3, 1.96), (2.62, 1.3),
                (3.9, 1.25),
                            (3.98, 0.6), (3.98, 0.52)), 0.07),
            _box("trim", 3.75, 0.5, 4.14, 0.66), _box("trim", 0.0, 0.48, 0.3, 0.6),
            Part("trim", ((0.15, 0.72), (0.35, 1.08), (1.3, 1.08), (1.5, 0.62), (0.9, 0.7))),
            Part("trim", ((2.6, 0.62), (2.8, 1.08), (3.9, 1.08), (4.1, 0.85), (3.3, 0.8))),
            _box("glass", 0.3, 1.3, 1.2, 1.84), Part("glass", ((1.36, 1.3), (1.36, 1.84),
                (2.2, 1.84),
                                                               (2.46, 1.3))),
            *_lines((1.28, 0.6, 1.9), (2.52, 0.6, 1.25)),
            _box("line", 1.36, 1.1, 1.6, 1.15), _box("trim", 2.72, 1.3, 2.9, 1.33),
            _box("tail", 0.08, 1.05, 0.2, 1.25), _oval("lamp", 3.92, 1.02, 0.07, 0.11),
        ),
        (0.85, 3.3), 0.46,
    ),
    Kind(
        "Ford F-150 Regular Cab 2012",
        (
            Part("paint", ((0, 0.45), (0, 1.12), (2.35, 1.12), (2.5, 1.82), (3.55, 1.82),
                (4.05, 1.2),
                            (5.25, 1.12), (5.45, 0.9), (5.45, 0.45)), 0.1),
            _box("trim", 0.05, 1.09, 2.36, 1.17, 0.02), _box("trim", 5.2, 0.42, 5.52, 0.58),
            _box("trim", -0.07, 0.46, 0.25, 0.6),
            Part("glass", ((2.62, 1.22), (2.68, 1.72), (3.5, 1.72), (3.88, 1.2))),
            *_lines((2.5, 0.5, 1.2), (3.86, 0.5, 1.2), (0.06, 0.6, 1.08)),
            _box("line", 2.6, 1.0, 2.84, 1.05),
            _box("tail", 0.0, 0.75, 0.12, 1.05), _box("lamp", 5.26, 0.8, 5.44, 1.0),
        ),
        (1.15, 4.45), 0.43,
    ),
    Kind(
        "Ram C/V Cargo Van Minivan 2012",
        (
            Part("paint", ((0, 0.35), (0, 2.2), (0.1, 2.36), (3.3, 2.36), (4.3, 1.4), (5.05, 1.15),
                            (5.2, 0.9), (5.2, 0.35)), 0.14),
            Part("glass", ((3.0, 1.42), (3.0, 2.1), (3.4, 2.1), (4.08, 1.4))),
            *_lines((2.86, 0.45, 2.25), (1.5, 0.6, 2.25), (4.05, 0.45, 1.4)),
            _box("line", 0.15, 1.28, 2.84, 1.32), _box("line", 3.0, 1.15, 3.24, 1.2),
            _box("trim", 0.4, 0.58, 4.9, 0.66), _box("trim", 4.95, 0.33, 5.26, 0.5),
            _box("tail", 0.0, 1.0, 0.12, 1.6), _box("lamp", 4.92, 0.86, 5.17, 1.05),
        ),
        (0.95, 4.15), 0.38,
    ),
    Kind(
        "Volvo 7900 City Bus 2012",
        (
            _box("paint", 1.6, 2.9, 4.6, 3.28, 0.1),
            Part("paint", ((0, 0.35), (0, 3.1), (10.7, 3.1), (10.95, 1.5), (10.95, 0.35)), 0.2),
            *(_box("glass", 0.35 + 1.4 * i, 1.45, 1.63 + 1.4 * i, 2.6, 0.1) for i in range(4)),
            _box("glass", 5.95, 0.5, 7.05, 2.65, 0.05), _box("glass", 7.25, 1.45, 9.25, 2.6, 0.1),
            _box("glass", 9.4, 0.5, 10.3, 2.65, 0.05),
            Part("glass", ((10.45, 1.4), (10.45, 2.6), (10.74, 2.6), (10.93, 1.4)), 0.03),
            *_lines((6.5, 0.5, 2.65), (9.85, 0.5, 2.65)),
            _box("display", 7.5, 2.7, 9.1, 2.98), _box("trim", 0.1, 0.38, 10.8, 0.5),
            _box("tail", 0.0, 0.8, 0.12, 1.2), _box("lamp", 10.75, 0.7, 10.94, 0.95),
        ),
        (2.3, 8.3), 0.5,
    ),
    Kind(
        "smart fortwo Coupe 2012",
        (
            Part("paint", ((0, 0.32), (0, 0.95), (0.3, 1.62), (1.55, 1.62), (2.15, 1.1), (2.5, 0.9),
                            (2.55, 0.32)), 0.2),
            Part("trim", ((0.52, 1.0), (0.66, 1.54), (0.74, 1.54), (0.72, 1.0), (0.98, 0.4),
                (0.86, 0.4)), 0.03),
            Part("glass", ((0.78, 1.06), (0.88, 1.5), (1.48, 1.5), (1.98, 1.04))),
            Part("glass", ((0.2, 1.08), (0.38, 1.48), (0.5, 1.48), (0.44, 1.06)), 0.03),
            *_lines((1.96, 0.4, 1.04)), _box("line", 1.0, 0.88, 1.22, 0.92),
            _box("tail", 0.02, 0.8, 0.14, 1.0), _oval("lamp", 2.38, 0.78, 0.12, 0.09),
        ),
        (0.44, 2.1), 0.33,
    ),
    Kind(
        "Lamborghini Aventador Coupe 2012",
        (
            Part("trim", ((0.2, 0.8), (0.05, 1.16), (0.2, 1.16), (0.42, 0.8)), 0.02),
            Part("paint", ((-0.12, 1.14), (-0.16, 1.24), (0.55, 1.18), (0.55, 1.12)), 0.03),
            Part("paint", ((0, 0.32), (0.04, 0.84), (0.9, 0.98), (1.9, 1.16), (2.35, 1.14),
                (3.3, 0.8),
                            (4.55, 0.46), (4.75, 0.3), (4.75, 0.2), (0.3, 0.2)), 0.12),
            Part("glass", ((1.35, 0.96), (1.9, 1.1), (2.3, 1.08), (3.02, 0.83), (2.0, 0.8))),
            Part("trim", ((1.1, 0.5), (1.5, 0.75), (1.66, 0.72), (1.5, 0.42)), 0.03),
            *_lines((1.75, 0.3, 0.82), (2.95, 0.3, 0.82)),
            _box("trim", 1.4, 0.2, 3.2, 0.27, 0.02),
            _box("tail", 0.06, 0.68, 0.3, 0.76), Part("lamp", ((4.0, 0.56), (4.1, 0.62),
                (4.5, 0.46)), 0.02),
        ),
        (0.88, 3.82), 0.37,
    ),
)
# fmt: on


def pose(kind: Kind, rng: random.Random) -> list[Shape]:
    """Returns the polygons of one vehicle, from back to front, in meters, y downwards.

    Proportions vary a little, and so do the side it faces, its tilt, and which end is nearer.
    """
    stretch = np.array([rng.uniform(0.94, 1.06), rng.uniform(0.95, 1.05)])
    shapes = [(part.tone, _rounded(part, rng) * stretch) for part in kind.parts]
    radius = kind.radius * rng.uniform(0.93, 1.07)
    spin = rng.uniform(0, math.tau)
    for x in kind.wheels:
        center = np.array([x * stretch[0], radius])
        shapes.extend((tone, points + center) for tone, points in _wheel(radius, spin))

    length = max(points[:, 0].max() for _, points in shapes)
    taper, flip = rng.uniform(-0.12, 0.12), rng.choice((-1, 1))
    tilt = math.radians(rng.uniform(-2.5, 2.5))
    turn = np.array([[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]])

    def project(points: Points) -> Points:
        x, y = points[:, 0], points[:, 1]
        nearness = 1 + taper * (x / length - 0.5)
        return np.stack([x * flip, -y * nearness], axis=1) @ turn

    return [(tone, project(points)) for tone, points in shapes]


def _rounded(part: Part, rng: random.Random) -> Points:
    """Returns the outline of a part; the corners of a body are also moved a little."""
    corners = np.array(part.corners, float)
    if not part.rounding:
        return corners
    if part.tone == "paint":
        corners += [[rng.uniform(-0.025, 0.025), rng.uniform(-0.02, 0.02)] for _ in corners]

    def towards(neighbors: Points) -> Points:
        way = neighbors - corners
        distance = np.linalg.norm(way, axis=1, keepdims=True)
        return corners + way * np.minimum(0.5, part.rounding / distance)

    # A quadratic Bezier curve across each corner.
    start, end = towards(np.roll(corners, 1, axis=0)), towards(np.roll(corners, -1, axis=0))
    t = np.linspace(0, 1, 6)[:, None, None]
    curves = (1 - t) ** 2 * start + 2 * t * (1 - t) * corners + t**2 * end
    return curves.transpose(1, 0, 2).reshape(-1, 2)


def _wheel(radius: float, spin: float) -> Iterator[Shape]:
    """Yields a wheel around (0, 0), turned by `spin` radians."""
    arch = _oval("arch", 0, 0.14 * radius, 1.14 * radius, 1.14 * radius)
    yield arch.tone, np.array(arch.corners)
    for tone, share in (("tyre", 1.0), ("rim", 0.68), ("arch", 0.58)):
        yield tone, np.array(_oval(tone, 0, 0, radius * share, radius * share).corners)
    for angle in spin + np.arange(5) * math.tau / 5:
        along = np.array([math.cos(angle), math.sin(angle)]) * radius * 0.62
        across = np.array([-along[1], along[0]]) * 0.17
        yield "rim", np.array([across, -across, along - across, along + across])


def paint(photo: Image.Image, shapes: list[Shape], rng: random.Random, light: float) -> None:
    """Paints a vehicle on a photo.

    Args:
        photo: RGB; changed.
        shapes: polygons of the vehicle, from back to front, in pixels of the photo.
        rng: decides the colors.
        light: on the scene, 0 to 1.
    """
    palette = _palette(rng, light)
    corners = np.concatenate([points for _, points in shapes])
    left, top = np.floor(corners.min(axis=0)).astype(int)
    right, bottom = np.ceil(corners.max(axis=0)).astype(int)
    place = int(left), int(top), int(right), int(bottom)
    size = (place[2] - place[0]) * _SUPERSAMPLING, (place[3] - place[1]) * _SUPERSAMPLING
    large = photo.crop(place).resize(size, Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(large)
    for tone, points in shapes:
        outline = (points - (left, top)) * _SUPERSAMPLING
        if tone in _SHADED:
            _fill_shaded(large, outline, *palette[tone])
        else:
            pen.polygon(list(map(tuple, outline.tolist())), fill=palette[tone][0])
    photo.paste(large.reduce(_SUPERSAMPLING), place)


def _fill_shaded(image: Image.Image, outline: Points, top: Color, bottom: Color) -> None:
    corner = np.floor(outline.min(axis=0)).astype(int)
    width, height = (np.ceil(outline.max(axis=0)).astype(int) - corner + 1).tolist()
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).polygon(list(map(tuple, (outline - corner).tolist())), fill=255)
    image.paste(gradient(width, height, top, bottom), tuple(corner.tolist()), mask)


def gradient(width: int, height: int, top: Color, bottom: Color) -> Image.Image:
    """Returns an RGB picture that fades from one color to another."""
    column = np.linspace(top, bottom, height).round().astype(np.uint8)
    return Image.fromarray(column[:, None]).resize((width, height), Image.Resampling.NEAREST)


def _palette(rng: random.Random, light: float) -> dict[str, tuple[Color, Color]]:
    """Returns the color of each tone at its top and at its bottom."""

    def shade(color: tuple[float, ...], factor: float = 1.0) -> Color:
        red, green, blue = (round(min(255, c * factor * light)) for c in color)
        return red, green, blue

    def lacquer() -> tuple[float, ...]:
        if rng.random() < 0.35:
            return (rng.uniform(40, 235),) * 3  # white, silver, black
        return hsv(rng.random(), rng.uniform(0.45, 0.9), rng.uniform(0.5, 0.95))

    body, cargo = lacquer(), lacquer()
    plain: dict[str, tuple[float, ...]] = {
        "trim": (45, 46, 50),
        "line": tuple(0.45 * c for c in body),
        "tyre": (32, 32, 35),
        "arch": (20, 20, 22),
        "rim": rng.choice(((196, 198, 202), (140, 142, 148))),
        "skin": rng.choice(((236, 190, 160), (150, 100, 70))),
        "hair": (60, 42, 30),
        "cloth": hsv(rng.random(), 0.5, 0.7),
        "seat": rng.choice(((90, 66, 52), (55, 55, 60))),
    }
    lit = {"lamp": (255, 246, 205), "tail": (214, 38, 30), "display": (255, 178, 44)}
    return {
        "paint": (shade(body, 1.2), shade(body, 0.68)),
        "cargo": (shade(cargo, 1.1), shade(cargo, 0.8)),
        "glass": (shade((176, 204, 220)), shade((42, 54, 66))),
        **{tone: (shade(color), shade(color)) for tone, color in plain.items()},
        **{tone: (color, color) for tone, color in lit.items()},
    }


def hsv(hue: float, saturation: float, value: float) -> Color:
    """Returns the RGB color, 0 to 255, of hue, saturation and value, 0 to 1."""
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue

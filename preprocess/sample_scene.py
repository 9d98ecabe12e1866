"""Landscapes of the built-in sample: random, and independent of the kind of vehicle."""

import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from preprocess.sample_vehicle import Color, gradient, hsv

Pen = ImageDraw.ImageDraw
Rng = random.Random

_SKIES = {  # name: top color, color at the horizon, light on everything
    "day": ((70, 134, 206), (202, 226, 242), 1.0),
    "haze": ((160, 176, 190), (226, 228, 226), 0.95),
    "sunset": ((66, 66, 124), (250, 168, 106), 0.85),
    "dawn": ((120, 150, 200), (252, 214, 190), 0.95),
    "night": ((10, 14, 34), (50, 58, 92), 0.6),
}
_GROUNDS = {  # name: colors at the horizon and at the bottom
    "grass": ((126, 158, 82), (78, 118, 50)),
    "sand": ((222, 196, 148), (192, 158, 108)),
    "asphalt": ((128, 130, 134), (88, 90, 94)),
    "snow": ((236, 240, 244), (206, 214, 224)),
    "soil": ((158, 126, 94), (120, 92, 66)),
}


def landscape(
    rng: Rng, width: int, height: int, bottom: int, vehicle: int
) -> tuple[Image.Image, float]:
    """Returns a landscape without a vehicle, and the light in it, 0 to 1.

    Args:
        rng: source of all randomness.
        width, height: of the photo, pixels.
        bottom: row where a vehicle will stand.
        vehicle: its height, pixels.
    """
    horizon = int(rng.uniform(max(0.25 * height, bottom - 0.9 * vehicle), bottom - 0.06 * height))
    scale = max(vehicle, 0.2 * height)
    sky_top, sky_low, light = _SKIES[rng.choice(tuple(_SKIES))]
    ground_far, ground_near = _GROUNDS[rng.choice(tuple(_GROUNDS))]
    photo = Image.new("RGB", (width, height))
    photo.paste(gradient(width, horizon, sky_top, sky_low), (0, 0))
    far, near = _lit(ground_far, light), _lit(ground_near, light)
    photo.paste(gradient(width, height - horizon, far, near), (0, horizon))
    pen = ImageDraw.Draw(photo)
    if rng.random() < 0.5:
        _clouds(pen, rng, width, horizon, sky_low)
    distance = rng.choice((_hills, _hills, _city, _forest, None))
    if distance:
        distance(pen, rng, width, horizon, scale, light)
    for _ in range(rng.randint(0, 4)):
        thing = rng.choice((_tree, _tree, _house, _sign, _crate))
        foot = horizon + rng.uniform(0, 0.5) * max(0, bottom - horizon)
        thing(pen, rng, rng.uniform(0, width), foot, scale * rng.uniform(0.4, 1.1), light)
    if rng.random() < 0.7:
        _road(pen, rng, width, horizon, bottom, scale, light)
    photo = photo.filter(ImageFilter.BoxBlur(rng.uniform(0.4, 1.2)))
    return photo, light


def cast_shadow(photo: Image.Image, left: int, bottom: int, width: int, height: int) -> None:
    """Darkens the ground under a vehicle of that box, pixels."""
    margin, depth = max(4, height // 8), max(4, height // 8)
    mask = Image.new("L", (width + 2 * margin, depth + 2 * margin))
    ImageDraw.Draw(mask).ellipse((margin, margin, margin + width, margin + depth), fill=190)
    mask = mask.filter(ImageFilter.BoxBlur(margin / 3)).filter(ImageFilter.BoxBlur(margin / 4))
    photo.paste((8, 8, 12), (left - margin, bottom - margin - int(0.8 * depth)), mask)


def _lit(color: tuple[float, ...], light: float, rng: Rng | None = None) -> Color:
    vary = rng.uniform(0.85, 1.15) if rng else 1.0
    red, green, blue = (round(max(0, min(255, c * light * vary))) for c in color)
    return red, green, blue


def _clouds(pen: Pen, rng: Rng, width: int, horizon: int, sky: Color) -> None:
    color = _lit(sky, 1.06)
    for _ in range(rng.randint(1, 3)):
        x, y, size = rng.uniform(0, width), rng.uniform(0, 0.6 * horizon), rng.uniform(0.05, 0.12)
        for i in range(4):
            r = size * width * rng.uniform(0.4, 0.7)
            x += r * 0.8
            pen.ellipse((x - r, y - r * 0.4, x + r, y + r * 0.3 + i), fill=color)


def _hills(pen: Pen, rng: Rng, width: int, horizon: int, scale: float, light: float) -> None:
    for layer in range(rng.randint(1, 3)):
        base = rng.choice(((96, 122, 146), (88, 118, 84), (150, 120, 92), (120, 124, 138)))
        height = scale * rng.uniform(0.3, 1.0) / (1 + layer)
        phases = [(rng.uniform(0, 7), rng.uniform(0.6, 2.5) * (1 + i)) for i in range(3)]
        x = np.linspace(0, width, 60)
        rise = np.sum([np.sin(p + f * x * 6 / width) / f for p, f in phases], axis=0)
        ridge = horizon - height * (0.6 + 0.25 * rise).clip(0)
        pen.polygon([(0, horizon), *zip(x, ridge, strict=True), (width, horizon)],
                    fill=_lit(base, light, rng))  # fmt: skip


def _city(pen: Pen, rng: Rng, width: int, horizon: int, scale: float, light: float) -> None:
    x = -rng.uniform(0, 0.1) * width
    while x < width:
        broad, tall = rng.uniform(0.05, 0.14) * width, scale * rng.uniform(0.4, 1.6)
        color = rng.choice(((128, 136, 148), (160, 148, 136), (104, 112, 128), (176, 172, 168)))
        pen.rectangle((x, horizon - tall, x + broad, horizon), fill=_lit(color, light, rng))
        pane = _lit((70, 82, 96), light) if light > 0.6 or rng.random() < 0.4 else (236, 202, 120)
        step = broad / 4
        for row in range(1, int(tall / step)):
            for column in range(3):
                left, top = x + step * (column + 0.65), horizon - tall + step * (row - 0.3)
                pen.rectangle((left, top, left + step * 0.5, top + step * 0.5), fill=pane)
        x += broad * rng.uniform(1.0, 1.3)


def _forest(pen: Pen, rng: Rng, width: int, horizon: int, scale: float, light: float) -> None:
    for i in range(24):
        x = width * (i + rng.uniform(-0.5, 0.5)) / 23
        _tree(pen, rng, x, horizon + 2, scale * rng.uniform(0.5, 1.0), light)


def _tree(pen: Pen, rng: Rng, x: float, foot: float, size: float, light: float) -> None:
    green = _lit(
        rng.choice(((58, 104, 52), (84, 128, 58), (46, 88, 62), (150, 112, 48))), light, rng
    )
    half = size * 0.05
    pen.rectangle((x - half, foot - size * 0.4, x + half, foot), fill=_lit((92, 66, 46), light))
    if rng.random() < 0.5:
        for top, spread in ((1.0, 0.16), (0.8, 0.22), (0.6, 0.28)):
            y = foot - size * (top - 0.36)
            pen.polygon([(x, foot - size * top), (x - spread * size, y), (x + spread * size, y)],
                        fill=green)  # fmt: skip
        return
    for dx, dy, r in ((-0.13, 0.55, 0.17), (0.14, 0.58, 0.16), (0, 0.75, 0.2)):
        cx, cy, r = x + dx * size, foot - dy * size, r * size
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=green)


def _house(pen: Pen, rng: Rng, x: float, foot: float, size: float, light: float) -> None:
    broad, wall = size * rng.uniform(0.8, 1.4), size * 0.6
    color = rng.choice(((226, 214, 190), (198, 150, 122), (182, 190, 196), (236, 232, 226)))
    pen.rectangle((x, foot - wall, x + broad, foot), fill=_lit(color, light, rng))
    eave, y = size * 0.1, foot - wall
    pen.polygon([(x - eave, y), (x + broad / 2, y - size * 0.45), (x + broad + eave, y)],
                fill=_lit(rng.choice(((140, 66, 52), (88, 84, 90))), light, rng))  # fmt: skip
    pane = _lit((92, 116, 134), light) if light > 0.6 else (240, 206, 124)
    for left in (0.15, 0.6):
        pen.rectangle((x + left * broad, foot - wall * 0.75, x + (left + 0.22) * broad,
                       foot - wall * 0.4), fill=pane)  # fmt: skip


def _sign(pen: Pen, rng: Rng, x: float, foot: float, size: float, light: float) -> None:
    pen.rectangle(
        (x - size * 0.02, foot - size, x + size * 0.02, foot), fill=_lit((120,) * 3, light)
    )
    r, y = size * 0.16, foot - size
    color = _lit(rng.choice(((196, 44, 40), (44, 92, 168), (232, 190, 52), (52, 124, 76))), light)
    (pen.ellipse if rng.random() < 0.5 else pen.rectangle)((x - r, y - r, x + r, y + r), fill=color)
    pen.rectangle(
        (x - r * 0.6, y - r * 0.2, x + r * 0.6, y + r * 0.2), fill=_lit((240,) * 3, light)
    )


def _crate(pen: Pen, rng: Rng, x: float, foot: float, size: float, light: float) -> None:
    broad, tall = size * rng.uniform(0.4, 1.0), size * rng.uniform(0.25, 0.5)
    color = _lit(hsv(rng.random(), 0.45, 0.7), light)
    pen.rectangle((x, foot - tall, x + broad, foot), fill=color)
    for share in (0.25, 0.5, 0.75):
        pen.line((x + share * broad, foot - tall, x + share * broad, foot),
                 fill=_lit(color, 0.8), width=max(1, int(size * 0.015)))  # fmt: skip


def _road(
    pen: Pen, rng: Rng, width: int, horizon: int, bottom: int, scale: float, light: float
) -> None:
    top = max(horizon, int(bottom - scale * rng.uniform(0.12, 0.3)))
    low = bottom + scale * rng.uniform(0.15, 0.5)
    gray = rng.uniform(70, 120)
    pen.rectangle((0, top, width, low), fill=_lit((gray, gray, gray + 5), light))
    edge, white = max(2, scale * 0.025), _lit((214, 212, 200), light)
    pen.rectangle((0, top, width, top + edge), fill=white)
    y, step = bottom + scale * 0.1, scale * rng.uniform(0.8, 1.4)
    x = -rng.uniform(0, step)
    while x < width:
        pen.rectangle((x, y, x + step * 0.5, y + edge * 1.5), fill=white)
        x += step

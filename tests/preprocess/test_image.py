"""One photo: every kind of file that people name .jpg, how it is made smaller, and its box."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from preprocess import image
from tests.preprocess import photo_sets

OPTIONS = image.ImageOptions(48, 64, quality=95)


def prepare(data: bytes, options: image.ImageOptions = OPTIONS) -> image.Photo | image.Rejected:
    (result,) = image.prepare([data], options)
    return result


def decode(photo: image.Photo | image.Rejected) -> np.ndarray:
    assert isinstance(photo, image.Photo), photo
    return np.asarray(Image.open(io.BytesIO(photo.encoded)).convert("RGB")).astype(int)


def lanczos(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """A careful resize, encoded as the job encodes."""
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    data = photo_sets.encode(resized, quality=95)
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


SOURCE = photo_sets.pixels(120, 160, 3)
GRAY = np.asarray(Image.fromarray(SOURCE).convert("L"))


def alpha(transparent: int) -> Image.Image:
    picture = Image.fromarray(SOURCE).convert("RGBA")
    picture.putalpha(transparent)
    return picture


def cmyk() -> bytes:
    return photo_sets.encode(Image.fromarray(SOURCE).convert("CMYK"), quality=95)


def sixteen_bit() -> bytes:
    return photo_sets.encode(Image.fromarray((GRAY.astype(np.uint16) << 8) + 77), "PNG")


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(SOURCE), Image.fromarray(255 - SOURCE)]
    return photo_sets.encode(frames[0], kind, save_all=True, append_images=frames[1:])


ORDINARY = {
    "jpeg": photo_sets.encode(Image.fromarray(SOURCE), quality=97),
    "progressive": photo_sets.encode(Image.fromarray(SOURCE), quality=97, progressive=True),
    "4:4:4": photo_sets.encode(Image.fromarray(SOURCE), quality=97, subsampling=0),
    "png": photo_sets.encode(Image.fromarray(SOURCE), "PNG"),
    "bmp": photo_sets.encode(Image.fromarray(SOURCE), "BMP"),
    "tiff": photo_sets.encode(Image.fromarray(SOURCE), "TIFF"),
    "webp": photo_sets.encode(Image.fromarray(SOURCE), "WEBP", quality=95),
    "gif": photo_sets.encode(Image.fromarray(SOURCE), "GIF"),
    "animated gif": animated("GIF"),
    "animated webp": animated("WEBP"),
    "animated png": animated("PNG"),
    "opaque": photo_sets.encode(alpha(255), "PNG"),
    "cmyk": cmyk(),
    "palette": photo_sets.encode(Image.fromarray(SOURCE).quantize(256), "PNG"),
    "icc and comment": photo_sets.encode(Image.fromarray(SOURCE), quality=97, comment=b"Exif\0\0x"),
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_every_kind_of_picture_comes_out_as_the_same_rgb_jpeg(kind):
    photo = prepare(ORDINARY[kind])
    assert photo.encoded[:3] == b"\xff\xd8\xff"
    assert (photo.original_height, photo.original_width) == (120, 160)
    with Image.open(io.BytesIO(photo.encoded)) as stored:
        assert (stored.size, stored.mode, stored.format) == ((64, 48), "RGB", "JPEG")
    # Palettes and lossy formats are only so exact.
    limit = {"gif": 14, "animated gif": 14, "palette": 8, "webp": 6, "animated webp": 8}
    assert difference(decode(photo), lanczos(SOURCE, 48, 64)) < limit.get(kind, 4)


@pytest.mark.parametrize(
    "data",
    [
        photo_sets.encode(Image.fromarray(GRAY), quality=97),
        photo_sets.encode(Image.fromarray(GRAY), "PNG"),
        sixteen_bit(),
        photo_sets.encode(Image.fromarray(GRAY).convert("LA"), "PNG"),
    ],
    ids=["jpeg", "png", "16 bit", "with alpha"],
)
def test_gray_becomes_rgb(data):
    expected = lanczos(np.repeat(GRAY[:, :, None], 3, axis=2), 48, 64)
    assert difference(decode(prepare(data)), expected) < 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_shows_white(kind):
    assert decode(prepare(photo_sets.encode(alpha(0), kind))).min() >= 250
    palette = Image.new("P", (30, 30))
    palette.info["transparency"] = 0
    data = photo_sets.encode(palette, "PNG", transparency=0)
    assert decode(prepare(data)).min() >= 250


def corner_marked() -> Image.Image:
    """White, with red at the top left, blue at the top right, green at the bottom left."""
    picture = Image.new("RGB", (160, 96), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, 79, 47), "red")
    draw.rectangle((80, 0, 159, 47), "blue")
    draw.rectangle((0, 48, 79, 95), "lime")
    return picture


UNDO = {
    1: [], 2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
    4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE],
    6: [Image.Transpose.ROTATE_90], 7: [Image.Transpose.TRANSVERSE],
    8: [Image.Transpose.ROTATE_270],
}  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_photos_are_turned_as_people_see_them(orientation, kind):
    """The pixels stored are turned the other way round, so each comes out upright."""
    picture = corner_marked()
    for step in UNDO[orientation]:
        picture = picture.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = prepare(photo_sets.encode(picture, kind, exif=exif))
    assert (photo.original_height, photo.original_width) == (96, 160)
    stored = decode(photo)
    for row, column, colour in (
        (12, 16, (255, 0, 0)), (12, 48, (0, 0, 255)),
        (36, 16, (0, 255, 0)), (36, 48, (255, 255, 255)),
    ):  # fmt: skip
        assert np.abs(stored[row, column] - colour).max() < 20


@pytest.mark.parametrize(
    ("kind", "value"),
    [(11, struct.pack(">f", 6)), (5, struct.pack(">I", 26))],  # at byte 26 stands 12 / 2
)
def test_an_orientation_written_as_a_fraction_turns_the_photo(kind, value):
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHI", 8, 1, 0x0112, kind, 1) + value
    exif += struct.pack(">III", 0, 12, 2)
    photo = prepare(photo_sets.encode(corner_marked(), exif=exif))
    assert (photo.original_height, photo.original_width) == (160, 96)


@pytest.mark.parametrize("orientation", [0, 9, 77, "text"])
def test_an_orientation_that_makes_no_sense_turns_nothing(orientation):
    exif = Image.Exif()
    if orientation == "text":
        exif[0x010E] = "Exif\0\0"
    else:
        exif[0x0112] = orientation
    photo = prepare(photo_sets.encode(corner_marked(), exif=exif))
    assert (photo.original_height, photo.original_width) == (96, 160)


def test_a_broken_exif_block_costs_no_photo():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = photo_sets.encode(corner_marked(), exif=exif)
    at = data.index(b"Exif\0\0") + 6
    broken = data[:at] + b"\xff" * 8 + data[at + 8 :]
    assert isinstance(prepare(broken), image.Photo)


def png_header(width: int, height: int) -> bytes:
    data = bytearray(photo_sets.encode(Image.new("L", (1, 1)), "PNG"))
    data[16:24] = struct.pack(">II", width, height)
    import zlib

    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(ORDINARY["jpeg"])
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (jpeg_header(65000, 65000), "65000x65000"),
        (png_header(100_000, 100_000), "100000x100000"),
        (photo_sets.encode(Image.new("L", (300, 400)), "GIF"), "300x400"),
    ],
)
def test_a_bomb_is_told_by_its_header_and_not_decoded(data, size, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    result = prepare(data, image.ImageOptions(48, 64, max_pixels=100_000))
    assert isinstance(result, image.Rejected)
    assert result.reason == "too_large"
    assert size in result.detail
    assert "--max_pixels=100000" in result.detail


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"hello, this is a text", "not an image"),
        (b"\xff\xd8\xff\xe0", "cannot be decoded|not an image"),
        (ORDINARY["jpeg"][:2000], "truncated"),
        (ORDINARY["png"][:2000], "cannot be decoded"),
        (ORDINARY["webp"][:500], "cannot be decoded|not an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "cannot be decoded|not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    ],
)
def test_what_cannot_be_read_says_so(data, says):
    result = prepare(data)
    assert isinstance(result, image.Rejected)
    assert result.reason == "unreadable"
    import re

    assert re.search(says, result.detail), result.detail


def test_a_photo_comes_out_the_same_whichever_others_it_came_with():
    good = [photo_sets.photo(100 + 7 * i, 130, i) for i in range(9)]
    mixed = [*good[:3], b"", good[3], ORDINARY["jpeg"][:1000], ORDINARY["png"], *good[4:], cmyk()]
    together = image.prepare(mixed, OPTIONS)
    alone = [prepare(data) for data in mixed]
    assert [type(one) for one in together] == [type(one) for one in alone]
    for one, other in zip(together, alone, strict=True):
        if isinstance(one, image.Photo):
            assert one == other
    assert sum(isinstance(one, image.Rejected) for one in together) == 2


def stripes(height: int, width: int, period: int) -> np.ndarray:
    """Diagonal stripes, black and white, of so many pixels."""
    y, x = np.mgrid[:height, :width]
    line = ((x + y) // (period // 2) % 2 * 255).astype(np.uint8)
    return np.repeat(line[:, :, None], 3, axis=2)


@pytest.mark.parametrize("size", [(48, 64), (90, 125), (96, 128), (97, 129), (140, 190), (150, 260),
                                  (192, 256), (200, 300), (400, 500), (700, 900), (1600, 2100),
                                  (190, 1400), (1400, 190)])  # fmt: skip
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_resize_is_close_to_a_careful_one(size, kind):
    """Mean difference from Lanczos, out of 255, on pictures with structure at every scale."""
    pixels = photo_sets.pixels(*size, seed=1)
    save = {"quality": 97, "subsampling": 0} if kind == "JPEG" else {}
    data = photo_sets.encode(Image.fromarray(pixels), kind, **save)
    assert difference(decode(prepare(data)), lanczos(pixels, 48, 64)) < 4


@pytest.mark.parametrize("times", [(3, 3), (4.5, 4.5), (6, 6), (8.3, 8.3), (11, 11), (16, 16),
                                   (20, 20), (33, 33), (2.5, 7), (7, 2.5), (2.1, 4.3)])  # fmt: skip
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_fine_stripes_become_gray_and_no_pattern(times, kind):
    """What is finer than the target can show must vanish. Skipped pixels would show a moiré."""
    pixels = stripes(int(48 * times[0]), int(64 * times[1]), 2)
    save = {"quality": 97, "subsampling": 0} if kind == "JPEG" else {}
    stored = decode(prepare(photo_sets.encode(Image.fromarray(pixels), kind, **save)))
    inner = stored[2:-2, 2:-2]
    assert abs(inner.mean() - 127.5) < 3
    assert inner.std() < 8
    # The naive resize fails this test, so it can fail.
    naive = np.asarray(Image.fromarray(pixels).resize((64, 48), Image.Resampling.NEAREST))
    assert naive.std() > 60 or abs(naive.mean() - 127.5) > 60


def test_letterbox_keeps_the_shape_and_centres_on_black():
    options = image.ImageOptions(100, 100, "letterbox")
    photo = prepare(photo_sets.encode(Image.new("RGB", (200, 100), "white")), options)
    assert photo.content == (25, 0, 50, 100)
    stored = decode(photo)
    assert stored[:24].max() < 10
    assert stored[76:].max() < 10
    assert stored[27:73].min() > 245


@given(
    st.integers(1, 400), st.integers(1, 400), st.integers(1, 60), st.integers(1, 60),
)  # fmt: skip
def test_letterbox_fits_every_shape_into_every_other(height, width, target_height, target_width):
    options = image.ImageOptions(target_height, target_width, "letterbox")
    top, left, rows, columns = image._content(height, width, options).numpy().tolist()
    assert rows == target_height or columns == target_width
    assert 1 <= rows <= target_height
    assert 1 <= columns <= target_width
    assert abs(2 * top + rows - target_height) <= 1
    assert abs(2 * left + columns - target_width) <= 1
    scale = min(target_height / height, target_width / width)
    assert abs(rows - height * scale) <= 0.5 + 1e-6 or rows == 1
    assert abs(columns - width * scale) <= 0.5 + 1e-6 or columns == 1


@pytest.mark.parametrize("size", [(80, 200), (200, 80), (61, 97), (1, 300)])
def test_the_box_moves_with_the_letterbox(size):
    """A white rectangle on gray is found where its moved box says."""
    height, width = size
    options = image.ImageOptions(128, 128, "letterbox")
    picture = Image.new("RGB", (width, height), (90, 90, 90))
    box = (width * 0.25, 0, width * 0.75, height)
    ImageDraw.Draw(picture).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), "white")
    photo = prepare(photo_sets.encode(picture, "PNG"), options)
    fractions, clipped = image.normalise_box(box, height, width)
    assert not clipped
    moved = image.place_box(fractions, photo, options)
    rows, columns = np.nonzero(decode(photo).min(axis=2) > 200)
    found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert np.abs(np.array(moved) * 128 - found).max() <= 1.5


sides = st.floats(-200, 2000, allow_nan=False)


@given(sides, sides, sides, sides, st.integers(1, 1500), st.integers(1, 1500))
def test_a_box_is_a_box_inside_or_is_rejected(xmin, ymin, xmax, ymax, height, width):
    slack_x, slack_y = max(2, width / 100), max(2, height / 100)
    photo = image.Photo(b"", height, width, (0, 0, OPTIONS.height, OPTIONS.width))
    inside = xmin >= 0 and ymin >= 0 and xmax <= width and ymax <= height
    why = None
    try:
        fractions, clipped = image.normalise_box((xmin, ymin, xmax, ymax), height, width)
        placed = image.place_box(fractions, photo, OPTIONS)
    except image.Rejected as error:
        why = error
    if why and why.reason == "box_inverted":
        assert xmax - xmin < 1e-3 * width or ymax - ymin < 1e-3 * height
        return
    if why:
        assert why.reason == "box_outside"
        assert not inside
        assert f"{width}x{height}" in why.detail
        return
    for x_low, y_low, x_high, y_high in (fractions, placed):
        assert 0 <= x_low < x_high <= 1
        assert 0 <= y_low < y_high <= 1
    assert all(value == float(np.float32(value)) for value in placed)
    assert clipped == (not inside)
    for value, fraction, side, slack in zip(
        (xmin, ymin, xmax, ymax),
        fractions,
        (width, height) * 2,
        (slack_x, slack_y) * 2,
        strict=True,
    ):
        assert abs(fraction * side - min(max(value, 0), side)) < 1e-6
        assert -slack <= value <= side + slack


@pytest.mark.parametrize(
    ("box", "outcome"),
    [
        ((0, 0, 100, 50), False),
        ((-2, -2, 102, 52), True),
        ((0, 0, 102.1, 50), "box_outside"),
        ((-2.1, 0, 100, 50), "box_outside"),
        ((0, 0, 100, 53), "box_outside"),
        ((100, 0, 101, 50), "box_outside"),
        ((-2, 0, 0, 50), "box_outside"),
        ((30, 0, 30, 50), "box_inverted"),
        ((30, 9, 20, 50), "box_inverted"),
        ((30, 50, 40, 9), "box_inverted"),
    ],
)
def test_how_far_a_box_may_stand_out(box, outcome):
    if isinstance(outcome, str):
        with pytest.raises(image.Rejected) as caught:
            image.normalise_box(box, 50, 100)
        assert caught.value.reason == outcome
    else:
        assert image.normalise_box(box, 50, 100)[1] == outcome
    if box == (0, 0, 102.1, 50):  # 1 % of a long side is more than 2 pixels
        assert image.normalise_box((0, 0, 1009, 50), 50, 1000)[1]

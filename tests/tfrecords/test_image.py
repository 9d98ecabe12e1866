"""One photo: every kind of file that people name .jpg, how it is made smaller, and its box."""

import dataclasses
import functools
import io
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, features

from tests.preprocess import photo_sets
from tfrecords import image

OPTIONS = image.ImageOptions(48, 64, quality=95)
KEEP = dataclasses.replace(OPTIONS, keep_damaged=True)


def prepare(data: bytes, options: image.ImageOptions = OPTIONS) -> image.Photo:
    return image.prepare(data, options)


def rejection(data: bytes, options: image.ImageOptions = OPTIONS) -> image.Rejected:
    with pytest.raises(image.Rejected) as caught:
        image.prepare(data, options)
    return caught.value


def decode(photo: image.Photo) -> np.ndarray:
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
    **{
        kind: photo_sets.encode(Image.fromarray(SOURCE), kind, quality=95)
        for kind, codec in (("AVIF", "avif"), ("JPEG2000", "jpg_2000"))
        if features.check(codec)
    },
    "adobe rgb": photo_sets.encode(Image.fromarray(SOURCE), quality=97, keep_rgb=True),
    "big tiff": photo_sets.encode(Image.fromarray(SOURCE), "TIFF", big_tiff=True),
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


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_cameras_write_ten_or_twelve_bits_into_sixteen(bits, kind):
    """Up to 12 bits are told by the brightest sample; above, the range is that of 16 bits."""
    deep = (GRAY.astype(np.uint16) << 8) + GRAY >> (16 - bits)
    deep[0, 0] = (1 << bits) - 1
    shown = GRAY >> 2 if bits == 14 else GRAY
    expected = lanczos(np.repeat(shown[:, :, None], 3, axis=2), 48, 64)
    stored = decode(prepare(photo_sets.encode(Image.fromarray(deep), kind)))
    assert difference(stored, expected) < 4


def test_sixteen_bit_rgb_keeps_its_high_bytes():
    rows = SOURCE.astype(">u2") * 257

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 160, 120, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)
    data += chunk(b"IEND", b"")
    assert difference(decode(prepare(data)), lanczos(SOURCE, 48, 64)) < 4


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
@pytest.mark.parametrize("kind", ["JPEG", "CMYK", "PNG", "WEBP", "TIFF", "AVIF"])
def test_photos_are_turned_as_people_see_them(orientation, kind):
    """The pixels stored are turned the other way round, so each comes out upright."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow cannot read it")
    picture = corner_marked()
    for step in UNDO[orientation]:
        picture = picture.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "CMYK":
        data = photo_sets.encode(picture.convert("CMYK"), quality=95, exif=exif)
    else:
        data = photo_sets.encode(picture, kind, exif=exif)
    photo = prepare(data)
    assert (photo.original_height, photo.original_width) == (96, 160)
    stored = decode(photo)
    for row, column, color in (
        (12, 16, (255, 0, 0)), (12, 48, (0, 0, 255)),
        (36, 16, (0, 255, 0)), (36, 48, (255, 255, 255)),
    ):  # fmt: skip
        assert np.abs(stored[row, column] - color).max() < 20


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
    assert prepare(broken).original_height == 96


def test_exif_is_found_behind_a_comment_that_looks_like_it():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = photo_sets.encode(corner_marked(), exif=exif)
    comment = b"\xff\xfe\0\x0cExif\0\0abcd"
    assert prepare(data[:2] + comment + data[2:]).original_height == 160


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF'
    b' xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description'
    b' xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def with_xmp(kind: str) -> bytes:
    picture = corner_marked()
    if kind == "CMYK":
        return photo_sets.encode(picture.convert("CMYK"), xmp=XMP)
    if kind == "PNG":
        from PIL import PngImagePlugin

        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        return photo_sets.encode(picture, kind, pnginfo=info)
    if kind == "TIFF":
        return photo_sets.encode(picture, kind, tiffinfo={700: XMP})
    return photo_sets.encode(picture, kind, xmp=XMP)


@pytest.mark.parametrize("kind", ["JPEG", "CMYK", "PNG", "WEBP", "TIFF", "AVIF"])
def test_an_orientation_in_xmp_alone_turns_nothing(kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow cannot read it")
    data = with_xmp(kind)
    assert b"tiff:Orientation" in data
    photo = prepare(data)
    assert (photo.original_height, photo.original_width) == (96, 160)


def png_header(width: int, height: int) -> bytes:
    data = bytearray(photo_sets.encode(Image.new("L", (1, 1)), "PNG"))
    data[16:24] = struct.pack(">II", width, height)
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
    result = rejection(data, image.ImageOptions(48, 64, max_pixels=100_000))
    assert result.reason == "too_large"
    assert size in result.detail
    assert "--max_pixels=100000" in result.detail


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(600)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (bytes(500), "only zero bytes"),
        (b"hello, this is a text", "not an image but text"),
        (b"\xff\xd8\xff\xe0", "cannot be decoded|not an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "cannot be decoded|not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image but an SVG"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>404 Not Found</html>", "a web page.*download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF"),
        (b"\x01\x02\x03\x04\x05", "not an image: it begins with"),
        (HEIC, "a HEIC photo, .* convert it to JPEG"),
        (
            photo_sets.encode(Image.fromarray(GRAY.astype(np.float32)), "TIFF"),
            "floating-point pixels have no known range",
        ),
    ],
)
def test_what_cannot_be_read_says_so(data, says):
    result = rejection(data)
    assert result.reason == "unreadable"
    assert re.search(says, result.detail), result.detail
    assert rejection(data, KEEP).reason == "unreadable"


def overwritten(data: bytes, at: int, with_bytes: bytes) -> bytes:
    return data[:at] + with_bytes + data[at + len(with_bytes) :]


def without_last_scan(progressive: bytes) -> bytes:
    """Progressive JPEGs end with a scan of details: cut where it begins."""
    return progressive[: progressive.rindex(b"\xff\xda")]


BIG = photo_sets.photo(400, 600, 3, quality=90)
PROGRESSIVE = photo_sets.photo(400, 600, 3, quality=90, progressive=True)
RESTARTS = photo_sets.photo(400, 600, 3, quality=90, restart_marker_rows=1)
CMYK = photo_sets.encode(Image.fromarray(photo_sets.pixels(400, 600, 3)).convert("CMYK"))
SCAN = BIG.index(b"\xff\xda")
DAMAGED = {
    "truncated": (BIG[: len(BIG) // 2], "premature end|Premature end"),
    "truncated by a byte of pixels": (BIG[:-3], "premature end|Premature end"),
    "truncated, then zeros": (BIG[: len(BIG) // 2] + bytes(9000), "."),
    "truncated, then 0xff": (BIG[: len(BIG) // 2] + b"\xff" * 9000, "remature end"),
    "bit rot": (overwritten(BIG, len(BIG) // 2, b"\x55" * 40), "Corrupt JPEG data"),
    "bit rot, no complaint but bytes left over": (
        overwritten(BIG, len(BIG) // 3, b"\x41" * 64),
        "Corrupt JPEG data: .*extraneous bytes before marker 0xd9",
    ),
    "a lost restart marker": (RESTARTS.replace(b"\xff\xd3", b"", 1), "Corrupt JPEG data"),
    "progressive, truncated": (PROGRESSIVE[: len(PROGRESSIVE) // 2], "Premature end"),
    "progressive, a scan is missing": (without_last_scan(PROGRESSIVE), "Premature end"),
    "two flaws": (
        overwritten(BIG[:SCAN] + b"abcdef" + BIG[SCAN:], len(BIG) // 2, b"\x55" * 40),
        "Corrupt JPEG data",
    ),
    "cmyk, bit rot": (overwritten(CMYK, len(CMYK) // 2, b"\x55" * 40), "Corrupt JPEG data"),
    "cmyk, truncated": (CMYK[: len(CMYK) // 2], "remature end"),
    "png": (ORDINARY["png"][:20000], "PNG cannot be decoded"),
    "gif": (ORDINARY["gif"][:9000], "GIF cannot be decoded"),
    "bmp": (ORDINARY["bmp"][:20000], "BMP cannot be decoded"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_photo_is_rejected_or_kept_as_far_as_it_goes(kind):
    data, says = DAMAGED[kind]
    result = rejection(data)
    assert result.reason == "damaged"
    assert re.search(says, result.detail), result.detail
    photo = prepare(data, KEEP)
    assert re.search(says, photo.damage)
    size = (120, 160) if kind in ORDINARY else (400, 600)
    assert (photo.original_height, photo.original_width) == size
    decode(photo)


@pytest.mark.parametrize("kind", ["truncated", "png"])
def test_the_part_before_the_damage_is_kept(kind):
    data, _ = DAMAGED[kind]
    whole = BIG if kind == "truncated" else ORDINARY["png"]
    top = decode(prepare(data, KEEP))[:8]
    assert difference(top, decode(prepare(whole))[:8]) < 2


def test_a_photo_of_which_nothing_is_left_is_not_kept():
    for data in (BIG[: SCAN + 14], ORDINARY["png"][:90]):
        assert rejection(data, KEEP).reason == "damaged"


def test_what_the_decoder_does_not_reach_is_not_left_to_chance():
    """libjpeg gives up at a second start marker, before it has written a single row."""
    at = len(PROGRESSIVE) // 3
    data = overwritten(PROGRESSIVE, at, b"\x55" * 40 + b"\xff\xd8")
    results = []
    for fill in (1, 77, 200):
        junk = [np.full(400 * 600 * 3 // times, fill, np.uint8) for times in (1, 16, 64)]
        del junk
        try:
            results.append(prepare(data, KEEP))
        except image.Rejected as error:
            results.append(error.args)
    assert results == results[:1] * 3


@pytest.mark.parametrize("kind", ["webp", "tiff", "AVIF", "JPEG2000"])
def test_a_truncated_file_of_another_format_is_damaged(kind):
    if kind not in ORDINARY:
        pytest.skip("this Pillow cannot read it")
    data = ORDINARY[kind]
    for options in (OPTIONS, KEEP):
        for end in (len(data) // 2, len(data) * 3 // 4):
            try:
                photo = prepare(data[:end], options)
            except image.Rejected as error:
                assert error.reason == "damaged", error  # noqa: PT017
            else:
                assert options.keep_damaged
                assert photo.damage


@pytest.mark.parametrize(
    "data",
    [
        BIG[:-2],
        BIG[:-1],
        BIG + bytes(5000),
        BIG + b"trailing \xff\xd8\xff\xda garbage",
        BIG + BIG,
        BIG[:-2] + bytes(30) + BIG[-2:],
        BIG[:SCAN] + b"abcdef" + BIG[SCAN:],
        BIG[:20] + b"ab" + BIG[20:],
        (BIG[:20] + b"ab" + BIG[20:SCAN] + b"abcdef" + BIG[SCAN:])[:-2],
        BIG.replace(b"JFIF\0\1", b"JFIF\0\7", 1),
    ],
    ids=["no end marker", "half an end marker", "trailing zeros", "trailing garbage", "two photos",
         "padding before the end marker", "bytes between segments", "bytes after the first segment",
         "several", "unknown JFIF version"],
)  # fmt: skip
def test_a_flaw_that_costs_no_pixel_is_no_damage(data):
    photo, expected = prepare(data), prepare(BIG)
    assert photo.damage == ""
    if b"JFIF\0\7" in data:  # this one goes through Pillow, which decodes in full
        assert difference(decode(photo), decode(expected)) < 2
    else:
        assert photo == expected


def test_what_read_returns_is_what_prepare_encodes():
    for data in (BIG, ORDINARY["png"], ORDINARY["cmyk"]):
        pixels, photo = image.read(data, OPTIONS), prepare(data)
        assert pixels.image.shape == (48, 64, 3)
        assert pixels.image.dtype == np.uint8
        assert pixels[1:] == photo[1:]
        assert difference(pixels.image.astype(int), decode(photo)) < 4


def test_threads_get_the_same_bytes():
    photos = [photo_sets.photo(100 + 70 * i, 130 + 40 * i, i) for i in range(9)]
    photos += list(ORDINARY.values())
    expected = [prepare(data) for data in photos]
    found: list[list[image.Photo]] = [[], [], []]

    def work(results: list[image.Photo]) -> None:
        results.extend(prepare(data) for data in photos)

    threads = [threading.Thread(target=work, args=(results,)) for results in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3


def stripes(height: int, width: int, period: int) -> np.ndarray:
    """Diagonal stripes, black and white, of so many pixels."""
    y, x = np.mgrid[:height, :width]
    line = ((x + y) // (period // 2) % 2 * 255).astype(np.uint8)
    return np.repeat(line[:, :, None], 3, axis=2)


@pytest.mark.parametrize("size", [(48, 64), (90, 125), (96, 128), (97, 129), (140, 190), (150, 260),
                                  (192, 256), (200, 300), (400, 500), (700, 900), (1600, 2100),
                                  (190, 1400), (1400, 190), (20, 400), (400, 20),
                                  (30, 100), (100, 30), (47, 65), (49, 63)])  # fmt: skip
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


@pytest.mark.parametrize("times", [1.1, 1.25, 1.4, 1.5, 1.6, 1.75, 1.9, 2.3, 2.7, 3.3])
def test_a_little_smaller_leaves_less_of_a_pattern_than_the_mean_over_areas(times):
    pixels = stripes(int(96 * times), int(128 * times), 2)
    data = photo_sets.encode(Image.fromarray(pixels), "PNG")
    ours = image.read(data, image.ImageOptions(96, 128)).image[2:-2, 2:-2]
    area = cv2.resize(pixels, (128, 96), interpolation=cv2.INTER_AREA)[2:-2, 2:-2]
    assert ours.std() < area.std() + 2


def test_letterbox_keeps_the_shape_and_centers_on_black():
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
    top, left, rows, columns = image.content_size(height, width, options)
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
    fractions, clipped = image.normalize_box(box, height, width)
    assert not clipped
    moved = image.place_box(fractions, photo.content, options)
    rows, columns = np.nonzero(decode(photo).min(axis=2) > 200)
    found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert np.abs(np.array(moved) * 128 - found).max() <= 1.5


sides = st.floats(-200, 2000, allow_nan=False)


@given(sides, sides, sides, sides, st.integers(1, 1500), st.integers(1, 1500))
def test_a_box_is_a_box_inside_or_is_rejected(xmin, ymin, xmax, ymax, height, width):
    slack_x, slack_y = max(2, width / 100), max(2, height / 100)
    content = (0, 0, OPTIONS.height, OPTIONS.width)
    inside = xmin >= 0 and ymin >= 0 and xmax <= width and ymax <= height
    why = None
    try:
        fractions, clipped = image.normalize_box((xmin, ymin, xmax, ymax), height, width)
        placed = image.place_box(fractions, content, OPTIONS)
    except image.Rejected as error:
        why = error
    if why and why.reason == "box_inverted":
        assert xmax - xmin < 1e-3 * width or ymax - ymin < 1e-3 * height
        return
    if why and why.reason == "box_too_small":
        wide = min(xmax, width) - max(xmin, 0)
        high = min(ymax, height) - max(ymin, 0)
        assert min(wide, high) < 1
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
        ((99.5, 0, 102, 50), "box_too_small"),
        ((20, 10, 20.9, 50), "box_too_small"),
        ((20, 10, 50, 10.4), "box_too_small"),
        ((1.3, 10, 2.3, 11), False),
    ],
)
def test_how_far_a_box_may_stand_out(box, outcome):
    if isinstance(outcome, str):
        with pytest.raises(image.Rejected) as caught:
            image.normalize_box(box, 50, 100)
        assert caught.value.reason == outcome
    else:
        assert image.normalize_box(box, 50, 100)[1] == outcome
    if box == (0, 0, 102.1, 50):  # 1 % of a long side is more than 2 pixels
        assert image.normalize_box((0, 0, 1009, 50), 50, 1000)[1]


@given(
    st.tuples(*[st.floats(0, 1)] * 4).filter(lambda box: box[0] < box[2] and box[1] < box[3]),
    st.integers(1, 3000), st.integers(1, 3000), st.sampled_from(["stretch", "letterbox"]),
)  # fmt: skip
def test_a_box_comes_back_as_it_went(box, height, width, resize):
    options = image.ImageOptions(256, 320, resize)
    content = image.content_size(height, width, options)
    try:
        placed = image.place_box(box, content, options)
    except image.Rejected:
        return
    back = image.photo_box(placed, content, options)
    # float32 knows fractions of the stored photo to 6e-8.
    tolerance = 1e-7 * max(options.height / content[2], options.width / content[3])
    assert np.abs(np.subtract(back, box)).max() <= tolerance
    assert min(back) >= 0
    assert max(back) <= 1


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("size", [(120, 160), (160, 120), (30, 160)])
def test_a_stored_photo_comes_back_in_its_own_shape_without_black(resize, size):
    height, width = size
    pixels = np.maximum(photo_sets.pixels(height, width, 3), 60)
    options = image.ImageOptions(96, 128, resize)
    photo = prepare(photo_sets.encode(Image.fromarray(pixels), quality=97), options)
    whole = image.restore(photo.encoded, height, width, options, 1000)
    assert whole.size == (width, height)
    # As near as a photo can come that lost pixels on its way.
    assert difference(np.asarray(whole).astype(int), pixels.astype(int)) < 12
    assert np.asarray(whole).min() > 30
    same = image.restore(photo.encoded, height, width, options)
    assert same.width / same.height == pytest.approx(width / height, rel=0.02)
    assert same.width >= photo.content[3]
    assert same.height >= photo.content[2]
    small = image.restore(photo.encoded, height, width, options, 40)
    assert max(small.size) == 40


def test_a_strip_does_not_come_back_as_millions_of_pixels():
    options = image.ImageOptions(48, 64)
    photo = prepare(photo_sets.photo(2, 900), options)
    assert max(image.restore(photo.encoded, 2, 900, options).size) == 3200


def test_a_box_beside_the_letterbox_comes_back_clipped():
    options = image.ImageOptions(100, 100, "letterbox")
    content = image.content_size(100, 200, options)
    assert image.photo_box((0, 0, 1, 0.5), content, options) == (0, 0, 1, 0.5)


# Each way through the module: a name, a photo, and options.
PATHS: dict[str, tuple[Callable[[], bytes], image.ImageOptions]] = {
    "same size": (lambda: photo_sets.photo(48, 64, 1), OPTIONS),
    "both grow": (lambda: photo_sets.photo(31, 45, 2), OPTIONS),
    "crop to the default size": (
        lambda: photo_sets.photo(224, 224, 3), image.ImageOptions(256, 320)),
    "half, whole factor": (lambda: photo_sets.photo(96, 128, 4, "PNG"), OPTIONS),
    "a third, whole factor": (lambda: photo_sets.photo(144, 192, 5, "PNG"), OPTIONS),
    "smaller, broken factor": (lambda: photo_sets.photo(81, 97, 6), OPTIONS),
    "much smaller": (lambda: photo_sets.photo(411, 333, 7, "PNG"), OPTIONS),
    "wide": (lambda: photo_sets.photo(30, 400, 8), OPTIONS),
    "tall": (lambda: photo_sets.photo(400, 30, 9), OPTIONS),
    "reduced by 2": (lambda: photo_sets.photo(131, 171, 10), OPTIONS),
    "reduced by 8": (lambda: photo_sets.photo(801, 1201, 11, progressive=True), OPTIONS),
    "4:4:4": (lambda: photo_sets.photo(100, 150, 12, subsampling=0), OPTIONS),
    "turned": (lambda: photo_sets.photo(150, 100, 13, exif=b"Exif\0\0MM\0*" + struct.pack(
        ">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)), OPTIONS),
    "letterbox": (lambda: photo_sets.photo(70, 230, 14), image.ImageOptions(48, 64, "letterbox")),
    "gray": (lambda: photo_sets.encode(Image.fromarray(GRAY)), OPTIONS),
    "cmyk": (lambda: cmyk(), OPTIONS),
    "webp": (lambda: photo_sets.photo(120, 160, 15, "WEBP"), OPTIONS),
    "damaged": (lambda: BIG[: len(BIG) // 2], KEEP),
}  # fmt: skip


def hashes_of_files(folder: Path, **environment: str) -> tuple[str, str]:
    """Runs every file of a folder through `prepare` in a process of its own."""
    code = (
        "import sys, pathlib, pickle, hashlib; from tfrecords import image\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.photo')):\n"
        "    options = pickle.loads(path.with_suffix('.options').read_bytes())\n"
        "    try: what = hashlib.sha256(image.prepare(path.read_bytes(), options)[0]).hexdigest()\n"
        "    except image.Rejected as error: what = error.reason\n"
        "    print(path.stem, what)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True, text=True, check=True, env={**os.environ, **environment},
    )  # fmt: skip
    return result.stdout, result.stderr


def write_files(folder: Path, files: dict[str, tuple[bytes, image.ImageOptions]]) -> None:
    import pickle

    for name, (data, options) in files.items():
        (folder / f"{name.replace('/', '-')}.photo").write_bytes(data)
        (folder / f"{name.replace('/', '-')}.options").write_bytes(pickle.dumps(options))


def test_the_bytes_do_not_depend_on_what_the_processor_can(tmp_path):
    write_files(tmp_path, {name: (draw(), options) for name, (draw, options) in PATHS.items()})
    plain, _ = hashes_of_files(tmp_path)
    assert len(set(plain.splitlines())) == len(PATHS)
    assert "unreadable" not in plain
    assert "damaged damaged" not in plain
    run = functools.partial(hashes_of_files, tmp_path)
    no_avx512 = "AVX512-SKX"
    assert run(OPENCV_CPU_DISABLE=no_avx512)[0] == plain
    everything = f"{no_avx512},AVX2,AVX,FMA3,FP16,SSE4.2,SSE4.1,SSSE3"
    assert (
        run(OPENCV_CPU_DISABLE=everything, OPENCV_IPP="disabled", JSIMD_FORCENONE="1")[0] == plain
    )


def test_no_decoder_writes_to_the_terminal(tmp_path):
    rng = np.random.default_rng(0)
    files = {f"damaged {name}": (data, OPTIONS) for name, (data, _) in DAMAGED.items()}
    files |= {f"kept {name}": (data, KEEP) for name, (data, _) in DAMAGED.items()}
    ordinary = {**ORDINARY, "16 bit": sixteen_bit()}
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        ordinary[compression] = photo_sets.encode(
            Image.fromarray(SOURCE), "TIFF", compression=compression
        )
    for name, data in ordinary.items():
        files[f"plain {name}"] = (data, OPTIONS)
        files[f"cut {name}"] = (data[: len(data) // 2], KEEP)
        for number in range(6):
            at = int(rng.integers(4, min(len(data) - 8, (40, 400, len(data))[number % 3])))
            files[f"mutated {number} {name}"] = (overwritten(data, at, rng.bytes(4)), KEEP)
    files["heic"] = (HEIC, OPTIONS)
    write_files(tmp_path, files)
    stdout, stderr = hashes_of_files(tmp_path)
    assert len(stdout.splitlines()) == len(files)
    assert stderr == ""


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.binary(max_size=60), st.sampled_from(sorted(ORDINARY)), st.integers(0, 400))
def test_any_bytes_are_a_photo_or_rejected(wound, kind, at):
    data = overwritten(ORDINARY[kind], at, wound)
    for options in (OPTIONS, KEEP):
        try:
            decode(image.prepare(data, dataclasses.replace(options, max_pixels=200_000)))
        except image.Rejected as error:
            assert error.reason in ("unreadable", "damaged", "too_large")  # noqa: PT017

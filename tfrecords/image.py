"""One photo: check, decode, turn upright, resize, encode; and its box, on its way there and back.

    photo = image.prepare(data, image.ImageOptions(height=256, width=320))   # to be stored
    pixels = image.read(data, options).image                                 # to be predicted on
    picture = image.restore(photo.encoded, 480, 640, options)                # to be looked at

This is the only module that decodes or resizes an original photo. Each call handles one photo and
may run in any thread: libjpeg-turbo (simplejpeg) and OpenCV release the GIL, so the callers'
threads are the parallelism. JPEGs with 1 or 3 components go through simplejpeg; Pillow decodes
everything else that people name `.jpg`.

A box refers to the upright photo, that is, after EXIF orientation, as annotation tools show it. An
orientation that is in XMP only is ignored in every format, as browsers and OpenCV do.

How photos are made smaller: JPEGs are decoded at 1/2, 1/4 or 1/8 scale in the DCT domain while
both sides stay at least as long as needed. A side that is still too long is stretched by linear
interpolation to the next even multiple of its target, and each group of pixels is then averaged.
No source pixel is skipped. On photos this is closer to an antialiased triangle filter than
OpenCV's `INTER_AREA`, at less than half of its cost. Reduced decoding at the scales between
(3/8, 5/8 ...) is slower than this and visibly softer. `tests/tfrecords/test_image.py` bounds the
difference from a Lanczos resize.
"""

import contextlib
import ctypes
import io
import logging
import re
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, features

Box = tuple[float, float, float, float]

# Photos are processed in parallel; threads inside one resize would wait for each other.
cv2.setNumThreads(1)

# The limit on pixels is `ImageOptions.max_pixels`, checked before decoding; Pillow's own would
# refuse some photos below it.
Image.MAX_IMAGE_PIXELS = None

# A decoder's complaints belong into `Rejected`, not onto the terminal.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)
with contextlib.suppress(AttributeError, OSError):  # a Pillow without libtiff has no such functions
    # Pillow leaves libtiff's own printing on. Its library is found through Pillow's.
    _pillow = ctypes.CDLL(Image.core.__file__)
    _pillow.TIFFSetErrorHandler(None)
    _pillow.TIFFSetWarningHandler(None)

# Formats that Pillow may open. Others either are no photos or run other programs (EPS).
_FORMATS = ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"]
_FORMATS += [name for name, codec in (("AVIF", "avif"), ("JPEG2000", "jpg_2000"))
             if features.check(codec)]  # fmt: skip

_LONGEST = 3200  # pixels of the longer side of a restored photo
_EXIF_WITHIN = 1 << 17  # bytes; EXIF is in one of the first segments, each at most 64 KiB
_EXIF = re.compile(rb"\xff\xe1..(Exif\0\0.{0,65535})", re.DOTALL)
_EXTRANEOUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0x(\w\w)")


class Rejected(Exception):  # noqa: N818 - what happened to a photo, not a defect
    """A row that is rejected: a short reason, and a detail with the values that show why."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class ImageOptions:
    """How photos are stored.

    Attributes:
        height, width: of the stored photo, in pixels.
        resize: `stretch` to the target whatever the photo's shape, or `letterbox`: the whole
            photo in its own shape, centered on black.
        quality: JPEG quality, 1 to 100.
        max_pixels: photos with more pixels than this are rejected undecoded.
        keep_damaged: keep a damaged photo as far as it can be decoded, instead of rejecting it.
    """

    height: int
    width: int
    resize: str = "stretch"
    quality: int = 95
    max_pixels: int = 100_000_000
    keep_damaged: bool = False


class Pixels(NamedTuple):
    """A decoded photo of the wanted size.

    Attributes:
        image: uint8 [height, width, 3], RGB, upright.
        original_height, original_width: of the whole upright photo, in pixels.
        content: (top, left, height, width) of the photo inside `image`, in pixels.
        damage: what the decoder said of a damaged photo that was kept, else empty.
    """

    image: np.ndarray
    original_height: int
    original_width: int
    content: tuple[int, int, int, int]
    damage: str


class Photo(NamedTuple):
    """A photo ready to be stored.

    Attributes:
        encoded: JPEG bytes, RGB, 4:2:0, of the target size.
        original_height, original_width: of the whole upright photo, in pixels.
        content: (top, left, height, width) of the photo inside `encoded`, in pixels.
        damage: what the decoder said of a damaged photo that was kept, else empty.
    """

    encoded: bytes
    original_height: int
    original_width: int
    content: tuple[int, int, int, int]
    damage: str


def prepare(data: bytes, options: ImageOptions) -> Photo:
    """Decodes, turns, resizes and encodes a photo.

    Args:
        data: the file's bytes, of any format that is or is not an image.
        options: how to store it.

    Returns:
        The photo as it is stored. Its bytes depend on nothing but `data` and `options`.

    Raises:
        Rejected: `unreadable`, `too_large` or `damaged`.
    """
    pixels = read(data, options)
    encoded = simplejpeg.encode_jpeg(pixels.image, options.quality, "RGB", "420")
    return Photo(encoded, *pixels[1:])


def read(data: bytes, options: ImageOptions) -> Pixels:
    """Decodes, turns and resizes a photo: `prepare` without the encoding.

    Args:
        data: the file's bytes, of any format that is or is not an image.
        options: which size and shape to return.

    Returns:
        The decoded photo.

    Raises:
        Rejected: `unreadable`, `too_large` or `damaged`.
    """
    image, height, width, orientation, damage = (
        _decode_jpeg(data, options) or _decode_with_pillow(data, options)
    )  # fmt: skip
    turned = orientation >= 5
    if turned:
        height, width = width, height
    if damage and image.min() == image.max():
        raise _damaged(f"{damage}; nothing of it can be decoded")
    content = content_size(height, width, options)
    rows, columns = content[2:]
    # Turning comes last because the small photo is the cheaper one to turn.
    image = _resize(image, columns, rows) if turned else _resize(image, rows, columns)
    image = _turn(image, orientation)
    if (rows, columns) != (options.height, options.width):
        canvas = np.zeros((options.height, options.width, 3), np.uint8)
        canvas[content[0] : content[0] + rows, content[1] : content[1] + columns] = image
        image = canvas
    return Pixels(image, height, width, content, damage)


def content_size(height: int, width: int, options: ImageOptions) -> tuple[int, int, int, int]:
    """Returns where an upright photo is inside the stored one.

    Args:
        height, width: of the upright photo, in pixels.
        options: with the stored size and shape.

    Returns:
        (top, left, height, width) in pixels of the stored photo.
    """
    if options.resize == "stretch":
        return 0, 0, options.height, options.width
    # The side that fits tighter fills the target, the other is rounded, and never vanishes.
    rows = min((2 * height * options.width + width) // (2 * width), options.height)
    columns = min((2 * width * options.height + height) // (2 * height), options.width)
    rows, columns = max(rows, 1), max(columns, 1)
    return (options.height - rows) // 2, (options.width - columns) // 2, rows, columns


def normalize_box(box: Box, height: int, width: int) -> tuple[Box, bool]:
    """Turns a box in pixels into fractions of the photo.

    Annotators round, and click slightly outside the photo: a box that reaches outside by at most 2
    pixels or 1 % of the side, whichever is more, is clipped.

    Args:
        box: (xmin, ymin, xmax, ymax) in pixels of the upright photo.
        height, width: of that photo, in pixels.

    Returns:
        (xmin, ymin, xmax, ymax) in [0, 1] with xmin < xmax and ymin < ymax, and whether it was
        clipped.

    Raises:
        Rejected: `box_inverted`, `box_outside` or `box_too_small`.
    """
    xmin, ymin, xmax, ymax = box
    if not (xmin < xmax and ymin < ymax):
        raise Rejected("box_inverted", f"box {_text(box)}: xmin < xmax and ymin < ymax must hold")
    x_slack, y_slack = max(2.0, width * 0.01), max(2.0, height * 0.01)
    # The clipped box must still have an area.
    inside_x = -x_slack <= xmin < width and 0 < xmax <= width + x_slack
    inside_y = -y_slack <= ymin < height and 0 < ymax <= height + y_slack
    if not (inside_x and inside_y):
        raise Rejected(
            "box_outside", f"box {_text(box)} is outside the photo of {width}x{height} pixels"
        )
    clipped = (max(xmin, 0.0), max(ymin, 0.0), min(xmax, width), min(ymax, height))
    x_side, y_side = clipped[2] - clipped[0], clipped[3] - clipped[1]
    if min(x_side, y_side) < 1 - 1e-6:  # 1.3 to 2.3 is one pixel, and a little less in floats
        raise Rejected(
            "box_too_small",
            f"box {_text(box)} covers {x_side:g}x{y_side:g} pixels of the photo of"
            f" {width}x{height}; at least one pixel each way is needed",
        )
    fractions = clipped[0] / width, clipped[1] / height, clipped[2] / width, clipped[3] / height
    return fractions, clipped != tuple(box)


def place_box(fractions: Box, content: tuple[int, int, int, int], options: ImageOptions) -> Box:
    """Moves a box from fractions of the photo to fractions of the stored photo.

    Args:
        fractions: (xmin, ymin, xmax, ymax) in [0, 1] of the original photo.
        content: (top, left, height, width) of the photo inside the stored one, in pixels.
        options: with the stored size.

    Returns:
        (xmin, ymin, xmax, ymax) in [0, 1] of the stored photo, each exactly a float32, with
        xmin < xmax and ymin < ymax.

    Raises:
        Rejected: `box_inverted`, when the box is so thin that two of its sides are the same
            float32.
    """
    top, left, height, width = content
    xmin, xmax = (
        float(np.float32((left + x * width) / options.width)) for x in fractions[::2]
    )  # fmt: skip
    ymin, ymax = (
        float(np.float32((top + y * height) / options.height)) for y in fractions[1::2]
    )  # fmt: skip
    if not (xmin < xmax and ymin < ymax):
        raise Rejected("box_inverted", f"box {_text(fractions)} (fractions) has no area")
    return xmin, ymin, xmax, ymax


def photo_box(stored: Box, content: tuple[int, int, int, int], options: ImageOptions) -> Box:
    """Moves a box back: the inverse of `place_box`.

    Args:
        stored: (xmin, ymin, xmax, ymax) in fractions of the stored photo.
        content: (top, left, height, width) of the photo inside the stored one, in pixels.
        options: with the stored size.

    Returns:
        (xmin, ymin, xmax, ymax) in fractions of the original photo, clipped to [0, 1].
    """
    top, left, height, width = content
    xmin, xmax = (
        min(max((x * options.width - left) / width, 0.0), 1.0) for x in stored[::2]
    )  # fmt: skip
    ymin, ymax = (
        min(max((y * options.height - top) / height, 0.0), 1.0) for y in stored[1::2]
    )  # fmt: skip
    return xmin, ymin, xmax, ymax


def restore(
    encoded: bytes, height: int, width: int, options: ImageOptions, longest: int | None = None
) -> Image.Image:
    """Returns a stored photo in its own shape again, without the black around a letterboxed one.

    Args:
        encoded: JPEG bytes of the stored photo.
        height, width: of the original photo, in pixels.
        options: with the stored size, and how the photo came to it.
        longest: makes the photo as large as the original, with at most so many pixels on its longer
            side. If absent, it is just so large that no stored pixel is lost.

    Returns:
        An RGB picture.

    Raises:
        ValueError: the stored photo cannot be decoded.
    """
    top, left, rows, columns = content_size(height, width, options)
    stored = simplejpeg.decode_jpeg(encoded, "RGB")[top : top + rows, left : left + columns]
    if longest is None:
        # A strip of a photo would otherwise become millions of pixels long.
        scale = min(max(rows / height, columns / width), _LONGEST / max(height, width))
    else:
        scale = min(1.0, longest / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(stored).resize(size, Image.Resampling.LANCZOS)


# Pixels as decoded, their whole height and width, EXIF orientation, and damage.
_Decoded = tuple[np.ndarray, int, int, int, str]


def _decode_jpeg(data: bytes, options: ImageOptions) -> _Decoded | None:
    """Decodes a JPEG, perhaps at reduced scale; None if simplejpeg cannot decode it."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):
        return None
    _check_size(height, width, options)
    if colors in ("CMYK", "YCCK"):
        # Pillow knows how to make RGB of these, but not whether they are damaged.
        _, damage = _decode_checked(data, (-(-height // 8), -(-width // 8)), options)
        pixels, height, width, orientation, complaint = _decode_with_pillow(data, options)
        return pixels, height, width, orientation, damage or complaint
    orientation = 1
    if data.find(b"Exif\0\0", 0, _EXIF_WITHIN) >= 0:
        found = _EXIF.search(data, 0, _EXIF_WITHIN)
        orientation = _orientation(found[1] if found else None)
    rows, columns = (width, height) if orientation >= 5 else (height, width)
    rows, columns = content_size(rows, columns, options)[2:]
    if orientation >= 5:
        rows, columns = columns, rows
    # libjpeg rounds reduced sizes up.
    size = (height, width)
    for times in (8, 4, 2):
        if -(-height // times) >= rows and -(-width // times) >= columns:
            size = (-(-height // times), -(-width // times))
            break
    decoded, damage = _decode_checked(data, size, options)
    return None if decoded is None else (decoded, height, width, orientation, damage)


def _decode_checked(
    data: bytes, size: tuple[int, int], options: ImageOptions
) -> tuple[np.ndarray | None, str]:
    """Decodes a JPEG, and decides whether the decoder's complaints mean damage.

    Args:
        data: the bytes of a JPEG.
        size: height and width at the wanted scale, in pixels.
        options: says whether damaged photos are kept.

    Returns:
        uint8 [height, width, 3] and the damage; None and "" when the decoder gives no pixels at
        all.

    Raises:
        Rejected: `damaged`.
    """
    whole = data
    for _ in range(4):  # the decoder names one flaw at a time
        try:
            return simplejpeg.decode_jpeg(whole, "RGB", False, False, *size, 1), ""
        except ValueError as error:
            damage = str(error)
        mended = _mend(whole, damage)
        if mended is None:
            break
        whole = mended
    # The decoder may stop anywhere: what it does not reach stays gray.
    kept = np.full(3 * size[0] * size[1], 128, np.uint8)
    try:
        pixels = simplejpeg.decode_jpeg(whole, "RGB", False, False, *size, 1, kept, strict=False)
    except ValueError:
        return None, ""
    if not options.keep_damaged:
        raise _damaged(damage)
    return pixels, damage


def _mend(jpeg: bytes, complaint: str) -> bytes | None:
    """Returns the JPEG without the flaw that the decoder named, if that costs no pixel.

    Two flaws may be harmless. The end marker may be missing: a JPEG of one scan is whole if it
    decodes without complaint once the marker is there (of several scans, the last might be
    missing). And superfluous bytes may stand before a marker: bytes between header segments, or
    padding, that is the same byte again and again. Other bytes after pixels are damage, because
    a decoder that lost its way in the pixels ends with some left over.
    """
    if complaint == "Premature end of JPEG file":
        sequential = max(jpeg.rfind(b"\xff\xc0"), jpeg.rfind(b"\xff\xc1"))
        is_one_scan = sequential >= 0 and jpeg.count(b"\xff\xda", sequential) == 1
        return None if jpeg.endswith(b"\xff\xd9") or not is_one_scan else jpeg + b"\xff\xd9"
    found = _EXTRANEOUS.fullmatch(complaint)
    if not found:
        return None
    count, marker = int(found[1]), b"\xff" + bytes.fromhex(found[2])
    first_scan = jpeg.find(b"\xff\xda")
    at = count
    for _ in range(100):  # a file made of markers must not take forever
        at = jpeg.find(marker, at + 2)
        extra = jpeg[at - count : at]
        if at < 0 or at <= first_scan or extra == extra[:1] * count:
            return jpeg[: at - count] + jpeg[at:] if at >= 0 else None
    return None


def _decode_with_pillow(data: bytes, options: ImageOptions) -> _Decoded:
    damage = ""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image.height, image.width, options)
            # Pillow would turn TIFFs by their XMP while loading.
            image.info.pop("xmp", None)
            try:
                image.load()
            # Decoders raise whatever their format's parser stumbles over (OSError, SyntaxError,
            # struct.error, IndexError, zlib.error ...): for a file from outside all mean the same.
            except Exception as error:
                damage = f"{image.format} cannot be decoded: {error}"
                if not options.keep_damaged:
                    raise _damaged(damage) from error
                image.tile = []  # this ends the loading: what is decoded so far becomes the image
                try:
                    image.load()
                except Exception:
                    raise _damaged(damage) from error
            orientation = _orientation(image.info.get("exif"))
            pixels = _to_rgb(image)
    except Rejected:
        raise
    except Exception as error:
        # Pillow does not even open these two when they are cut off.
        if data[8:12] in (b"WEBP", b"avif"):
            raise _damaged(f"{data[8:12].decode().upper()} cannot be opened") from error
        if isinstance(error, Image.UnidentifiedImageError):
            raise Rejected("unreadable", _what_it_is(data)) from None
        raise Rejected("unreadable", f"cannot be decoded: {error}") from error
    return pixels, *pixels.shape[:2], orientation, damage


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Returns uint8 [height, width, 3]; what is transparent shows white."""
    if image.mode.startswith("I"):
        # Gray of more than 8 bits, whose depth no file states reliably: cameras write 10 or 12
        # bits into 16, which would come out nearly black by the high byte.
        values = np.asarray(image)
        bits = int(values.max()).bit_length()
        bits = 16 if 12 < bits <= 16 else max(bits, 8)
        gray = np.clip(values >> (bits - 8), 0, 255).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; convert it to 8 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def _orientation(exif: Any) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 when there is none or it makes no sense."""
    if not exif:
        return 1
    try:
        tags = Image.Exif()
        tags.load(exif)
        value = tags.get(ExifTags.Base.Orientation, 1)
        # Some write it as a fraction.
        return int(value) if value in range(1, 9) else 1
    except Exception:  # broken EXIF turns no photo
        return 1


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns [height, width, 3] by its EXIF orientation (EXIF 2.3, tag 0x0112)."""
    if orientation >= 5:
        image = cv2.transpose(image)
    if orientation in (3, 4, 7, 8):
        image = cv2.flip(image, 0)
    if orientation in (2, 3, 6, 7):
        image = cv2.flip(image, 1)
    return image


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes uint8 [h, w, 3] to [height, width, 3].

    A side that shrinks does so before the other grows, so a long thin photo takes little memory.
    """
    rows, columns = image.shape[:2]
    if rows > height or columns > width:
        # Pixels are averaged in even numbers, because the mean of an odd number of alternating
        # black and white stripes is not gray.
        down, across = 1, 1
        if rows > height:
            down, rows = 2 * -(-rows // (2 * height)), height
        if columns > width:
            across, columns = 2 * -(-columns // (2 * width)), width
        image = _stretch(image, down * rows, across * columns)
        image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    return _stretch(image, height, width)


def _stretch(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def _what_it_is(data: bytes) -> str:
    """Returns what an undecodable file is, and what to do about it."""
    if not data.strip(b"\0"):
        return f"the file {'holds only zero bytes' if data else 'is empty'}: copy it again"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"heim", b"hevc", b"mif1"):
        return "a HEIC photo, which no library here reads: convert it to JPEG"
    start = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for sign, what in (
        (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
        (b"%pdf", "a PDF: export its picture as JPEG"),
        (b"<svg", "an SVG drawing: render it as JPEG"),
        (b"<!doctype html", "a web page (HTML): download the photo itself"),
        (b"<html", "a web page (HTML): download the photo itself"),
    ):
        if start.startswith(sign) or (start.startswith(b"<?xml") and sign in start):
            return f"not an image but {what}"
    if re.fullmatch(rb"[\t-\r\x20-\x7e]+", start):
        return f"not an image but text, which begins with {data[:40]!r}: replace it by the photo"
    return f"not an image: it begins with {data[:16]!r}"


def _check_size(height: int, width: int, options: ImageOptions) -> None:
    if height * width > options.max_pixels:
        raise Rejected(
            "too_large",
            f"{width}x{height} pixels is more than --max_pixels={options.max_pixels};"
            " it was not decoded",
        )


def _damaged(complaint: str) -> Rejected:
    return Rejected(
        "damaged",
        f"damaged or truncated: {complaint}; copy it again, or keep what can be decoded with"
        " --keep_damaged",
    )


def _text(box: Box) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"

"""One photo: check, decode, orient, to RGB, resize, encode; and its box, from pixels to fractions.

Ordinary JPEGs (gray or colour, in any EXIF orientation) go through one TensorFlow graph, many
photos a call, without Python in between. Everything else that people name `.jpg` goes through
Pillow into the same resize and encode.

A box refers to the photo as people see it, that is after EXIF orientation: annotation tools show
photos so, and the size that the box is checked against is the size after turning.

How photos are made smaller: JPEGs are decoded at 1/2, 1/4 or 1/8 scale in the DCT domain as long
as both sides stay at least as long as the target's; what is left is halved (a 2-pixel mean) while
it is more than twice the target, and then interpolated. At no step is a source pixel skipped, so
nothing aliases. `tests/preprocess/test_image.py` bounds the difference from a Lanczos resize.
"""

import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import ExifTags, Image, ImageOps

# The limit on pixels is `ImageOptions.max_pixels`, checked before decoding; Pillow's own would
# refuse some photos below it.
Image.MAX_IMAGE_PIXELS = None

# Formats that Pillow may open. Others either are no photos or run other programs (EPS).
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")

_EXIF_WITHIN = 1 << 17  # bytes; EXIF stands in one of the first segments, each at most 64 KiB


class Rejected(Exception):  # noqa: N818 - what happened to a photo, not a defect
    """A row that is set aside: a short reason, and a detail with the values that show why."""

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
            photo in its own shape, centred on black.
        quality: JPEG quality, 1 to 100.
        max_pixels: photos with more pixels than this are rejected undecoded.
    """

    height: int
    width: int
    resize: str = "stretch"
    quality: int = 95
    max_pixels: int = 100_000_000


class Photo(NamedTuple):
    """A photo ready to be stored.

    Attributes:
        encoded: JPEG bytes, RGB, of the target size.
        original_height, original_width: after EXIF orientation, in pixels.
        content: (top, left, height, width) of the photo inside `encoded`, in pixels.
    """

    encoded: bytes
    original_height: int
    original_width: int
    content: tuple[int, int, int, int]


def prepare(photos: list[bytes], options: ImageOptions) -> list[Photo | Rejected]:
    """Decodes, orients, resizes and encodes photos.

    The bytes that come out depend on nothing but the photo and the options, whichever photos it
    came in with.

    Args:
        photos: the files' bytes, of any format that is or is not an image.
        options: how to store them.

    Returns:
        For each photo, in order, the result or why there is none (`unreadable`, `too_large`).
    """
    results: list[Photo | Rejected | None] = [None] * len(photos)
    ordinary = []
    orientations = []
    for i, data in enumerate(photos):
        if data.startswith(b"\xff\xd8\xff"):
            ordinary.append(i)
            orientations.append(_orientation(data))
    _prepare_jpegs(photos, ordinary, orientations, options, results)
    return [
        _prepare_with_pillow(data, options) if result is None else result
        for data, result in zip(photos, results, strict=True)
    ]


def warm_up(options: ImageOptions) -> None:
    """Traces the graph, so that no thread waits for another that does."""
    _encoder(options)


def graph(
    photo: tf.Tensor, orientation: tf.Tensor, options: ImageOptions
) -> tuple[tf.Tensor, tf.Tensor]:
    """Prepares one ordinary JPEG, inside a graph: the op chain that all speed is judged by.

    Args:
        photo: string scalar, the bytes of a JPEG.
        orientation: int32 scalar, EXIF orientation 1 to 8.
        options: how to store it.

    Returns:
        The encoded photo, a string scalar that is empty when this chain is not for it (neither
        1 nor 3 components, or too many pixels), and int32 [6]: original height and width, and
        top, left, height and width of the photo inside the stored one.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are not a whole JPEG.
    """
    shape = tf.io.extract_jpeg_shape(photo)
    turned = orientation >= 5
    height = tf.where(turned, shape[1], shape[0])
    width = tf.where(turned, shape[0], shape[1])
    pixels = tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
    usable = ((shape[2] == 1) | (shape[2] == 3)) & (pixels <= options.max_pixels)
    content = _content(height, width, options)

    def run() -> tf.Tensor:
        image = _orient(_decode_reduced(photo, height, width, content), orientation)
        return _fit_and_encode(image, content, options)

    encoded = tf.cond(usable, run, lambda: tf.constant(b""))
    return encoded, tf.concat([[height, width], content], axis=0)


def normalise_box(
    box: tuple[float, float, float, float], height: int, width: int
) -> tuple[tuple[float, float, float, float], bool]:
    """Turns a box in pixels into fractions of the photo.

    Annotators round, and click a little beside the photo: what lies outside by at most 2 pixels
    or 1 % of the side, whichever is more, is clipped.

    Args:
        box: (xmin, ymin, xmax, ymax) in pixels of the photo as people see it.
        height, width: of that photo.

    Returns:
        (xmin, ymin, xmax, ymax) in [0, 1] with xmin < xmax and ymin < ymax, and whether it was
        clipped.

    Raises:
        Rejected: `box_inverted` or `box_outside`.
    """
    xmin, ymin, xmax, ymax = box
    if not (xmin < xmax and ymin < ymax):
        raise Rejected("box_inverted", f"box {_text(box)}: xmin < xmax and ymin < ymax must hold")
    x_slack, y_slack = max(2.0, width * 0.01), max(2.0, height * 0.01)
    inside = (
        xmin >= -x_slack
        and ymin >= -y_slack
        and xmax <= width + x_slack
        and ymax <= height + y_slack
        # What is left after clipping must be a box still.
        and xmin < width
        and ymin < height
        and xmax > 0
        and ymax > 0
    )
    if not inside:
        raise Rejected(
            "box_outside", f"box {_text(box)} is outside the photo of {width}x{height} pixels"
        )
    clipped = (max(xmin, 0.0), max(ymin, 0.0), min(xmax, width), min(ymax, height))
    fractions = (
        clipped[0] / width,
        clipped[1] / height,
        clipped[2] / width,
        clipped[3] / height,
    )
    return fractions, clipped != tuple(box)


def place_box(
    fractions: tuple[float, float, float, float], photo: Photo, options: ImageOptions
) -> tuple[float, float, float, float]:
    """Moves a box from fractions of the photo to fractions of the stored photo.

    Args:
        fractions: (xmin, ymin, xmax, ymax) in [0, 1] of the original photo.
        photo: whose `content` says where it stands in the stored one.
        options: with the stored size.

    Returns:
        (xmin, ymin, xmax, ymax) in [0, 1] of the stored photo, each exactly a float32, with
        xmin < xmax and ymin < ymax.

    Raises:
        Rejected: `box_inverted`, when the box is so thin that float32 knows no difference
            between its sides.
    """
    top, left, height, width = photo.content
    xmin, ymin, xmax, ymax = (
        float(np.float32(value))
        for value in (
            (left + fractions[0] * width) / options.width,
            (top + fractions[1] * height) / options.height,
            (left + fractions[2] * width) / options.width,
            (top + fractions[3] * height) / options.height,
        )
    )
    if not (xmin < xmax and ymin < ymax):
        raise Rejected("box_inverted", f"box {_text(fractions)} (fractions) has no area")
    return xmin, ymin, xmax, ymax


def _prepare_jpegs(
    photos: list[bytes],
    positions: list[int],
    orientations: list[int],
    options: ImageOptions,
    results: list[Photo | Rejected | None],
) -> None:
    """Fills `results[positions]`; leaves None where the graph is not for the photo.

    One broken photo fails the whole call, so it is searched by halves.
    """
    if not positions:
        return
    try:
        encoded, numbers = _encoder(options)(
            tf.constant([photos[i] for i in positions]), tf.constant(orientations, tf.int32)
        )
    except (tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError):
        if len(positions) == 1:
            return
        half = len(positions) // 2
        _prepare_jpegs(photos, positions[:half], orientations[:half], options, results)
        _prepare_jpegs(photos, positions[half:], orientations[half:], options, results)
        return
    for i, data, row in zip(positions, encoded.numpy(), numbers.numpy().tolist(), strict=True):
        if row[0] * row[1] > options.max_pixels:
            results[i] = _too_large(row[0], row[1], options)
        elif data:
            results[i] = Photo(data, row[0], row[1], tuple(row[2:]))


@functools.cache
def _encoder(options: ImageOptions) -> Callable[[tf.Tensor, tf.Tensor], tuple]:
    """Returns the graph over a batch; traced once for each set of options."""

    @tf.function(
        autograph=False,  # there is no Python control flow to convert, and converting takes seconds
        input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int32)],
    )
    def encode(photos: tf.Tensor, orientations: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # One photo after the other: the callers' threads are the parallelism, and memory holds
        # one decoded photo a thread.
        # On the CPU, also where there is a GPU: its kernels round differently.
        with tf.device("/cpu:0"):
            return tf.map_fn(
                lambda one: graph(one[0], one[1], options),
                (photos, orientations),
                fn_output_signature=(tf.TensorSpec([], tf.string), tf.TensorSpec([6], tf.int32)),
                parallel_iterations=1,
            )

    return encode.get_concrete_function()


def _prepare_with_pillow(data: bytes, options: ImageOptions) -> Photo | Rejected:
    if not data:
        return Rejected("unreadable", "the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > options.max_pixels:
                return _too_large(image.height, image.width, options)
            image.load()
            pixels = _to_rgb(_upright(image))
    except Image.UnidentifiedImageError:
        return Rejected("unreadable", f"not an image: it begins with {data[:16]!r}")
    # Decoders raise whatever their format's parser stumbles over (OSError, SyntaxError,
    # struct.error, IndexError, zlib.error ...): for a file from outside all mean the same.
    except Exception as error:
        return Rejected("unreadable", f"cannot be decoded: {error}")
    encoded, numbers = _pixel_encoder(options)(tf.constant(pixels))
    row = numbers.numpy().tolist()
    return Photo(encoded.numpy(), pixels.shape[0], pixels.shape[1], tuple(row))


@functools.cache
def _pixel_encoder(options: ImageOptions) -> Callable[[tf.Tensor], tuple]:
    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    def encode(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.device("/cpu:0"):
            content = _content(tf.shape(image)[0], tf.shape(image)[1], options)
            return _fit_and_encode(image, content, options), content

    return encode.get_concrete_function()


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF turns no photo
        return image


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Returns uint8 [height, width, 3]; what is transparent shows white."""
    if image.mode.startswith("I"):
        # 16-bit gray: its high byte. Pillow's own conversion would clip instead.
        values = np.asarray(image)
        high = np.asarray(np.clip(values >> 8, 0, 255), np.uint8)
        return np.repeat(high[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def _orientation(jpeg: bytes) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 when there is none or it makes no sense."""
    if jpeg.find(b"Exif\x00\x00", 0, _EXIF_WITHIN) < 0:
        return 1
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF turns no photo; a broken photo fails when it is decoded
        return 1
    # Some write it as a fraction.
    return int(value) if value in range(1, 9) else 1


def _orient(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns [height, width, 3] by its EXIF orientation (EXIF 2.3, tag 0x0112)."""

    def turn() -> tf.Tensor:
        turned = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        upside_down = tf.reduce_any(orientation == [3, 4, 7, 8])
        turned = tf.cond(upside_down, lambda: tf.reverse(turned, [0]), lambda: turned)
        mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
        return tf.cond(mirrored, lambda: tf.reverse(turned, [1]), lambda: turned)

    return tf.cond(orientation == 1, lambda: image, turn)


def _decode_reduced(
    photo: tf.Tensor, height: tf.Tensor, width: tf.Tensor, content: tf.Tensor
) -> tf.Tensor:
    """Decodes a JPEG at the smallest scale that leaves both sides at least as long as needed."""
    times = tf.minimum(height // content[2], width // content[3])
    index = tf.reduce_sum(tf.cast(times >= [2, 4, 8], tf.int32))
    return tf.switch_case(
        index,
        [
            functools.partial(
                tf.io.decode_jpeg, photo, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE"
            )
            for ratio in (1, 2, 4, 8)
        ],
    )


def _content(height: tf.Tensor, width: tf.Tensor, options: ImageOptions) -> tf.Tensor:
    """Returns int32 [4]: where a photo stands in the stored one (top, left, height, width)."""
    if options.resize == "stretch":
        return tf.constant([0, 0, options.height, options.width])
    h, w = tf.cast(height, tf.int64), tf.cast(width, tf.int64)
    # The side that fits tighter fills the target, the other is rounded, and never vanishes.
    content_height = tf.minimum((2 * h * options.width + w) // (2 * w), options.height)
    content_width = tf.minimum((2 * w * options.height + h) // (2 * h), options.width)
    content_height = tf.cast(tf.maximum(content_height, 1), tf.int32)
    content_width = tf.cast(tf.maximum(content_width, 1), tf.int32)
    return tf.stack(
        [
            (options.height - content_height) // 2,
            (options.width - content_width) // 2,
            content_height,
            content_width,
        ]
    )


def _fit_and_encode(image: tf.Tensor, content: tf.Tensor, options: ImageOptions) -> tf.Tensor:
    """Resizes uint8 [height, width, 3] to its content size, pads it, and encodes it."""
    resized = tf.cast(tf.round(_resize(image, content[2], content[3])), tf.uint8)
    if options.resize == "letterbox":
        resized = tf.image.pad_to_bounding_box(
            resized, content[0], content[1], options.height, options.width
        )
    return tf.io.encode_jpeg(resized, quality=options.quality)


def _resize(image: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Resizes uint8 [h, w, 3] to float32 [height, width, 3]: the one place that resizes.

    Up to 2 times smaller, bilinear interpolation uses every source pixel. Between 2 and 4 times a
    side is halved first, which is the mean of pixel pairs: as good as an antialiased resize here,
    at a third of its cost. Beyond that (long panoramas, and large photos that are no JPEGs) the
    antialiased resize does it.
    """
    rows, columns = tf.shape(image)[0], tf.shape(image)[1]

    def halve_then_interpolate() -> tf.Tensor:
        half = _bilinear(
            image,
            tf.where(rows > 2 * height, (rows + 1) // 2, rows),
            tf.where(columns > 2 * width, (columns + 1) // 2, columns),
        )
        return _bilinear(half, height, width)

    return tf.cond(
        (rows <= 2 * height) & (columns <= 2 * width),
        lambda: _bilinear(image, height, width),
        lambda: tf.cond(
            (rows <= 4 * height) & (columns <= 4 * width),
            halve_then_interpolate,
            lambda: tf.image.resize(image, [height, width], antialias=True),
        ),
    )


def _bilinear(image: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    size = tf.stack([height, width])
    return tf.raw_ops.ResizeBilinear(images=image[None], size=size, half_pixel_centers=True)[0]


def _too_large(height: int, width: int, options: ImageOptions) -> Rejected:
    return Rejected(
        "too_large",
        f"{width}x{height} pixels is more than --max_pixels={options.max_pixels};"
        " it was not decoded",
    )


def _text(box: tuple[float, float, float, float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"

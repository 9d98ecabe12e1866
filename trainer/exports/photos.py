"""JPEG and PNG bytes to pixels by TensorFlow operations, for the graph of a SavedModel.

What `tfrecords.image.read` does, as closely as these operations can: EXIF orientation, reduced
decoding, resizing, letterbox, transparency on white. A test holds the two against each other. Not
done: an orientation that is written as a fraction; other formats than JPEG and PNG.
"""

from typing import NamedTuple

import tensorflow as tf

MAX_PIXELS = 100_000_000
"""As `tfrecords.image.ImageOptions` has it."""

_NEITHER = "the bytes are neither a JPEG nor a PNG"
_WRONG_SIZE = f"a photo must have between 1 and {MAX_PIXELS} pixels, and height and width are"
_ORIENTATION = 0x0112
_EXIF_CHUNK = int.from_bytes(b"eXIf", "big")
_EXIF_HEADER = int.from_bytes(b"Exif\0\0", "big")
_RATIOS = (1, 2, 4, 8)


class Photos(NamedTuple):
    """Decoded photos.

    Attributes:
        image: uint8 [b, height, width, 3], RGB, upright.
        size: int32 [b, 2], height and width of the whole upright photos, in pixels.
        content: int32 [b, 4], (top, left, height, width) of the photo inside `image`, in pixels.
    """

    image: tf.Tensor
    size: tf.Tensor
    content: tf.Tensor


def decode(encoded: tf.Tensor, height: int, width: int, resize: str) -> Photos:
    """Decodes, turns and resizes photos.

    Args:
        encoded: string [b], the bytes of JPEG or PNG files.
        height, width: of the result, in pixels.
        resize: `stretch` or `letterbox`.

    Raises:
        tf.errors.InvalidArgumentError: while it runs, for a photo of another format, a damaged
            one, or one of more than `MAX_PIXELS`.
    """

    def one(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return _decode_one(data, height, width, resize)

    signature = (
        tf.TensorSpec([height, width, 3], tf.uint8),
        tf.TensorSpec([2], tf.int32),
        tf.TensorSpec([4], tf.int32),
    )
    return Photos(*tf.map_fn(one, encoded, fn_output_signature=signature))


def photo_boxes(bbox: tf.Tensor, photos: Photos) -> tf.Tensor:
    """Returns boxes in pixels of the whole photos, clipped to them: float32 [b, 4].

    Args:
        bbox: float32 [b, 4], (xmin, ymin, xmax, ymax) as fractions of `photos.image`.
        photos: that the boxes are of.
    """
    stored = tf.constant([photos.image.shape[2], photos.image.shape[1]] * 2, tf.float32)
    top, left, rows, columns = tf.unstack(tf.cast(photos.content, tf.float32), axis=1)
    corner = tf.stack([left, top, left, top], axis=1)
    shown = tf.stack([columns, rows, columns, rows], axis=1)
    fractions = tf.clip_by_value((bbox * stored - corner) / shown, 0, 1)
    return fractions * tf.cast(tf.tile(photos.size[:, ::-1], [1, 2]), tf.float32)


def _decode_one(
    data: tf.Tensor, height: int, width: int, resize: str
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    is_jpeg = tf.io.is_jpeg(data)
    is_png = tf.strings.substr(data, 0, 8) == b"\x89PNG\r\n\x1a\n"
    with tf.control_dependencies([tf.debugging.Assert(is_jpeg | is_png, [_NEITHER])]):
        raw = tf.io.decode_raw(data, tf.uint8)
    size = tf.cond(
        is_jpeg,
        lambda: tf.io.extract_jpeg_shape(data)[:2],
        lambda: tf.cast(_number(raw, tf.constant([20, 16], tf.int64), 4), tf.int32),
    )
    pixels = tf.reduce_prod(tf.cast(size, tf.int64))
    usable = (pixels > 0) & (pixels <= MAX_PIXELS)
    with tf.control_dependencies([tf.debugging.Assert(usable, [_WRONG_SIZE, size])]):
        orientation = tf.cond(
            is_jpeg,
            lambda: _orientation(raw, _find_exif_in_jpeg(raw)),
            lambda: _orientation(raw, _find_exif_in_png(raw)),
        )
    turned = orientation >= 5
    upright = tf.where(turned, size[::-1], size)
    content = _content(upright, height, width, resize)
    # Turning comes last because the small photo is the cheaper one to turn.
    wanted = tf.where(turned, content[:1:-1], content[2:])
    image = tf.cond(
        is_jpeg, lambda: _decode_jpeg(data, size, wanted), lambda: _decode_png(data, raw)
    )
    image = _turn(_resize(image, wanted), orientation)
    image = tf.image.pad_to_bounding_box(image, content[0], content[1], height, width)
    return tf.ensure_shape(image, [height, width, 3]), upright, content


def _content(size: tf.Tensor, height: int, width: int, resize: str) -> tf.Tensor:
    """Returns int32 [4]; see `tfrecords.image.content_size`."""
    if resize == "stretch":
        return tf.constant([0, 0, height, width])
    rows, columns = tf.unstack(tf.cast(size, tf.int64))
    shown_rows = tf.minimum((2 * rows * width + columns) // (2 * columns), height)
    shown_columns = tf.minimum((2 * columns * height + rows) // (2 * rows), width)
    shown = tf.maximum(tf.stack([shown_rows, shown_columns]), 1)
    corner = (tf.constant([height, width], tf.int64) - shown) // 2
    return tf.cast(tf.concat([corner, shown], 0), tf.int32)


def _decode_jpeg(data: tf.Tensor, size: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG at the smallest scale at which both sides are as long as wanted."""
    fits = [tf.reduce_all((size + ratio - 1) // ratio >= wanted) for ratio in _RATIOS[1:]]
    # A scale fits wherever a smaller one does.
    number = tf.add_n([tf.cast(fit, tf.int32) for fit in fits])

    def at(ratio: int) -> tf.Tensor:
        return tf.io.decode_jpeg(data, 3, ratio=ratio, dct_method="INTEGER_ACCURATE")

    return tf.switch_case(number, [lambda ratio=ratio: at(ratio) for ratio in _RATIOS])


def _decode_png(data: tf.Tensor, raw: tf.Tensor) -> tf.Tensor:
    """Decodes a PNG; what is transparent shows white."""

    def deep_gray() -> tf.Tensor:
        # Cameras write 10 or 12 bits into 16.
        values = tf.cast(tf.io.decode_png(data, 1, tf.uint16), tf.int32)
        powers = tf.constant([1 << bit for bit in range(16)])
        bits = tf.reduce_sum(tf.cast(tf.reduce_max(values) >= powers, tf.int32))
        bits = tf.where(bits > 12, 16, tf.maximum(bits, 8))
        gray = tf.minimum(tf.bitwise.right_shift(values, bits - 8), 255)
        return tf.tile(tf.cast(gray, tf.uint8), [1, 1, 3])

    def colors() -> tf.Tensor:
        values = tf.cast(tf.io.decode_png(data, 4), tf.int32)
        alpha = values[..., 3:]
        on_white = (values[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
        return tf.cast(on_white, tf.uint8)

    def shallow_gray() -> tf.Tensor:
        return tf.io.decode_png(data, 3)  # with an alpha channel it comes out wrong

    depth, kind = (_number(raw, tf.constant(at, tf.int64), 1) for at in (24, 25))
    number = tf.where((kind == 0) & (depth == 16), 0, tf.where((kind == 0) & (depth < 8), 1, 2))
    return tf.switch_case(number, [deep_gray, shallow_gray, colors])


def _resize(image: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
    """Resizes uint8 [h, w, 3]; see `tfrecords.image` for how."""
    size = tf.shape(image)[:2]
    shrunk = tf.minimum(size, wanted)
    groups = tf.where(size > wanted, 2 * ((size + 2 * wanted - 1) // (2 * wanted)), 1)
    image = _stretch(image, shrunk * groups)
    grouped = tf.reshape(image, [shrunk[0], groups[0], shrunk[1], groups[1], 3])
    image = tf.round(tf.reduce_mean(grouped, [1, 3]))
    return tf.cast(_stretch(image, wanted), tf.uint8)


def _stretch(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    return tf.round(tf.image.resize(image, size))


def _turn(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns [h, w, 3] by its EXIF orientation (EXIF 2.3, tag 0x0112)."""

    def among(*values: int) -> tf.Tensor:
        return tf.reduce_any(orientation == tf.constant(values, tf.int64))

    image = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    image = tf.cond(among(3, 4, 7, 8), lambda: image[::-1], lambda: image)
    return tf.cond(among(2, 3, 6, 7), lambda: image[:, ::-1], lambda: image)


def _find_exif_in_jpeg(raw: tf.Tensor) -> tf.Tensor:
    """Returns where the TIFF header of a JPEG's EXIF begins, or the end of the file."""

    def before(at: tf.Tensor) -> tf.Tensor:
        marker = _number(raw, at, 2)
        is_exif = (marker == 0xFFE1) & (_number(raw, at + 4, 6) == _EXIF_HEADER)
        return (marker > 0xFF00) & (marker != 0xFFDA) & ~is_exif

    start = tf.constant(2, tf.int64)
    (at,) = tf.while_loop(before, lambda at: [at + 2 + _number(raw, at + 2, 2)], [start])
    there = _number(raw, at + 4, 6) == _EXIF_HEADER
    return tf.where(there, at + 10, tf.size(raw, tf.int64))


def _find_exif_in_png(raw: tf.Tensor) -> tf.Tensor:
    """Returns where the TIFF header of a PNG's EXIF begins, or the end of the file."""
    end = tf.size(raw, tf.int64)
    (at,) = tf.while_loop(
        lambda at: (at < end) & (_number(raw, at + 4, 4) != _EXIF_CHUNK),
        lambda at: [at + 12 + _number(raw, at, 4)],
        [tf.constant(8, tf.int64)],
    )
    return tf.minimum(at + 8, end)


def _orientation(raw: tf.Tensor, tiff: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF orientation, 1 to 8; 1 when there is none or it makes no sense.

    Args:
        raw: uint8 [n], the file.
        tiff: int64, where the TIFF header begins.
    """
    little = _number(raw, tiff, 2) == int.from_bytes(b"II", "big")

    def number(at: tf.Tensor, count: int) -> tf.Tensor:
        big = _number(raw, at, count)
        return tf.where(little, _number(raw, at, count, little=True), big)

    directory = tiff + number(tiff + 4, 4)
    entries = directory + 2 + 12 * tf.range(number(directory, 2))
    tags, kinds = number(entries, 2), number(entries + 2, 2)
    as_short, as_long = number(entries + 8, 2), number(entries + 8, 4)
    as_byte = _number(raw, entries + 8, 1)
    values = tf.where(kinds == 3, as_short, tf.where(kinds == 4, as_long, as_byte))
    usable = (tags == _ORIENTATION) & (values >= 1) & (values <= 8)
    usable &= (kinds == 1) | (kinds == 3) | (kinds == 4)
    return tf.reduce_max(tf.concat([[tf.constant(1, tf.int64)], tf.where(usable, values, 1)], 0))


def _number(raw: tf.Tensor, at: tf.Tensor, count: int, *, little: bool = False) -> tf.Tensor:
    """Returns the unsigned numbers of so many bytes at places of a file; beyond its end stand 0s.

    Args:
        raw: uint8 [n].
        at: int64, any shape.
        count: 1 to 6 bytes.
        little: the least byte first.
    """
    places = at[..., tf.newaxis] + tf.range(count, dtype=tf.int64)
    end = tf.size(raw, tf.int64)
    there = places < end
    found = tf.cast(tf.gather(raw, tf.where(there, places, 0)), tf.int64)
    powers = [256**power for power in range(count)]
    weights = tf.constant(powers if little else powers[::-1], tf.int64)
    return tf.reduce_sum(tf.where(there, found, 0) * weights, axis=-1)

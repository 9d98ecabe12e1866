"""A trained model as it is used: photos in, names and boxes out.

    model = load("runs/cars")
    found = model.predict("photo.jpg")    # or bytes, a PIL image, an array; or a list of these
    print(found.name, found.probability, found.box)

A photo becomes the JPEG that a record of it would hold (`tfrecords.image.prepare`) and is judged as
in evaluation (`trainer.inference`), so both find the same: at small sizes, fine traces of that JPEG
decide which of two similar names is given. The box comes back in pixels of the photo as people see
it.
"""

import collections
import contextlib
import dataclasses
import functools
import importlib.util
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, NamedTuple, TypeGuard, TypeVar, cast, overload

import numpy as np
import tensorflow as tf
from PIL import Image

from tfrecords import image, remote
from tfrecords.errors import UserError
from trainer import inference, resources, run_dir

BATCH_SIZE = 32
"""Photos that the network judges at a time, unless told otherwise."""

MAX_BYTES = 128 << 20
"""A larger file is no photo and is not read."""

Photo = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray
"""A path, the bytes of a file, a PIL image, or uint8 [height, width, 3], RGB."""

_EXPORT = "carbox.json"  # in the folder of an export

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Box:
    """A box in pixels of the photo as people see it, from its left top; xmin <= xmax."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass(frozen=True)
class Name:
    """A class name and its probability in [0, 1]."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What a model says of one photo.

    Attributes:
        width, height: of the photo as people see it (after EXIF orientation), in pixels.
        box: around the object, in those pixels, within the photo.
        names: the most probable first.
    """

    width: int
    height: int
    box: Box
    names: tuple[Name, ...]

    @property
    def name(self) -> str:
        """The most probable name."""
        return self.names[0].name

    @property
    def probability(self) -> float:
        """The probability of `name`, in [0, 1]."""
        return self.names[0].probability

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON has it: pixels to 2 digits after the point, probabilities to 6."""
        sides = dataclasses.asdict(self.box).items()
        return {
            "width": self.width,
            "height": self.height,
            "box": {side: round(value, 2) for side, value in sides},
            "names": [
                {"name": one.name, "probability": round(one.probability, 6)} for one in self.names
            ],
        }


@dataclass(frozen=True)
class Unreadable:
    """Why there is no prediction of a photo.

    Attributes:
        reason: `unreadable`, `damaged`, `too_large`; or `not_finite`, the model gave no numbers.
        detail: a sentence with the values that show why.
    """

    reason: str
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        return {"error": dataclasses.asdict(self)}


class _Decoded(NamedTuple):
    """A photo as it is judged.

    Attributes:
        image: uint8 [h, w, 3], RGB.
        height, width: of the whole upright photo, in pixels.
        content: see `image.Pixels`.
    """

    image: np.ndarray
    height: int
    width: int
    content: tuple[int, int, int, int]


Judge = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""uint8 [b, h, w, 3] -> boxes float32 [b, 4], fractions of that image, and probabilities float32
[b, classes]."""


def load(path: str | os.PathLike[str]) -> "Model":
    """Loads the model of a run (its best epoch) or of an export.

    Args:
        path: the run's folder; that of an export, of which the best format is taken for which a
            runtime is installed; or one of the export's files. All may be in a bucket.

    Raises:
        UserError: there is neither, or it cannot be used.
    """
    _be_modest()
    path = remote.model(os.fspath(path))
    place = os.path.abspath(os.path.expanduser(path))
    for folder in (place, os.path.dirname(place)):
        if os.path.isfile(os.path.join(folder, _EXPORT)):
            return _load_export(folder, os.path.relpath(place, folder))
    return _load_run(os.path.expanduser(path))


class Model:
    """A model ready to judge photos; made by `load`. Any number of threads may use one."""

    def __init__(
        self,
        judge: Judge,
        class_names: Sequence[str],
        options: image.ImageOptions,
        kind: str,
        downscale: int = 1,
    ):
        """Joins the parts.

        Args:
            judge: the network with all its passes.
            class_names: in the order of its probabilities.
            options: how the records that it learned from are stored.
            kind: what it is, for people.
            downscale: 1, 2, 4 or 8: it judges records decoded at this fraction of their size.
        """
        self.description = (
            f"{len(class_names)} classes, photos at {options.height}x{options.width} pixels"
            f" (height x width), {options.resize}, {kind}"
        )
        self.class_names = list(class_names)
        self.options = options
        self._downscale = downscale
        self._judge = judge
        self._decoders = ThreadPoolExecutor(resources.cores(), "decode")
        self._judges = ThreadPoolExecutor(1, "judge")  # the network itself uses all cores

    @overload  # a str is one photo, though it has parts
    def predict(  # type: ignore[overload-overlap]
        self, photos: Photo, *, top: int = 5, batch_size: int = BATCH_SIZE
    ) -> Prediction: ...

    @overload
    def predict(
        self, photos: Iterable[Photo], *, top: int = 5, batch_size: int = BATCH_SIZE
    ) -> list[Prediction]: ...

    def predict(
        self, photos: Photo | Iterable[Photo], *, top: int = 5, batch_size: int = BATCH_SIZE
    ) -> Prediction | list[Prediction]:
        """Names the object on photos and draws its box.

        Args:
            photos: one, or any number in a list or another iterable. Each is a path, the bytes of
                a file (JPEG, PNG, WebP, TIFF ...), a PIL image, or an array uint8
                [height, width, 3], RGB. Files and PIL images are turned by their EXIF orientation.
            top: how many names to give for each; fewer where there are fewer classes.
            batch_size: photos that the network judges at a time.

        Returns:
            A prediction for one photo, a list of them, in order, for many.

        Raises:
            UserError: a photo cannot be read.
        """
        if _is_one(photos):
            return self.predict([photos], top=top)[0]
        found: list[Prediction] = []
        many = cast(Iterable[Photo], photos)
        for photo, outcome in self.stream(many, _read, top=top, batch_size=batch_size):
            if isinstance(outcome, Unreadable):
                which = photo if isinstance(photo, str | os.PathLike) else f"photo {len(found) + 1}"
                raise UserError(f"{which}: {outcome.detail}")
            found.append(outcome)
        return found

    def predict_bytes(self, photos: Sequence[bytes], top: int = 5) -> list[Prediction | Unreadable]:
        """Like `predict`, for files' bytes; a photo that cannot be read is told, not raised."""
        return [outcome for _, outcome in self.stream(photos, lambda data: data, top=top)]

    def stream(
        self,
        photos: Iterable[_Item],
        read: Callable[[_Item], bytes],
        *,
        top: int = 5,
        batch_size: int = BATCH_SIZE,
    ) -> Iterator[tuple[_Item, Prediction | Unreadable]]:
        """Predicts one photo after the other, in order, however many there are.

        Threads read and decode ahead while the network works. Memory holds three batches of
        decoded photos, whatever the number and size of the files.

        Args:
            photos: anything that stands for a photo.
            read: returns the bytes of one; called in several threads. It may raise `OSError` or
                `image.Rejected`.
            top: how many names to give for each.
            batch_size: photos that the network judges at a time.

        Yields:
            Each photo, and what was found.
        """
        decode = functools.partial(self._decode, read)
        decoded = _in_order(self._decoders, decode, photos, ahead=2 * batch_size)
        judge = functools.partial(self._judge_batch, top)
        for batch in _in_order(self._judges, judge, _batches(decoded, batch_size), ahead=1):
            yield from batch

    def _decode(
        self, read: Callable[[_Item], bytes], photo: _Item
    ) -> tuple[_Item, _Decoded | Unreadable]:
        try:
            stored = image.prepare(read(photo), self.options)
            pixels = tf.io.decode_jpeg(stored.encoded, channels=3, ratio=self._downscale)
            size = stored.original_height, stored.original_width
            return photo, _Decoded(pixels.numpy(), *size, stored.content)
        except OSError as error:
            return photo, Unreadable("unreadable", error.strerror or str(error))
        except image.Rejected as rejected:
            return photo, Unreadable(rejected.reason, _without_flags(rejected.detail))

    def _judge_batch(
        self, top: int, batch: list[tuple[_Item, _Decoded | Unreadable]]
    ) -> list[tuple[_Item, Prediction | Unreadable]]:
        images = [pixels.image for _, pixels in batch if isinstance(pixels, _Decoded)]
        found = iter(zip(*self._judge(np.stack(images)), strict=True) if images else ())
        outcomes = (
            pixels if isinstance(pixels, Unreadable) else self._say(pixels, top, *next(found))
            for _, pixels in batch
        )
        return [(photo, outcome) for (photo, _), outcome in zip(batch, outcomes, strict=True)]

    def _say(
        self, pixels: _Decoded, top: int, bbox: np.ndarray, probabilities: np.ndarray
    ) -> Prediction | Unreadable:
        """Returns what was found in a photo, in its own pixels.

        Args:
            pixels: the photo.
            top: how many names to give.
            bbox: float32 [4], fractions of the photo as it was judged.
            probabilities: float32 [classes].
        """
        if not (np.isfinite(bbox).all() and np.isfinite(probabilities).all()):
            return Unreadable("not_finite", "the model gives numbers that are not finite")
        xmin, ymin, xmax, ymax = image.photo_box(tuple(bbox.tolist()), pixels.content, self.options)
        width, height = pixels.width, pixels.height
        (xmin, xmax), (ymin, ymax) = sorted((xmin, xmax)), sorted((ymin, ymax))
        best = np.argsort(-probabilities, kind="stable")[:top]
        return Prediction(
            width,
            height,
            Box(xmin * width, ymin * height, xmax * width, ymax * height),
            tuple(Name(self.class_names[i], float(probabilities[i])) for i in best),
        )


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Returns the bytes of a photo's file.

    Raises:
        OSError: it cannot be read.
        image.Rejected: it is too large for a photo.
    """
    with open(path, "rb", buffering=0) as file:
        return read_all(file)


def read_all(file: IO[bytes]) -> bytes:
    """Returns all bytes of an open file; see `read_file`."""
    parts, size = [], 0
    while part := file.read(1 << 20):
        parts.append(part)
        size += len(part)
        if size > MAX_BYTES:
            raise image.Rejected("too_large", f"a file of more than {MAX_BYTES >> 20} MiB")
    return b"".join(parts)


def _be_modest() -> None:
    """Takes no more threads than a container may keep busy, and GPU memory only as needed."""
    with contextlib.suppress(RuntimeError):  # TensorFlow is at work in this process already
        for gpu in tf.config.get_visible_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
        tf.config.threading.set_intra_op_parallelism_threads(resources.cores())
        tf.config.threading.set_inter_op_parallelism_threads(resources.cores())


def _load_run(run: str) -> Model:
    trained = run_dir.load_trained(run)
    data, config, network = trained.data, trained.config, trained.network
    quality = data.quality or image.ImageOptions.quality
    options = image.ImageOptions(data.height, data.width, data.resize or "stretch", quality)
    size = tuple(-(-side // config.downscale) for side in (data.height, data.width))

    # Of any batch size, so that the last batch is not traced anew.
    @tf.function(input_signature=[tf.TensorSpec([None, *size, 3], tf.uint8)])
    def judge(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        found = inference.judge(
            lambda shown: network(shown, training=False),
            images,
            config.inference,
            (network.input.shape[1], network.input.shape[2]),
        )
        return found["bbox"], tf.nn.softmax(found["logits"])

    def judge_arrays(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bbox, probabilities = judge(tf.constant(images))
        return bbox.numpy(), probabilities.numpy()

    kind = f"{config.inference.zoom_passes} zoom passes"
    return Model(judge_arrays, data.class_names, options, kind, config.downscale)


def _load_export(folder: str, file: str) -> Model:
    """Loads an export.

    Args:
        folder: of the export.
        file: of the format to load; `.` for the best one.
    """
    from trainer.exports import runtimes

    place = os.path.normpath(os.path.join(folder, file))
    try:
        export = runtimes.read(folder)
        names = [name for name, entry in export.files.items() if entry["file"] == file]
        if file != "." and not names:
            raise UserError(f"{folder} is an export, and {file} is none of its models.")
        name = names[0] if names else runtimes.choose(export)
        package, to_install = runtimes.PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{place} needs {package}: pip install {to_install}")
        judge = runtimes.load(folder, name)
    except (ValueError, OSError, ImportError) as error:
        raise UserError(f"the export {folder} cannot be used: {error}") from None
    facts = export.facts
    options = image.ImageOptions(
        facts.get("record_height", export.height),
        facts.get("record_width", export.width),
        export.resize,
        facts.get("jpeg_quality", image.ImageOptions.quality),
    )
    kind = f"export as {name}"
    return Model(judge, export.class_names, options, kind, facts.get("downscale", 1))


def _is_one(photos: Photo | Iterable[Photo]) -> TypeGuard[Photo]:
    if isinstance(photos, np.ndarray):
        return photos.ndim < 4
    return isinstance(photos, str | os.PathLike | bytes | bytearray | memoryview | Image.Image)


def _read(photo: Photo) -> bytes:
    """Returns a photo as a file's bytes, from which all are read alike."""
    if isinstance(photo, bytes | bytearray | memoryview):
        return bytes(photo)
    if isinstance(photo, str | os.PathLike):
        return read_file(photo)
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
            raise TypeError(
                f"an array {photo.dtype} {list(photo.shape)}; a photo is uint8 [height, width, 3]"
            )
        photo = Image.fromarray(photo)
    if not isinstance(photo, Image.Image):
        raise TypeError(
            f"a photo is a path, bytes, a PIL image or an array, not {type(photo).__name__}"
        )
    exif = photo.getexif()
    if photo.mode not in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"):  # what PNG holds
        photo = photo.convert("RGB")
    out = io.BytesIO()
    photo.save(out, "PNG", compress_level=1, exif=exif)
    return out.getvalue()


def _without_flags(detail: str) -> str:
    """Returns why a photo was rejected without the flags of pre-processing that would keep it."""
    detail = detail.replace(", or keep what can be decoded with --keep_damaged", "")
    return detail.replace("--max_pixels=", "the limit of ")


def _batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _in_order(
    pool: Executor, work: Callable[[_Item], _Result], items: Iterable[_Item], ahead: int
) -> Iterator[_Result]:
    """Yields what `work` makes of each item, in order, begun up to `ahead` items before."""
    pending: collections.deque[Future[_Result]] = collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()

"""The photos of an evaluated split, for pages: from its records, in their own shape."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from tfrecords import example, image, manifest, pages, reader, remote
from tfrecords.errors import UserError
from trainer import results, run_dir
from trainer.results import Evaluation

_SIDE, _QUALITY = 320, 78


class Photos:
    """The photos of an evaluation, by their position in the split.

    Attributes:
        missing: why there are none, as a sentence; empty if they are there.
    """

    def __init__(self, evaluation: Evaluation):
        """Opens the records, if they still are what was evaluated."""
        self.missing = ""
        self._judged = results.judged_of(evaluation)
        try:
            if not remote.is_here(evaluation.data):  # a page is not worth fetching a data set
                raise UserError(f"{evaluation.data} is remote, and was not needed otherwise.")
            info = manifest.read(remote.local(evaluation.data))
            found = run_dir.describe_data(evaluation.data, info).fingerprint
            if found != evaluation.fingerprint:
                raise UserError(f"{evaluation.data} holds another data set now.")
            self._records = reader.Records(evaluation.data, evaluation.split)
        except UserError as error:
            self.missing = f"No photos are shown. {error}"
            return
        self._options = image.ImageOptions(info.image.height, info.image.width, info.image.resize)

    def show(self, position: int, boxes: Sequence[pages.Box] = ()) -> pages.Photo:
        """Returns a photo and boxes on it, given as fractions of the photo."""
        picture = self._picture(position)
        return self._page_photo(position, picture, boxes)

    def show_judged(self, position: int) -> pages.Photo:
        """Returns a photo with the true and the predicted box of the evaluation."""
        judged = self._judged
        boxes = (
            pages.Box(self.fractions(position, judged.true_box[position]), "true"),
            pages.Box(self.fractions(position, judged.box[position]), "predicted"),
        )
        return self.show(position, [box for box in boxes if np.isfinite(box.sides).all()])

    def show_passes(
        self, position: int, crops: Sequence[Sequence[float]], boxes: Sequence[Sequence[float]]
    ) -> list[pages.Photo]:
        """Returns what each pass was shown: the part of the photo, the true and the found box.

        Args:
            position: of the photo.
            crops, boxes: of each pass, as fractions of the stored photo.
        """
        picture = self._picture(position)
        true = self.fractions(position, self._judged.true_box[position])
        shown = []
        for crop, box in zip(crops, boxes, strict=True):
            xmin, ymin, xmax, ymax = self._unstored(position, crop)
            sides = (
                round(xmin * picture.width),
                round(ymin * picture.height),
                max(round(xmax * picture.width), round(xmin * picture.width) + 1),
                max(round(ymax * picture.height), round(ymin * picture.height) + 1),
            )
            drawn = [
                pages.Box(_within(sides, picture.size, one), kind)
                for one, kind in ((true, "true"), (self._unstored(position, box), "predicted"))
                if np.isfinite(one).all()
            ]
            shown.append(self._page_photo(position, picture.crop(sides), drawn))
        return shown

    def fractions(self, position: int, box: np.ndarray) -> list[float]:
        """Returns a box in pixels of a photo as fractions of it."""
        width, height = self._judged.size[position]
        return [float(side) for side in box / (width, height, width, height)]

    def _page_photo(
        self, position: int, picture: Image.Image, boxes: Sequence[pages.Box]
    ) -> pages.Photo:
        source = pages.jpeg_uri(picture, _SIDE, _QUALITY)
        alt = f"photo of {self._judged.true_name[position]}"
        return pages.Photo(source, picture.width, picture.height, alt, boxes)

    def _picture(self, position: int) -> Image.Image:
        record = example.decode(self._records.read(np.array([position]))[0])
        height, width = record.original_height, record.original_width
        return image.restore(record.encoded, height, width, self._options)

    def _content(self, position: int) -> tuple[int, int, int, int]:
        width, height = self._judged.size[position]
        return image.content_size(int(height), int(width), self._options)

    def _unstored(self, position: int, box: Sequence[float]) -> list[float]:
        """Returns a box in fractions of the stored photo as fractions of the photo."""
        xmin, ymin, xmax, ymax = box
        content = self._content(position)
        return list(image.photo_box((xmin, ymin, xmax, ymax), content, self._options))


def _within(
    crop: tuple[int, int, int, int], size: tuple[int, int], box: Sequence[float]
) -> list[float]:
    """Returns a box in fractions of a picture as fractions of a part of it, in pixels."""
    sides = np.array(box) * (*size, *size)
    low, high = np.array(crop[:2] * 2), np.array(crop[2:] * 2)
    return [float(side) for side in np.clip((sides - low) / (high - low), 0, 1)]

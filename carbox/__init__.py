"""Names the object on photos and draws its box: the public surface of carbox.

    import carbox

    model = carbox.load("runs/cars")      # a run or an export
    found = model.predict("photo.jpg")    # or bytes, a PIL image, an array; or a list of these
    print(found.name, found.probability)
    print(found.box)                      # pixels of the photo as people see it

The work is done in three packages: `preprocess` (from CSVs and photos to records), `tfrecords` (the
records, and how a photo is decoded) and `trainer` (from records to a model, and its use). Importing
this one takes no time: TensorFlow is imported when a model is loaded.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfrecords.errors import UserError
    from trainer.predictor import Box, Model, Name, Photo, Prediction, Unreadable, load

    __version__: str

__all__ = [
    "Box",
    "Model",
    "Name",
    "Photo",
    "Prediction",
    "Unreadable",
    "UserError",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("carbox")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "tfrecords.errors" if name == "UserError" else "trainer.predictor"
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

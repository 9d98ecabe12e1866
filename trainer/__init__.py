"""From TFRecords to a model that names the object and draws its box."""

import contextlib
import os
import sys
import tempfile

from tfrecords.errors import extra
from tfrecords.quiet import quiet_imports

# A step allocates gigabytes and frees them again. glibc returns large blocks to the kernel each
# time and gets new, zeroed pages; TensorFlow's own pool keeps them. On two cores a training
# step is 2 to 3 times faster with it.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")


def _import_keras() -> None:
    """Imports TensorFlow and Keras with Keras's own defaults.

    Keras reads the user's `keras.json` and `KERAS_BACKEND` while it is imported, and some values
    stop it there. A run follows from data, config and seed only, so both are hidden from Keras.
    Downloaded weights stay where Keras keeps them.
    """
    os.environ.update(KERAS_BACKEND="tensorflow", KERAS_NNX_ENABLED="false")
    if "keras" not in sys.modules:
        own_home = os.environ.get("KERAS_HOME")
        with tempfile.TemporaryDirectory() as nothing:
            os.environ["KERAS_HOME"] = nothing
            try:
                import tensorflow  # noqa: F401
                from keras.src.backend import config as settings
            finally:
                del os.environ["KERAS_HOME"]
        if own_home is not None:
            os.environ["KERAS_HOME"] = own_home
        settings._KERAS_DIR = own_home or os.path.expanduser(os.path.join("~", ".keras"))
        with contextlib.suppress(OSError):  # Keras finds another place then
            os.makedirs(settings._KERAS_DIR, exist_ok=True)
    import keras

    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    keras.config.set_epsilon(1e-7)


with extra("train"), quiet_imports():
    _import_keras()

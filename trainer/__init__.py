"""From TFRecords to a model that names the object and draws its box."""

import os

from tfrecords.errors import extra
from tfrecords.quiet import quiet_imports

# A step allocates gigabytes and frees them again. glibc gives large blocks back to the kernel each
# time and pays for zeroed pages anew; TensorFlow's own pool keeps them. On two cores a training
# step is 2 to 3 times faster with it.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")

with extra("train"), quiet_imports():
    import tensorflow  # noqa: F401

"""From TFRecords to a model that names the object and draws its box."""

import os

# TensorFlow's start-up chatter says nothing that a user can act on; to be set before its import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# A step allocates gigabytes and frees them again. glibc gives large blocks back to the kernel each
# time and pays for zeroed pages anew; TensorFlow's own pool keeps them. On two cores a training
# step is 2 to 3 times faster with it.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")

"""The record format, the manifest and their reader: where `preprocess` and `trainer` meet."""

import os

# TensorFlow's start-up chatter says nothing that a user can act on; to be set before its import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

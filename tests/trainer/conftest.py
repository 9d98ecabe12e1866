import os

import pytest
import tensorflow as tf

from tests.tfrecords import datasets
from tfrecords import reader
from trainer import input as inputs
from trainer import strategy

# Logical devices must be set before TensorFlow touches any: two, for the two-replica tests.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

if strategy.gpus_of_machine() and not tf.config.list_physical_devices("GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are content with the CPU


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> str:
    """A data set of 22 + 5 + 7 records: no split can be shared evenly."""
    directory = str(tmp_path_factory.mktemp("data"))
    train = datasets.records(0, 22)
    splits = {
        "train": [train[:9], train[9:]],
        "validation": [datasets.records(30, 5)],
        "test": [datasets.records(40, 7)],
    }
    datasets.write(directory, splits)
    return directory


@pytest.fixture(scope="session")
def open_split(data):
    """Opens a split of it."""

    def open_it(name: str, cache: str = "none") -> inputs.Split:
        records = reader.Records(data, name)
        return inputs.open_split(records, datasets.HEIGHT, datasets.WIDTH, cache)

    return open_it


@pytest.fixture(scope="session")
def one_device() -> tf.distribute.Strategy:
    return tf.distribute.OneDeviceStrategy("/cpu:0")


@pytest.fixture(scope="session")
def two_replicas() -> tf.distribute.Strategy:
    """One for all tests: TensorFlow takes messages of two such strategies for the same ones."""
    return tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])

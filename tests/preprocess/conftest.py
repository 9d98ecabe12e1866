import pytest

from tests.preprocess import photo_sets


@pytest.fixture
def cars(tmp_path):
    """A small data set of photos."""
    return photo_sets.write(tmp_path / "cars")


@pytest.fixture
def output(tmp_path):
    """Where to publish."""
    return tmp_path / "out" / "cars"

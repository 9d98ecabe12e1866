"""The heads on MobileNetV2."""

import numpy as np
import pytest

from tests.tfrecords import datasets
from tfrecords.errors import UserError
from trainer import configs, model

SMALL = {"weights": "none", "model.alpha": 0.35, "model.filters": 8}


@pytest.mark.parametrize("head", ["pooled", "spatial", "soft_argmax"])
@pytest.mark.parametrize(("stride", "height", "width"), [(8, 40, 64), (16, 72, 100), (32, 256, 63)])
def test_every_head_names_and_boxes_photos_of_any_size(head, stride, height, width):
    settings = SMALL | {"model.head": head, "model.stride": stride}
    settings["model.box_stride"] = min(stride, 16)
    config = configs.replace(configs.load("default"), settings)
    built = model.build(config, height, width, datasets.CLASS_NAMES)
    photos = np.random.default_rng(0).integers(0, 256, (2, height, width, 3)).astype("float32")
    found = built(photos)
    assert found["logits"].shape == (2, len(datasets.CLASS_NAMES))
    assert found["bbox"].shape == (2, 4)
    assert 0 <= found["bbox"].numpy().min() <= found["bbox"].numpy().max() <= 1


@pytest.mark.parametrize("head", ["spatial", "soft_argmax"])
def test_the_box_can_be_read_from_finer_features_than_the_name(head):
    settings = SMALL | {"model.head": head, "model.stride": 32, "model.box_stride": 16}
    config = configs.replace(configs.load("default"), settings)
    built = model.build(config, 64, 96, datasets.CLASS_NAMES)
    assert built.get_layer("head_conv").input.shape[1:3] == (4, 6)
    assert built.get_layer("pool").input.shape[1:3] == (2, 3)


def test_the_baseline_normalizes_as_keras_does_and_the_default_faster():
    def momenta(name):
        config = configs.replace(configs.load(name), SMALL)
        built = model.build(config, 64, 64, datasets.CLASS_NAMES)
        normalizing = [layer for layer in built.get_layer("backbone").layers if "BN" in layer.name]
        return {layer.momentum for layer in normalizing}, built.get_layer("head_bn").momentum

    assert momenta("baseline") == ({0.999}, 0.99)
    assert momenta("default") == ({0.9}, 0.9)


def test_edges_need_two_cells_to_run_between():
    settings = SMALL | {"model.head": "soft_argmax", "model.box_stride": 32}
    config = configs.replace(configs.load("default"), settings)
    with pytest.raises(UserError, match="leaves 1x3 of these photos"):
        model.build(config, 32, 96, datasets.CLASS_NAMES)


@pytest.mark.parametrize(
    ("downscale", "remedy"), [(1, "--image_width."), (2, ", or set a smaller --config.downscale.")]
)
def test_photos_too_small_for_the_backbone_are_named_with_the_remedy(downscale, remedy):
    config = configs.replace(configs.load("default"), SMALL | {"downscale": downscale})
    with pytest.raises(UserError, match=rf"32x32 pixels, and these are 48x31 .*larger.*{remedy}$"):
        model.build(config, 48, 31, datasets.CLASS_NAMES)

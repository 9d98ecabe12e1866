"""The heads on MobileNetV2."""

import keras
import numpy as np
import pytest

from tests.tfrecords import datasets
from tfrecords.errors import UserError
from trainer import configs, model

SMALL = {"weights": "none", "model.alpha": 0.35, "model.filters": 8}


@pytest.mark.parametrize(
    ("head", "stride", "height", "width"),
    [
        pytest.param(head, *size, marks=[] if place == other else pytest.mark.slow)
        for place, head in enumerate(["pooled", "spatial", "soft_argmax"])
        for other, size in enumerate([(8, 40, 64), (16, 72, 100), (32, 256, 63)])
    ],
)
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
    settings = SMALL | {"model.head": head, "model.last_stride": 2, "model.box_stride": 16}
    config = configs.replace(configs.load("default"), settings)
    built = model.build(config, 64, 96, datasets.CLASS_NAMES)
    assert built.get_layer("head_conv").input.shape[1:3] == (4, 6)
    assert built.get_layer("pool").input.shape[1:3] == (2, 3)


def test_last_stride_1_leaves_the_cells_of_last_stride_2_and_those_between(tmp_path):
    def built(last_stride, weights):
        settings = SMALL | {"model.last_stride": last_stride, "weights": weights}
        config = configs.replace(configs.load("default"), settings)
        return model.build(config, 64, 96, datasets.CLASS_NAMES)

    def project(network):
        backbone = network.get_layer("backbone")
        return keras.Model(backbone.input, backbone.get_layer("block_13_project_BN").output)(photos)

    photos = np.random.default_rng(0).uniform(-1, 1, (2, 64, 96, 3)).astype("float32")
    pretrained = str(tmp_path / "pretrained.weights.h5")
    keras.applications.MobileNetV2((96, 96, 3), 0.35, include_top=False, weights=None).save_weights(
        pretrained
    )
    coarse, fine = built(2, pretrained), built(1, pretrained)
    assert coarse.get_layer("pool").input.shape[1:3] == (2, 3)
    assert fine.get_layer("pool").input.shape[1:3] == (4, 6)
    np.testing.assert_allclose(project(fine)[:, 1::2, 1::2], project(coarse), rtol=0, atol=1e-5)


def test_the_baseline_normalizes_as_keras_does_and_the_default_faster():
    def momenta(name):
        config = configs.replace(configs.load(name), SMALL)
        built = model.build(config, 64, 64, datasets.CLASS_NAMES)
        normalizing = [layer for layer in built.get_layer("backbone").layers if "BN" in layer.name]
        return {layer.momentum for layer in normalizing}, built.get_layer("head_bn").momentum

    assert momenta("baseline") == ({0.999}, 0.99)
    assert momenta("default") == ({0.9}, 0.9)


def test_edges_need_two_cells_to_run_between():
    settings = SMALL | {"model.last_stride": 2, "model.box_stride": 32}
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

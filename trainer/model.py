"""MobileNetV2 with two heads: what the object is, and where its box is.

Source: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
arXiv:1801.04381, as `keras.applications` has it.
"""

import os
from collections.abc import Sequence

import keras

from tfrecords.errors import UserError
from trainer.configs import Config, Model
from trainer.layers import FusedBatchNormalization, WordSharedClassifier, soft_argmax

_ALPHAS_WITH_WEIGHTS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)


def build(
    config: Config, height: int, width: int, class_names: Sequence[str], *, fresh: bool = True
) -> keras.Model:
    """Builds the model.

    Args:
        config: which model, and with which weights the backbone starts.
        height, width: of the photos, in pixels; also of the network's input, where the config does
            not choose another size.
        class_names: of the classes.
        fresh: load `config.weights`; not needed where the values are replaced afterwards.

    Returns:
        A model from `image`, [batch, height, width, 3], RGB, values in [0, 255], to `bbox`,
        float32 [batch, 4], (xmin, ymin, xmax, ymax) as fractions, and `logits`, float32
        [batch, classes]. The layer `backbone` is MobileNetV2 without its top.

    Raises:
        UserError: the weights cannot be loaded or do not fit, or the photos are too small.
    """
    height, width = config.model.input_height or height, config.model.input_width or width
    if min(height, width) < 32:
        raise UserError(
            f"MobileNetV2 needs photos of at least 32x32 pixels, and these are {height}x{width} as"
            f" decoded (downscale={config.downscale}): run preprocess.run with a larger"
            " --image_height and --image_width"
            f"{', or set a smaller --config.downscale' * (config.downscale > 1)}."
        )
    keras.utils.set_random_seed(config.seed)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    try:
        image = keras.Input((height, width, 3), name="image")
        pixels = keras.layers.Rescaling(1 / 127.5, offset=-1)(image)
        backbone = _backbone(config, tuple(pixels.shape[1:]), fresh)
        backbone = _cut(backbone, config.model)
        for_box, for_name = backbone(pixels)
        bbox, logits = _heads(config, for_box, for_name, class_names)
        model = keras.Model(image, {"bbox": bbox, "logits": logits}, name="carbox")
        _set_batch_norm([*model.layers, *backbone.layers], config)
        return model
    finally:
        keras.config.set_dtype_policy(policy)


def _backbone(config: Config, shape: tuple[int, int, int], fresh: bool) -> keras.Model:
    backbone = keras.applications.MobileNetV2(
        input_shape=shape,
        alpha=config.model.alpha,
        include_top=False,
        weights=None,
        name="backbone",
    )
    if fresh and config.weights == "imagenet":
        _load_imagenet(backbone, config.model.alpha)
    elif fresh and config.weights != "none":
        _load_file(backbone, config.weights)

    def changed(layer: keras.Layer) -> keras.Layer:
        kind, about = type(layer), layer.get_config()
        if kind is keras.layers.BatchNormalization:
            kind = FusedBatchNormalization
        if config.model.last_stride == 1 and layer.name == "block_13_pad":
            about["padding"] = ((1, 1), (1, 1))
        if config.model.last_stride == 1 and layer.name == "block_13_depthwise":
            about["strides"] = (1, 1)
        return kind.from_config(about)

    same = keras.models.clone_model(backbone, clone_function=changed)
    same.set_weights(backbone.get_weights())
    return same


def _cut(backbone: keras.Model, model: Model) -> keras.Model:
    """Returns the backbone up to the features that the box is read from, and those of the name."""
    features = {32: backbone.output} | {
        stride: backbone.get_layer(f"block_{block}_expand_relu").output
        for stride, block in {8: 6, 16: 13}.items()
    }
    box_stride = model.stride if model.head == "pooled" else model.box_stride
    return keras.Model(
        backbone.input, [features[box_stride], features[model.stride]], name="backbone"
    )


def _set_batch_norm(layers: list[keras.Layer], config: Config) -> None:
    for layer in layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            if config.model.batch_norm_momentum is not None:
                layer.momentum = config.model.batch_norm_momentum
            layer.synchronized = config.model.batch_norm == "synchronized"
            layer.trainable = config.model.batch_norm != "frozen"


def _load_imagenet(backbone: keras.Model, alpha: float) -> None:
    if alpha not in _ALPHAS_WITH_WEIGHTS:
        raise UserError(
            f"there are no ImageNet weights for model.alpha={alpha}, only for"
            f" {', '.join(map(str, _ALPHAS_WITH_WEIGHTS))}. Choose one, or --weights=none."
        )
    try:
        # Weights do not depend on the size of the photo; Keras warns about sizes other than 224.
        source = keras.applications.MobileNetV2((224, 224, 3), alpha, include_top=False)
    except Exception as error:
        raise UserError(
            "the ImageNet weights of MobileNetV2 could not be downloaded on this machine"
            f" ({_first_line(error)}). Fetch them where there is internet"
            " (keras.applications.MobileNetV2(include_top=False).save_weights('FILE.weights.h5'))"
            " and give --weights=FILE.weights.h5, or start from random weights: --weights=none."
        ) from None
    backbone.set_weights(source.get_weights())


def _load_file(backbone: keras.Model, path: str) -> None:
    if not os.path.isfile(path):
        raise UserError(f"--weights={path}: there is no such file (nor is it imagenet or none).")
    try:
        backbone.load_weights(path)
    except Exception as error:
        raise UserError(
            f"--weights={path} does not hold the weights of MobileNetV2 without top at this"
            f" model.alpha ({_first_line(error)}). A Keras file *.weights.h5 is expected."
        ) from None


def _heads(
    config: Config,
    for_box: keras.KerasTensor,
    for_name: keras.KerasTensor,
    class_names: Sequence[str],
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    layers = keras.layers
    common = _conv_block(for_box, config.model.filters, "head")
    # Pretrained features separate classes better than a few filters that start at random.
    told_by = common if config.model.head == "pooled" else for_name
    pooled = layers.GlobalAveragePooling2D(name="pool")(told_by)
    pooled = where = layers.Dropout(config.model.dropout, seed=config.seed, name="dropout")(pooled)
    if config.model.head == "soft_argmax":
        if min(common.shape[1:3]) < 2:
            raise UserError(
                "model.head=soft_argmax needs at least 2x2 cells, and"
                f" model.box_stride={config.model.box_stride} leaves"
                f" {common.shape[1]}x{common.shape[2]} of these photos. Use larger photos, a"
                " smaller stride, or another head."
            )
        bbox = soft_argmax(
            layers.Conv2D(4, 1, use_bias=False, dtype="float32", name="edges")(common)
        )
    else:
        if config.model.head == "spatial":
            cells = layers.Flatten(name="cells")(_conv_block(common, 64, "cell"))
            where = layers.Dense(128, activation="relu", name="edges")(cells)
        bbox = layers.Dense(4, activation="sigmoid", dtype="float32", name="bbox")(where)
    # Empty names share no words.
    known = class_names if config.model.word_shared_classifier else [""] * len(class_names)
    logits = WordSharedClassifier(known, dtype="float32", name="label")(pooled)
    return bbox, logits


def _conv_block(x: keras.KerasTensor, filters: int, name: str) -> keras.KerasTensor:
    x = keras.layers.Conv2D(filters, 1, name=f"{name}_conv")(x)
    x = FusedBatchNormalization(name=f"{name}_bn")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

"""The `.keras` file: the network in one pass, to be loaded where this project is not installed."""

import keras

FILE = "model.keras"


def write(network: keras.Model, path: str) -> None:
    """Writes the network as a Keras file.

    Args:
        network: from `plain.network`.
        path: of the file, which maps `image`, float32 [b, h, w, 3], RGB, values in [0, 255], to
            `bbox`, float32 [b, 4], fractions of the image, and `probabilities` [b, classes].
    """
    probabilities = keras.layers.Softmax(name="probabilities")(network.output["logits"])
    outputs = {"bbox": network.output["bbox"], "probabilities": probabilities}
    keras.Model(network.input, outputs, name="carbox").save(path)

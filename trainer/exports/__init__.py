"""A trained run as files for other programs: what is written, and how it is checked.

plain        the network with Keras's own layers only
photos       JPEG and PNG bytes to pixels, inside the graph of a SavedModel
saved_model, tflite, onnx, keras_file    one format each
quantized    the network with activations of 8 bits
runtimes     runs an exported file; it needs nothing of this project
verify       compares what a file says with what the run says
card         README.md and the other texts in the folder
"""

"""The record format, the manifest and their reader: where `preprocess` and `trainer` meet."""

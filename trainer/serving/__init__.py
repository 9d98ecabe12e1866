"""A model behind HTTP: what `trainer.serve` serves."""

"""The recipe for real photos; docs/results.md measures each of its choices.

    python -m trainer.task --strategy=mirrored --data=data/cars --epochs=5

Stanford Cars, 196 classes, test split, of data prepared with `--validation_fraction=0`; one run
each with seed 42, on one core of an Intel Xeon beside other work, no GPU:

| photos                                | size    | epochs | wall time | top-1  | mean IoU |
|---------------------------------------|---------|-------:|----------:|-------:|---------:|
| whole scenes, 4,665 for training      | 128x160 |      5 |    12 min | 64.6 % |    0.929 |
|                                       | 128x160 |     15 |    45 min | 74.1 % |    0.936 |
|                                       | 256x320 |      5 |    45 min | 76.5 % |    0.934 |
| cut to the car, 8,144 for training    | 128x160 |      5 |    19 min | 83.7 % |    0.948 |
|                                       | 256x320 |      5 |    90 min | 91.2 % |    0.953 |
"""

from trainer.configs.schema import Config


def get_config() -> Config:
    """Returns the config: the schema's defaults."""
    return Config()

"""The recipe for real photos; docs/results.md measures each of its choices.

    python -m trainer.task --strategy=mirrored --data=data/cars --epochs=5

Stanford Cars, 196 classes, test split, of data prepared with `--validation_fraction=0`; one run
each with seed 42, on CPU cores beside other work, no GPU. Rows with a star were measured with
`model.last_stride=2`, a weight decay of 0.05 and one margin of 0.1 in the zoom passes:

| photos                                | size    | epochs | wall time      | top-1    | mean IoU |
|---------------------------------------|---------|-------:|----------------|-------:|---------:|
| whole scenes, 4,665 for training      | 128x160 |      5 | 8 min, 2 cores | 69.6 %   |    0.932 |
|                                       | 128x160 |     15 | 43 min, 1 core | 79.3 %   |    0.940 |
|                                       | 256x320 |      5 | 45 min, 1 core | 76.5 % * |    0.934 |
| cut to the car, 8,144 for training    | 128x160 |      5 | 17 min, 2 cores| 88.3 %   |    0.949 |
|                                       | 256x320 |      5 | 90 min, 1 core | 91.2 % * |    0.953 |
"""

from trainer.configs.schema import Config


def get_config() -> Config:
    """Returns the config: the schema's defaults."""
    return Config()

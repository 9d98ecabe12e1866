"""Exactly the notebook's model and recipe, to compare with.

    python -m trainer.task --strategy=mirrored --data=data/cars --config=baseline

Stanford Cars, test split, 196 classes, 128x160, 5 epochs, one run each on one core of an Intel
Xeon, no GPU: whole scenes, 4,665 photos for training, 12 min with the test: 1.6 % top-1 and 0.660
mean IoU; cut to the car, 8,144 for training, 17 min: 4.8 % and 0.902.

At 256x320 the notebook reports 14.1 % and 0.7713 after 5 epochs, 68.4 % and 0.8542 after 100.
"""

from trainer.configs.schema import Augment, Config, Inference, Loss, Model, Optimizer


def get_config() -> Config:
    """Returns the config."""
    return Config(
        epochs=5,
        batch_size=64,
        shuffle=False,
        model=Model(
            last_stride=2,
            head="pooled",
            dropout=0.5,
            batch_norm_momentum=None,
            word_shared_classifier=False,
        ),
        augment=Augment(flip=False, context_crop=0.0, object_crop=0.0, color_jitter=0.0),
        loss=Loss(box="squared_error", box_reduction="sum", label_smoothing=0.0),
        optimizer=Optimizer(
            learning_rate=1e-4, schedule="constant", warmup_epochs=0.0, weight_decay=0.0
        ),
        inference=Inference(zoom_passes=0, flip_tta=False),
    )

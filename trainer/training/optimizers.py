"""Optimizers and learning-rate schedules."""

from __future__ import annotations

from typing import Any

import keras

from trainer.options import TrainOptions


def build_optimizer(
    options: TrainOptions, trainable: list[Any], steps: int, per_epoch: int, policy: str
) -> Any:
    """Makes and builds the optimizer of `steps` steps, `per_epoch` of them an epoch.

    Under the dtype policy `mixed_float16` the loss is scaled: most gradients would else be too
    small for float16 (Micikevicius et al., arXiv:1710.03740, 3.2).
    """
    # Names of their own: Keras would number those that it makes, and checkpoints go by names.
    common = {
        "name": "optimizer",
        "learning_rate": build_schedule(options, steps, per_epoch),
        "weight_decay": options.weight_decay,
        "global_clipnorm": options.clip_norm or None,
        "gradient_accumulation_steps": options.accumulate if options.accumulate > 1 else None,
    }
    if options.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(**common)
    else:
        optimizer = keras.optimizers.SGD(momentum=0.9, nesterov=True, **common)
    # Decaying a norm's scale or a bias only shrinks what the network can express.
    spared = [each for each in trainable if len(each.shape) < 2]
    optimizer.exclude_from_weight_decay(var_list=spared)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
    optimizer.build(trainable)
    return optimizer


def build_schedule(options: TrainOptions, steps: int, per_epoch: int) -> Any:
    """The learning rate by step: linear warm-up, then a cosine to 0, or constant.

    Keras counts every step here, those that only accumulate gradients too.
    """
    warmup = min(round(options.warmup_epochs * per_epoch), steps - 1)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else options.learning_rate,
        decay_steps=steps - warmup,
        # A cosine from the learning rate down to itself is a constant.
        alpha=1.0 if options.schedule == "constant" else 0.0,
        warmup_target=options.learning_rate if warmup else None,
        warmup_steps=warmup,
    )


def learning_rate(optimizer: Any) -> float:
    """The learning rate of the next step."""
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))

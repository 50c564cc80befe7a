"""The head alone, then all of the network: what `fit` trains, and with which optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from trainer.networks.model import Classifier
from trainer.runs.job import Job
from trainer.training.feeds import Feed
from trainer.training.losses import WeightedBinaryCrossentropy
from trainer.training.optimizers import build_optimizer


def compile_phase(job: Job, feed: Feed, classifier: Classifier, frozen: bool, xla: bool) -> Any:
    """Makes the model that `fit` trains: the head alone, or all of it.

    Each phase has an optimizer of its own: moments gathered by the head alone say nothing
    of the backbone. A frozen backbone's batch normalization uses its stored statistics.
    """
    options = job.options
    classifier.backbone.trainable = not frozen
    if not frozen and options.batch_norm == "frozen":
        for norm in batch_norms(classifier.backbone):
            norm.trainable = False
    for each in (classifier.model, classifier.core):
        each.jit_compile = xla
        # JAX's function is for the variables that were trainable when it was made.
        each.make_predict_function(force=True)
    model = feed.network(classifier)
    settle_statistics(classifier.backbone, options.epochs * job.steps)
    epochs = options.freeze_epochs if frozen else options.epochs - options.freeze_epochs
    optimizer = build_optimizer(
        options,
        model.trainable_variables,
        epochs * job.steps,
        job.steps,
        classifier.core.dtype_policy.name,
    )
    model.compile(
        optimizer=optimizer,
        loss=WeightedBinaryCrossentropy(job.weights, options.label_smoothing, job.rates),
        jit_compile=xla,
        steps_per_execution=options.steps_per_execution,
    )
    return model


def settle_statistics(backbone: Any, steps: int) -> None:
    """Lets batch normalization's running statistics arrive within a short run.

    At the usual momentum of 0.99 a run of 60 steps would be validated with statistics that
    are half their initial values. A run of 1,000 steps or more keeps the network's own.
    """
    for norm in batch_norms(backbone):
        norm.momentum = min(norm.momentum, max(1 - 10 / steps, 0.8))


def batch_norms(network: Any) -> Iterator[Any]:
    """The batch normalizations of a network and of the networks in it."""
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            yield layer
        elif isinstance(layer, keras.Model):
            yield from batch_norms(layer)

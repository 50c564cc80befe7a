"""End to end: a slice network and a scan model as one network, trained on crops of scans.

    samples ─ images ─ [windows] ─ augment ─ backbone, in parts ─ pool ─┬─ features ─ scan model
    [B, T, ...]        alike within a crop                              └─ head ─ logits ─┘

Samples come from the caches. The backbone computes as in prediction, so that batch normalization
keeps its statistics: those of a batch would be of a few scans, with similar slices and padding.
Hence parts of a batch can be computed, and computed again for their gradients, one by one.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from trainer.data.damage import damage_reported
from trainer.networks.image_layers import ImageLayer
from trainer.networks.saved_models import load_classifier
from trainer.networks.scan_model import (
    as_half,
    build_scan_model,
    load_scan_model,
    place_inputs,
    resized_features,
)
from trainer.options import TrainOptions
from trainer.runs.scan_setup import ScanSetup
from trainer.runs.training_setup import TrainingSetup
from trainer.training.feeds import Cached, cached_examples, open_feed
from trainer.training.scan_crops import ImageBatches
from trainer.training.scan_features import ScanFeatures, ScanSlices


class Joined:
    """Both networks as one, and their input.

    Attributes:
        model: samples [B, T, ...] and `place_inputs` → slices [B, T, L] and scan [B, L], logits.
        classifier: the slice network.
        scan_model: the scan model.
        batches: of an epoch.
    """

    def __init__(self, setup: ScanSetup) -> None:
        options, start, labels = setup.options, setup.slices, len(setup.shards.labels)
        with damage_reported(setup.shards, (*setup.training, setup.validation)):
            feed = open_feed(training_setup(setup))
        assert isinstance(feed, Cached)  # `--cache none` is no choice
        self.feed, self.setup = feed, setup
        xla = start.record.options.get("xla", "auto")
        image, slices = setup.shards.image, start.neighbors.slices
        self.classifier = load_classifier(start.model, xla, image, labels, slices)
        core = self.classifier.get_layer("core")
        if start.record.scans:
            self.scan_model = load_scan_model(start.scan_model, labels)
        else:
            size = core.get_layer("pool").output.shape[-1]
            self.scan_model = build_scan_model(
                options.kind, size, labels, options.units, options.dropout
            )
        self.features = resized_features(core)
        self.features.jit_compile = self.classifier.jit_compile
        self.model = join(feed, core, self.scan_model, options.crop, options.slices_at_once)
        scans = cached_examples(feed.cached, feed.setup, setup.training).scans()
        self.batches = ImageBatches(
            ScanSlices(feed.cached.labels[scans.order].astype(np.int64), scans.in_order),
            scans.order,
            feed.fetch,
            options.crop,
            options.scans_a_step,
            options.seed,
        )
        self.validated = cached_examples(feed.validation, feed.setup, (setup.validation,)).scans()

    def validate(self) -> ScanFeatures:
        """Return features of the validation split by the network as it is."""
        feed, scans = self.feed, self.validated
        outputs = feed.predict_cached(self.features)[scans.order]
        labels = feed.validation.labels[scans.order].astype(np.int64)
        size = labels.shape[1]
        return ScanFeatures(labels, scans.in_order, outputs[:, :size], as_half(outputs[:, size:]))


def training_setup(setup: ScanSetup) -> TrainingSetup:
    """Return the setup of the slice network's training, with the caches of this one."""
    options, start = setup.options, setup.slices
    known = {
        name: value for name, value in start.record.options if name in TrainOptions.model_fields
    }
    changes = {
        "shards": setup.shards.location,
        "run": setup.run.path,
        "cache": options.cache,
        "cache_dir": options.cache_dir,
        "batch_size": options.batch_size,
    }
    return TrainingSetup(
        options=TrainOptions(**known | changes),
        shards=setup.shards,
        training=setup.training,
        validation=setup.validation,
        weights=setup.weights,
        run=setup.run,
        display=setup.display,
    )


def join(feed: Cached, core: Any, scan_model: Any, crop: int, at_once: int) -> Any:
    """Return the core of a classifier and a scan model as one model.

    Args:
        feed: gives the samples.
        core: from `build_classifier`.
        scan_model: from `build_scan_model`.
        crop: slices of a crop, T.
        at_once: slices whose activations are kept at once; 0: all.
    """
    samples, inputs = feed.input(crop), place_inputs(crop)
    images = feed.images(ops.reshape(samples, (-1, *samples.shape[2:])))
    for layer in core.layers:
        if isinstance(layer, ImageLayer):
            layer.alike = crop
    changed = keras.Model(core.input, core.get_layer("augment").output, name="changes")(images)
    pooled = core.get_layer("pool")
    body = keras.Model(core.get_layer("normalize").input, pooled.output, name="body")
    features = InParts(body, at_once, name="parts")(changed)
    logits = core.get_layer("head")(core.get_layer("dropout")(features))
    inputs |= {
        name: ops.reshape(ops.cast(one, "float32"), (-1, crop, one.shape[-1]))
        for name, one in (("features", features), ("logits", logits))
    }
    outputs = scan_model(inputs)
    given = {name: one for name, one in inputs.items() if name not in ("features", "logits")}
    return keras.Model({**given, "samples": samples}, outputs, name="joined")


class InParts(layers.Layer):  # type: ignore[misc,unused-ignore]
    """A network as in prediction, part by part of the batch, whose activations are not kept.

    Activations of a part are computed again when its gradients are (Chen et al.,
    arXiv:1604.06174): a batch needs the memory of a part, and a third more time. Parts share
    nothing, since nothing in the network draws or averages over a batch.

    Args:
        network: images [N, ...] → features [N, D].
        at_once: images of a part; 0: all, with their activations.
    """

    def __init__(self, network: Any, at_once: int, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.network, self.at_once = network, at_once

    def call(self, images: Any) -> Any:
        """Return the features."""

        def compute(part: Any) -> Any:
            return self.network(part, training=False)

        if not self.at_once:
            return ops.cast(compute(images), "float32")
        parts = [images[i : i + self.at_once] for i in range(0, images.shape[0], self.at_once)]
        features = [keras.remat(compute)(part) for part in parts]
        return ops.cast(ops.concatenate(features), "float32")

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return [N, D]."""
        return (input_shape[0], self.network.output_shape[-1])

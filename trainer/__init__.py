"""Train and apply networks on the images of a shard directory.

Python functions; `python -m trainer` is the command line of the same functions:

    import trainer

    shards = trainer.open_shards("out/shards")                  # or gs://..., s3://...
    for images, labels in trainer.batches(shards, ["fold1"], 32, seed=0).as_numpy_iterator():
        ...                                                     # NumPy arrays, also for JAX

    trainer.train_run(shards="out/shards", run="out/run", model="smallresnet", weights="none")
    run = trainer.load_run("out/run")
    probabilities = run.predict(images)                         # [N, L]
    table = run.predict_split(shards, "fold0")                  # a pandas table
    table, rejects = run.predict_dicom("/data/new-scans")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.api import (
        TrainedModel,
        batches,
        build_model,
        evaluate_run,
        examples,
        load_run,
        open_shards,
        predict_run,
        train_run,
    )

__all__ = [
    "TrainedModel",
    "batches",
    "build_model",
    "evaluate_run",
    "examples",
    "load_run",
    "open_shards",
    "predict_run",
    "train_run",
]


def __getattr__(name: str) -> Any:
    """Import a name on first use: TensorFlow takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    from trainer import api

    return getattr(api, name)

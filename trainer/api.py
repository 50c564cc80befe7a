"""The Python API of `import trainer`; examples are in the docstring of `trainer`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from headct.errors import UsageError
from headct.json_documents import read_json
from headct.layout import LABEL, UNLABELED_SPLIT
from headct.manifest import ImageSpec
from trainer.command_line import run_command
from trainer.data.dicom import converted, pipeline_flags
from trainer.data.sampling import Order
from trainer.data.shard_source import find_shards
from trainer.data.shards import ShardDirectory, Split
from trainer.display import Display
from trainer.native_log import load_libraries
from trainer.options import EvaluateOptions, PredictOptions, ShardAccess, TrainOptions
from trainer.runs.ensemble import Ensemble, open_runs
from trainer.runs.run import Calibration, Run, choose_calibration
from trainer.runs.smoothing import NO_SMOOTHING, Smoothing, choose_smoothing
from trainer.runs.training_setup import continue_from


def open_shards(location: str | Path, splits: Sequence[str] = (), **access: Any) -> ShardDirectory:
    """Open a shard directory; copy remote files to this machine.

    Args:
        location: path or URL.
        splits: required splits; empty: all.
        access: fields of `options.ShardAccess`, such as `shard_cache`.

    Raises:
        UsageError: not a shard directory, or a file contradicts its manifest.
        StorageError: the store fails, or denies access.
    """
    source = find_shards(location, ShardAccess(**access), Display())
    shards = source.open()
    source.provide(shards, tuple(map(shards.split, splits)) or shards.splits)
    return shards


def batches(
    shards: ShardDirectory,
    splits: Sequence[str],
    batch_size: int,
    *,
    seed: int,
    epoch: int = 0,
    shuffle_buffer: int = 2048,
) -> Any:
    """Return the shuffled batches of an epoch; examples that fill no batch are left out.

    Args:
        shards: from `open_shards`.
        splits: such as ["fold1", "fold2"].
        batch_size: images per batch.
        seed: seed of the order.
        epoch: the same seed and epoch give the same batches.
        shuffle_buffer: size of the shuffle buffer, records.

    Returns:
        tf.data.Dataset of (images uint8 or uint16 [B, H, W, C], labels float32 [B, L]); for NumPy
        and JAX, its `as_numpy_iterator()`.
    """
    load_libraries()
    from trainer.data.input_pipeline import training_batches

    chosen = tuple(map(shards.split, splits))
    return training_batches(shards, chosen, batch_size, Order(seed, epoch), shuffle_buffer)


def examples(
    shards: ShardDirectory, split: str, batch_size: int = 32
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield every example of a split once, its shards interleaved.

    Yields:
        image uint8 or uint16 [b, H, W, C], label int64 [b, L] (-1: unlabeled), position_z float32
        [b] (mm), and image_id, patient_id, study_id, series_id [b] as bytes; b is the batch size,
        or fewer in the last batch.

    Raises:
        UsageError: a record is damaged.
    """
    load_libraries()
    from trainer.data.damage import damage_reported
    from trainer.data.input_pipeline import evaluation_batches

    chosen = shards.split(split)
    found = evaluation_batches(shards, chosen, batch_size)
    with damage_reported(shards, (chosen,)):
        for batch in found.as_numpy_iterator():
            yield {name: values[: len(batch[LABEL])] for name, values in batch.items()}


def build_model(shards: ShardDirectory, fold: int = 0, **options: Any) -> Any:
    """Build the network that `train_run` starts with.

    All random numbers are seeded with `seed`, by default 0 (`keras.utils.set_random_seed`).

    Args:
        shards: from `open_shards`.
        fold: validation fold; the network predicts the prevalence in the other folds.
        options: fields of `options.TrainOptions`, such as `model` (see `train_run`), `weights`,
            `image_size` and `seed`.

    Returns:
        keras.Model: stored images [B, H, W, C] → logits float32 [B, L].

    Raises:
        UsageError: an option is out of range, or the weights cannot be loaded.
    """
    options, builder = _split_builder(options)
    given = TrainOptions(shards=shards.location, run=Path("unused"), fold=fold, **options)
    given, origin = continue_from(given, shards)
    load_libraries(given.backend)
    from keras.utils import set_random_seed

    from trainer.networks.hardware import choose_precision, compute_capability
    from trainer.networks.model import build_classifier
    from trainer.networks.saved_models import copy_saved_weights

    policy = choose_precision(given.precision, compute_capability())
    prevalence = shards.prevalence(fold)
    set_random_seed(given.seed)
    classifier = build_classifier(given, shards.image, prevalence, policy, builder)
    if origin is not None:
        copy_saved_weights(Run(Path(origin.run)).model, classifier.core)
    return classifier.model


def train_run(**options: Any) -> dict[str, Any]:
    """Train like `python -m trainer train`, or resume an incomplete run.

    Keras's global state is reset (`keras.utils.clear_session`), and all random numbers are seeded
    (`keras.utils.set_random_seed`).

    Args:
        options: fields of `options.TrainOptions`; `shards` and `run` are required. `model` may
            also be a function that makes a backbone: (S, S, C) → keras.Model from float32
            [B, S, S, C], -1 to 1, to features [B, h, w, D] or [B, D]. Pooling, dropout and the
            head follow. run.json records the function's name; resume with the same function.

    Returns:
        The content of metrics.json.

    Raises:
        HeadctError: see `headct.errors`.
    """
    options, builder = _split_builder(options)
    given = TrainOptions(**options)
    run_command(given, builder)
    metrics: dict[str, Any] = read_json(Run(given.run).metrics)
    return metrics


def _split_builder(
    options: dict[str, Any],
) -> tuple[dict[str, Any], Callable[..., Any] | None]:
    """Replace a function in `model` by its name; return the options and the function.

    Raises:
        UsageError: the function has no name.
    """
    builder = options.get("model")
    if not callable(builder):
        return options, None
    names = [getattr(builder, each, "") for each in ("__module__", "__qualname__")]
    if not all(names):
        raise UsageError(f"model={builder!r}: want a named function; the run records its name")
    return {"weights": "none", **options, "model": ".".join(names)}, builder


def evaluate_run(**options: Any) -> None:
    """Evaluate a run like `python -m trainer evaluate`.

    Args:
        options: fields of `options.EvaluateOptions`; `run` is required.

    Raises:
        HeadctError: see `headct.errors`.
    """
    run_command(EvaluateOptions(**options))


def predict_run(**options: Any) -> None:
    """Predict like `python -m trainer predict`; `options` are fields of `options.PredictOptions`.

        trainer.predict_run(run="out/run", input="/data/new-scans", output="predictions")

    Raises:
        HeadctError: see `headct.errors`.
    """
    run_command(PredictOptions(**options))


def load_run(
    run: str | Path | Sequence[str | Path],
    temperature: bool = False,
    smooth_z: bool = False,
    ensemble_mean: Literal["logits", "probabilities"] | None = None,
) -> TrainedModel:
    """Load the best model of a run, or those of several runs as one.

    Args:
        run: run directory; several, whose answers are averaged; or the folder of a cross-validation
            or an ensemble.
        temperature: whether to apply the calibration of the run or the ensemble to the logits.
        smooth_z: whether to smooth the logits along z; the model then predicts scans, not images.
        ensemble_mean: as in `options.PredictOptions`.

    Raises:
        UsageError: there is no such run, no model yet, or no such calibration or smoothing; runs do
            not fit each other.
    """
    paths = [run] if isinstance(run, str | Path) else run
    kept = {"temperature": temperature, "smooth_z": smooth_z}
    directory = open_runs([*map(Path, paths)], ensemble_mean, kept=kept)
    record, labels = directory.record, directory.labels
    directory.check_model()
    calibration = choose_calibration(directory, labels, temperature)
    smoothing = choose_smoothing(directory.smoothing, smooth_z)
    calibration.check_smoothing(smoothing)
    load_libraries()
    from trainer.evaluation.predict import load_networks

    image, runs = record.shards.image, directory.networks
    xla = [each.record.options.get("xla", "auto") for each in runs]
    networks = load_networks(runs, xla, image, len(labels))
    return TrainedModel(directory, labels, image, calibration, networks, smoothing)


@dataclass(frozen=True)
class TrainedModel:
    """The best model of a run, with its labels and input format.

    Attributes:
        run: run directory.
        labels: names of the L labels.
        image: height, width, channels and dtype of the stored images.
        calibration: calibration of the logits.
        networks: keras.Model of each run, stored images [B, H, W, C] → logits float32 [B, L]; of a
            run with `neighbors` K, C is (2 K + 1) times that of `image`: from bottom to top. Of a
            run of `train_scans`, a ScanNetwork.
        smoothing: smoothing of the logits along z.
    """

    run: Run
    labels: tuple[str, ...]
    image: ImageSpec
    calibration: Calibration
    networks: list[Any]
    smoothing: Smoothing = NO_SMOOTHING

    @property
    def network(self) -> Any:
        """The first network: the only one, but of an ensemble."""
        return self.networks[0]

    def predict(self, images: npt.NDArray[Any], batch_size: int = 32) -> npt.NDArray[np.float64]:
        """Return the probability of every label, [N, L].

        Args:
            images: stored images as `network` takes them, [N, H, W, C] of `image.dtype`.
            batch_size: images per step.

        Raises:
            UsageError: the images have another shape or dtype, or the logits are to be smoothed.
        """
        from trainer.evaluation.metrics import probabilities
        from trainer.evaluation.pooling import pool
        from trainer.evaluation.predict import pool_runs
        from trainer.evaluation.predict_models import predict_batch

        if any(each.record.scans for each in self.run.networks):
            raise UsageError(
                f"{self.run.path}: a scan model takes whole scans; want predict_split or"
                " predict_dicom"
            )
        if self.smoothing.changes:
            raise UsageError(
                "smooth_z: images alone have no place along z; want predict_split or predict_dicom"
            )

        if len(seen := {run.neighbors for run in self.run.networks}) > 1:
            raise UsageError(
                "the runs see different neighbors of a slice; want predict_split or predict_dicom"
            )
        channels = self.image.channels * seen.pop().slices
        expected = (self.image.height, self.image.width, channels)
        if images.shape[1:] != expected or images.dtype != self.image.dtype:
            wanted = ", ".join(map(str, expected))
            raise UsageError(
                f"images of shape {list(images.shape)} and type {images.dtype}: must be of shape"
                f" [N, {wanted}] and type {self.image.dtype}"
            )
        parts = np.split(images, range(batch_size, len(images), batch_size))
        by_network = [
            np.concatenate([predict_batch(network, part, flip=False) for part in parts])
            for network in self.networks
        ]
        logits: npt.NDArray[Any] = by_network[0]
        if isinstance(self.run, Ensemble):
            of_runs = np.stack(by_network)
            members = pool_runs(self.run, of_runs, np.ones(of_runs.shape[:2], np.bool_))
            logits = pool(members, self.run.ensemble.mean, np.array(self.run.shares))
        return probabilities(self.calibration.apply(logits))

    def predict_split(
        self, shards: ShardDirectory, split: str, batch_size: int = 32
    ) -> pd.DataFrame:
        """Return one row per example: ids, split, position_z, probability_<label>, label_<label>.

        A run of a cross-validation does not answer for patients that it was trained on.

        Raises:
            UsageError: the shards do not fit the run, or a shard is damaged.
        """
        from trainer.evaluation.predict import predict_ensemble
        from trainer.evaluation.predict_models import Predictions, predict_models

        self.run.check_fit(shards)

        def predict_by(runs: Sequence[Run], part: Split) -> list[Predictions]:
            networks = [self.networks[self.run.networks.index(run)] for run in runs]
            seen = [run.neighbors for run in runs]
            return predict_models(networks, shards, part, self.labels, batch_size, neighbors=seen)

        chosen = shards.split(split)
        if isinstance(self.run, Ensemble):
            found = predict_ensemble(self.run, shards, chosen, predict_by, reuse=False)
        else:
            (found,) = predict_by(self.run.networks, chosen)
        return found.smoothed(self.smoothing).frame(self.calibration)

    def predict_dicom(
        self, source: str | Path, batch_size: int = 32
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Convert DICOM files like the training data, and predict them.

        Args:
            source: folder, file, pattern or URL, like INPUT of `make preprocess`.
            batch_size: images per step.

        Returns:
            One row per slice, like `predict_split`; and one row per rejected file: source,
            image_id, reason, detail.

        Raises:
            UsageError: no file could be converted.
        """
        trained = self.run.record.shards
        flags = pipeline_flags([asdict(each) for each in trained.windows], trained.preprocessing)
        with converted(str(source), flags) as (output, rejects):
            shards = open_shards(output, [UNLABELED_SPLIT])
            return self.predict_split(shards, UNLABELED_SPLIT, batch_size), rejects

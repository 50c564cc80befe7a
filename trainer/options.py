"""The options of each command: frozen, and checked when they are made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from headct.declarations import (
    Declared,
    DefaultText,
    LocalPath,
    LocalPaths,
    Location,
    Mark,
    flags,
    quoted,
)
from headct.layout import UNLABELED_SPLIT
from trainer.option_values import (
    DEFAULT_WEIGHTS,
    DEFAULT_WINDOWS,
    FORMATS,
    checked_by,
    parse_formats,
    parse_trackers,
    parse_weights,
    parse_windows,
)

MOST_NEIGHBORS = 10


class ShardAccess(Declared):
    """How shards in a bucket are read."""

    shard_cache: Annotated[
        Location, Mark.UNRECORDED, DefaultText("headct-shards in the user's cache directory")
    ] = ""
    """folder that shards in a bucket are copied to, once"""
    shard_cache_gb: Annotated[float, Field(ge=0), Mark.UNRECORDED] = 0.0
    """GB that this folder may take. 0: all that is free on its disk"""
    storage_patience: Annotated[float, Field(gt=0), Mark.UNRECORDED] = 600.0
    """seconds after which a request to a bucket that fails is given up"""


class _Backend(Declared):
    """What computes."""

    backend: Annotated[
        Literal["tensorflow", "jax"], DefaultText("KERAS_BACKEND in the environment, or tensorflow")
    ] = "tensorflow"
    """what Keras computes with"""

    @model_validator(mode="before")
    @classmethod
    def _follow_environment(cls, values: Any) -> Any:
        backend = os.environ.get("KERAS_BACKEND")
        return {"backend": backend} | values if backend else values


class Batches(_Backend):
    """What computes how much at once."""

    batch_size: Annotated[int, Field(ge=1)] = 32
    """images a step"""


class _NewShards(Declared):
    """Shards that have to be named."""

    shards: Annotated[Location, Mark.UNRECORDED]
    """shard directory, as beam_pipeline writes it: a path or URL (s3://, gs://, az://)"""


class _ShardsOfRun(Declared):
    """Shards that a run knows."""

    shards: Annotated[Location, Mark.NEVER_EMPTY, DefaultText("the one the run was trained on")] = (
        ""
    )
    """shard directory, a path or URL"""


class _Answers(Declared):
    """How a trained network is computed."""

    xla: Literal["run", "auto", "on", "off"] = "run"
    """compile with XLA; run: as in training"""


class _Calibrated(Declared):
    """What is made of a trained model's logits."""

    temperature: bool = False
    """calibrate by the temperatures and biases kept in the run"""


class TrainOptions(_NewShards, Batches, ShardAccess):
    """Everything that a training run depends on."""

    run: Annotated[LocalPath, LocalPaths, Mark.UNRECORDED]
    """run directory: made, or resumed where it stopped"""
    fold: Annotated[int, Field(ge=0)] = 0
    """fold to validate on; training is on all other labeled folds"""
    batch_size: Annotated[
        int, Field(ge=1), DefaultText("32, or more on a GPU: what its memory holds, at most 256")
    ] = 32
    """images a step"""

    model: str = "resnet50"
    """backbone, by its keras.applications name in lower case, or timm's name of a ResNeXt"""
    continue_from: Annotated[Location, Mark.UNRECORDED, DefaultText("a new network")] = ""
    """run directory whose whole best model, head and all, this new run starts from; model,
    image_size, crop_head, windows and neighbors are that run's"""
    weights: Location = "imagenet"
    """imagenet, none, or a weights file of the backbone: Keras's, or timm's .safetensors of a
    ResNeXt"""
    image_size: Annotated[int, Field(ge=1)] = 224
    """side of the square image that the backbone sees, in pixels"""
    crop_head: bool = False
    """crop each image to the square around the head, before it is resized"""
    neighbors: Annotated[int, Field(ge=0, le=MOST_NEIGHBORS)] = 0
    """slices below and above in the scan that the network sees with each slice, as channels (2.5D);
    needs --cache"""
    neighbors_mm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """distance in mm from one of these slices to the next, as near as the scan has them; 0: the
    next ones, at any distance"""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """dropout before the head"""
    augment: Annotated[float, Field(ge=0)] = 1.0
    """strength of augmentation; 0 turns it off"""
    windows: Annotated[
        str, checked_by(parse_windows), DefaultText(",".join(each.name for each in DEFAULT_WINDOWS))
    ] = ""
    """for shards in Hounsfield units: name:center:width,..."""
    window_jitter: Annotated[float, Field(ge=0)] = 0.0
    """shift and stretch each window by up to this fraction of its width while training"""
    mixup: Annotated[float, Field(ge=0, le=10)] = 0.0
    """mix pairs of training images and their labels, in a share from Beta(mixup, mixup); 0 turns it
    off"""

    epochs: Annotated[int, Field(ge=1)] = 10
    """epochs, at most"""
    patience: Annotated[int, Field(ge=0)] = 0
    """stop after this many epochs without a better loss; 0 never stops, so that a cosine, which
    learns most while its rate falls, runs to its end"""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """steps whose gradients make one update"""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """optimizer"""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """highest learning rate"""
    schedule: Literal["cosine", "constant"] = "cosine"
    """learning rate after the warm-up"""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.5
    """epochs over which the learning rate rises from 0"""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """decoupled weight decay; spares norms and biases"""
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    """largest norm of all gradients together; 0 turns it off"""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """momentum of averaged weights, 0.999 for instance; 0 turns it off"""
    swa_epochs: Annotated[int, Field(ge=0)] = 0
    """last epochs whose weights are averaged (stochastic weight averaging); 0 turns it off"""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """label smoothing"""
    label_weights: Annotated[str, checked_by(parse_weights)] = DEFAULT_WEIGHTS
    """weights of labels in the loss, name=weight,... (with a comma: "a, b=2"); others 1"""
    sampling: Literal["natural", "balanced"] = "natural"
    """examples of an epoch, as they are or label-balanced"""
    freeze_epochs: Annotated[int, Field(ge=0)] = 0
    """first epochs that train the head alone; fewer than --epochs"""
    batch_norm: Literal["train", "frozen"] = "train"
    """batch normalization of an unfrozen backbone: its statistics"""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """arithmetic; auto goes by the hardware"""
    xla: Literal["auto", "on", "off"] = "auto"
    """compile with XLA; auto: where there is a GPU"""
    steps_per_execution: Annotated[int, Field(ge=1)] = 1
    """steps a call of the compiled function"""
    cache: Literal["none", "ram", "disk", "device"] = "none"
    """where decoded, resized images are kept between epochs"""
    cache_dir: Annotated[Location, Mark.UNRECORDED, DefaultText("the run directory")] = ""
    """folder of --cache disk"""
    shuffle_buffer: Annotated[int, Field(ge=1)] = 2048
    """records that the shuffle chooses from"""
    # Layers add up to 4 to it, and NumPy and Keras take 32 bits.
    seed: Annotated[int, Field(ge=0, le=2**32 - 5)] = 0
    """seed of weights, order and augmentation"""
    deterministic: bool = False
    """bit-exact operations, slower on a GPU"""
    report: Annotated[bool, Mark.UNRECORDED] = True
    """write report.html at the end"""
    track: Annotated[str, checked_by(parse_trackers), Mark.UNRECORDED] = ""
    """experiment trackers besides TensorBoard, separated by commas: mlflow, wandb"""
    track_files: Annotated[bool, Mark.UNRECORDED] = False
    """also send report.html, which shows slices, and the best model to these trackers"""
    checkpoint_steps: Annotated[int, Field(ge=0), Mark.UNRECORDED] = 0
    """steps between checkpoints; 0: by time only"""
    checkpoint_seconds: Annotated[float, Field(ge=0), Mark.UNRECORDED] = 120.0
    """seconds between checkpoints; 0: by steps only"""

    @model_validator(mode="after")
    def _check_phases(self) -> Self:
        if self.freeze_epochs >= self.epochs:
            raise ValueError(f"--freeze_epochs {self.freeze_epochs}: want fewer than --epochs")
        if self.swa_epochs > self.epochs - self.freeze_epochs:
            raise ValueError(
                f"--swa_epochs {self.swa_epochs}: want at most {self.epochs - self.freeze_epochs},"
                " the epochs that train the whole network"
            )
        for name in ("ema", "patience"):
            # With patience, nobody knows which epochs are the last ones.
            if self.swa_epochs and getattr(self, name):
                raise ValueError(f"--swa_epochs and --{name}: choose one")
        if self.mixup and self.batch_size == 1:
            raise ValueError("--mixup: mixes the images of a batch; want --batch_size 2 or more")
        return self

    @model_validator(mode="after")
    def _check_neighbors(self) -> Self:
        if self.neighbors_mm and not self.neighbors:
            raise ValueError("--neighbors_mm: applies to --neighbors 1 or more")
        if self.neighbors and self.crop_head:
            raise ValueError(
                "--neighbors and --crop_head: choose one; the cache keeps each slice cropped to its"
                " own head, so that neighbors would not lie on each other"
            )
        return self


# Defaults of `train_scans` end to end.
_END_TO_END = {"epochs": 10, "learning_rate": 3e-4}


class TrainScansOptions(_ShardsOfRun, Batches, ShardAccess):
    """Everything that the training of a scan model depends on."""

    shards: Annotated[
        Location, Mark.NEVER_EMPTY, Mark.UNRECORDED, DefaultText("the one the run was trained on")
    ] = ""
    """shard directory, a path or URL, if it has moved"""
    run: Annotated[LocalPath, Mark.UNRECORDED]
    """run directory of a finished training: its network gives features and logits of slices; or the
    folder of a cross-validation: a scan model per fold, in the network of that fold"""
    output: Annotated[Location, Mark.UNRECORDED, DefaultText("scans in the run directory")] = ""
    """run directory of the scan model, or folder of the cross-validation's: made, or resumed where
    it stopped"""
    kind: Literal["convolutions", "gru", "transformer"] = "convolutions"
    """what sees the slices of a scan together"""
    units: Annotated[int, Field(ge=8, multiple_of=4)] = 64
    """width of its layers"""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """dropout of the features and between the layers"""
    crop: Annotated[int, Field(ge=2)] = 32
    """slices that a training step sees of a scan, at most"""
    scans_a_step: Annotated[int, Field(ge=1)] = 8
    """scans a training step"""
    epochs: Annotated[int, Field(ge=1), DefaultText("30; end to end: 10")] = 30
    """epochs, at most"""
    patience: Annotated[int, Field(ge=0)] = 0
    """stop after this many epochs without a better loss; 0 never stops"""
    learning_rate: Annotated[float, Field(gt=0), DefaultText("0.001; end to end: 0.0003")] = 1e-3
    """highest learning rate; a cosine leads to 0"""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """decoupled weight decay; spares norms and biases"""
    tta: bool = False
    """features are means over each image and its mirror image"""
    both_directions: bool = False
    """answer by the mean over a scan and the reversed scan"""
    control: Literal["none", "shuffled", "alone"] = "none"
    """train a control, to see what the scan itself adds: the same model with the slices of each
    scan shuffled and without distances, or with each slice alone"""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """seed of weights, crops and order"""
    report: Annotated[bool, Mark.UNRECORDED] = True
    """write report.html at the end"""

    end_to_end: bool = False
    """train the slice network with the scan model, on crops of scans; both start from RUN, which is
    of `train` or of `train_scans`"""
    slice_learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """end to end: highest learning rate of the slice network"""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """end to end: steps whose gradients make one update"""
    slices_at_once: Annotated[int, Field(ge=0)] = 0
    """end to end: slices whose activations are kept at once; those of others are computed again,
    which takes a third more time and less memory. 0: all"""
    cache: Annotated[Literal["ram", "disk", "device"], Mark.UNRECORDED] = "ram"
    """end to end: where decoded, resized images are kept"""
    cache_dir: Annotated[Location, Mark.UNRECORDED, DefaultText("the run directory")] = ""
    """folder of --cache disk"""

    @model_validator(mode="before")
    @classmethod
    def _end_to_end_defaults(cls, values: Any) -> Any:
        return _END_TO_END | values if values.get("end_to_end") else values

    @model_validator(mode="after")
    def _check_end_to_end(self) -> Self:
        if self.end_to_end and self.control != "none":
            raise ValueError("--control and --end_to_end: choose one")
        if self.end_to_end and self.tta:
            raise ValueError("--tta and --end_to_end: choose one; training already mirrors images")
        for name in ("slice_learning_rate", "accumulate", "slices_at_once", "cache", "cache_dir"):
            if name in self.model_fields_set and not self.end_to_end:
                raise ValueError(f"--{name}: applies to --end_to_end")
        return self

    @property
    def folder(self) -> Path:
        """Run directory of the scan model."""
        name = "end_to_end" if self.end_to_end else "scans"
        return Path(self.output) if self.output else self.run / name

    def of_fold(self, run: Path) -> Self:
        """Return the options for the run of a fold of a cross-validation."""
        return self.model_copy(update={"run": run, "output": str(self.folder / run.name)})


class CrossvalOptions(TrainOptions):
    """The options of every fold's run; `run` holds them all."""

    fold: Annotated[int, Mark.DERIVED] = 0


class _PredictionOptions(_Calibrated, _Answers, Batches, ShardAccess):
    """Which trained models answer, and how."""

    run: LocalPaths
    """run directory of a finished or stopped training; or several, an ensemble: the mean of their
    answers. The folder of a cross-validation stands for its runs, and a folder that `evaluate`
    wrote for an ensemble for that"""
    ensemble_mean: Annotated[
        Literal["logits", "probabilities"] | None,
        DefaultText("as the ensemble's folder, or logits"),
    ] = None
    """what the mean over several runs is taken of"""
    tta: bool = False
    """predict the mean over each image and its mirror image"""
    smooth_z: bool = False
    """smooth the logits of each scan along z, by the width and amount kept in the run"""


class EvaluateOptions(_ShardsOfRun, _PredictionOptions):
    """What `evaluate` reads and measures."""

    split: Annotated[str, DefaultText("the fold that training left out")] = ""
    """split to measure; all: every labeled one"""
    fit_temperature: bool = False
    """fit a temperature and a bias a label on this split, and keep them in the run; losses are
    cross-fitted: each patient's by what other patients fit"""
    fit_weights: bool = False
    """fit a weight per run of an ensemble on this split, 0 or more with the sum 1, and keep them in
    --output; figures are cross-fitted: each patient's by weights that other patients fit"""
    output: Annotated[LocalPath, DefaultText("ensemble; of one run, that run's directory")] = Path(
        "ensemble"
    )
    """folder for the figures of an ensemble: new, or of the same ensemble"""

    fit_smooth_z: bool = False
    """fit width and amount of the smoothing along z on this split, and keep them in the run, to be
    used with --smooth_z if they help; figures are cross-fitted, as for fit_temperature"""

    @model_validator(mode="after")
    def _choose_one(self) -> Self:
        for name in ("temperature", "smooth_z"):
            if getattr(self, name) and getattr(self, f"fit_{name}"):
                raise ValueError(f"--fit_{name} and --{name}: choose one")
        if self.fit_smooth_z and self.temperature:
            raise ValueError("--fit_smooth_z and --temperature: want --fit_temperature, too")
        others = ("temperature", "smooth_z", "fit_temperature", "fit_smooth_z")
        if self.fit_weights and (other := next((n for n in others if getattr(self, n)), "")):
            raise ValueError(f"--fit_weights and --{other}: choose one; the weights come first")
        return self


class PredictOptions(_PredictionOptions):
    """What `predict` reads and writes."""

    shards: Annotated[Location, Mark.NEVER_EMPTY, DefaultText("none")] = ""
    """shard directory, a path or URL; or else --input"""
    input: Annotated[Location, Mark.NEVER_EMPTY, DefaultText("none")] = ""
    """DICOM files, converted as the run's shards were: folder, pattern, file, ZIP archive or URL"""
    output: LocalPath = Path("predictions")
    """new or empty folder for slices.csv, scans.csv, report.html and, of DICOM files,
    rejects.jsonl; or a file: .csv, a submission with a row per image and label (ID,Label), or
    .parquet, a table with a row per image (its ids, probability_LABEL and label_LABEL)"""
    split: str = UNLABELED_SPLIT
    """split of the shards to predict"""
    where: Annotated[tuple[str, ...], Mark.REPEATED] = ()
    """condition on the DICOM attributes of --input, as for preprocess; may be repeated"""
    files: Annotated[Location, DefaultText("all")] = ""
    """list of the files of --input to use, as for preprocess"""
    pictures: Annotated[int, Field(ge=0)] = 12
    """number of scans whose slice with the highest probability is shown in report.html"""
    sample_submission: Annotated[str, DefaultText("every slice of the split")] = ""
    """sample whose rows and order the submission gets; a slice that was rejected gets the
    prevalence of the training data"""

    @property
    def writes_folder(self) -> bool:
        """Whether `output` is a folder."""
        return self.output.suffix not in (".csv", ".parquet")

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if bool(self.shards) == bool(self.input):
            which = "choose one" if self.shards else "one of them is missing"
            raise ValueError(f"--shards and --input: {which}; want shards or DICOM files")
        if self.input and self.split != UNLABELED_SPLIT:
            raise ValueError("--split applies to --shards; DICOM files have no splits")
        for name in ("where", "files"):
            if self.shards and getattr(self, name):
                raise ValueError(f"--{name} applies to --input, not to --shards")
        return self

    @model_validator(mode="after")
    def _check_format(self) -> Self:
        if self.writes_folder and self.output.suffix and not self.output.is_dir():
            raise ValueError(
                f"--output {quoted(self.output)}: want a name in .csv or .parquet, or a folder,"
                " without a dot if it is new"
            )
        if self.sample_submission and self.output.suffix != ".csv":
            raise ValueError("--sample_submission: want a submission, --output NAME.csv")
        if (
            self.sample_submission
            and self.output.resolve() == Path(self.sample_submission).resolve()
        ):
            raise ValueError(f"--output {quoted(self.output)}: is --sample_submission, too")
        return self


class ExportOptions(_ShardsOfRun, _Calibrated, ShardAccess):
    """Which run's model is written, where and how, and what it is tried on."""

    run: LocalPath
    """run directory of a finished or stopped training"""
    output: LocalPath
    """folder to write to; made, or empty"""
    formats: Annotated[str, checked_by(parse_formats)] = ",".join(FORMATS)
    """formats, separated by commas"""
    backend: Literal["tensorflow"] = "tensorflow"
    """what Keras computes with"""


class ReportOptions(_ShardsOfRun, _Answers, _Backend, ShardAccess):
    """Which run is shown, and how many of its mistakes."""

    run: LocalPath
    """run directory of a finished training; or folder of an ensemble or a cross-validation that was
    evaluated"""
    mistakes: Annotated[int, Field(ge=0)] = 12
    """worst mistakes to show, of a run"""


class CompareOptions(Declared):
    """Which runs are set side by side."""

    runs: LocalPaths
    """run directories of finished trainings, the one to compare with first; or folders of
    cross-validations, by their out-of-fold predictions, and of ensembles that were evaluated. One
    alone: its runs"""
    output: LocalPath = Path("compare.html")
    """page to write"""


Options = (
    TrainOptions
    | TrainScansOptions
    | EvaluateOptions
    | PredictOptions
    | ExportOptions
    | ReportOptions
    | CompareOptions
)


def run_identity(options: TrainOptions | TrainScansOptions) -> dict[str, Any]:
    """Return the options that identify a run, ready for JSON."""
    return {
        name: getattr(options, name)
        for name, field in flags(type(options)).items()
        if Mark.UNRECORDED not in field.metadata
    }

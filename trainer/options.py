"""The options of each command: frozen, and checked when they are made.

A field with `same_run=False` in its metadata may change between two starts of one run;
every other field is part of what the run is.
"""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from trainer.errors import BadInput

BACKENDS = ("tensorflow", "jax")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
CACHES = ("none", "ram", "disk", "device")
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "constant")
SAMPLINGS = ("natural", "balanced")
XLA = ("auto", "on", "off")
BATCH_NORMS = ("train", "frozen")
FORMATS = ("keras", "saved_model", "onnx")


@dataclass(frozen=True)
class ChosenWindow:
    """A display window in Hounsfield units, chosen at training time."""

    name: str
    center: float
    width: float


DEFAULT_WINDOWS = (
    ChosenWindow("brain", 40, 80),
    ChosenWindow("subdural", 80, 200),
    ChosenWindow("bone", 600, 2800),
)


def option(default: Any, text: str, choices: tuple[str, ...] = (), same_run: bool = True) -> Any:
    """A dataclass field with the text and choices that the command line shows."""
    metadata = {"help": text, "choices": choices, "same_run": same_run}
    return field(default=default, metadata=metadata)


def required(text: str) -> dict[str, Any]:
    """The metadata of a field that has to be given."""
    return {"help": text, "choices": (), "same_run": False}


@dataclass(frozen=True, kw_only=True)
class ShardAccess:
    """How shards in a bucket are read."""

    shard_cache: str = option(
        "",
        "folder that shards in a bucket are copied to, once"
        " (default: headct-shards in the user's cache directory)",
        (),
        False,
    )
    shard_cache_gb: float = option(
        0.0,
        "GB that this folder may take; what no process uses is removed, the least recently used"
        " first. 0: all that is free on its disk",
        (),
        False,
    )
    storage_patience: float = option(
        600.0, "seconds after which a request to a bucket that fails is given up", (), False
    )

    def __post_init__(self) -> None:
        check(self, "shard_cache_gb", 0 <= self.shard_cache_gb < math.inf, "0 or more")
        check(self, "storage_patience", 0 < self.storage_patience < math.inf, "above 0")


SHARDS = "shard directory, as beam_pipeline writes it: a path or URL (s3://, gs://, az://)"
SHARDS_OF_RUN = "shard directory, a path or URL (default: the one the run was trained on)"


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ShardAccess):
    """Everything that a training run depends on.

    Raises:
        BadInput: a value is outside its range; the message quotes it.
    """

    shards: str = field(metadata=required(SHARDS))
    run: Path = field(metadata=required("run directory: made, or resumed where it stopped"))
    fold: int = option(0, "fold to validate on; training is on all other labeled folds")

    model: str = option("resnet50", "backbone, by its keras.applications name in lower case")
    weights: str = option("imagenet", "imagenet, none, or a weights file of the backbone")
    image_size: int = option(224, "side of the square image that the backbone sees, in pixels")
    dropout: float = option(0.2, "dropout before the head")
    augment: float = option(1.0, "strength of augmentation; 0 turns it off")
    windows: str = option(
        "", "for shards in Hounsfield units: name:center:width,... (default brain,subdural,bone)"
    )
    window_jitter: float = option(
        0.0, "shift and stretch each window by up to this fraction of its width while training"
    )

    epochs: int = option(10, "epochs, at most")
    patience: int = option(3, "stop after this many epochs without a better loss; 0 never stops")
    batch_size: int = option(32, "images a step")
    accumulate: int = option(1, "steps whose gradients make one update")
    optimizer: str = option("adamw", "optimizer", OPTIMIZERS)
    learning_rate: float = option(3e-4, "highest learning rate")
    schedule: str = option("cosine", "learning rate after the warm-up", SCHEDULES)
    warmup_epochs: float = option(0.5, "epochs over which the learning rate rises from 0")
    weight_decay: float = option(1e-4, "decoupled weight decay; spares norms and biases")
    clip_norm: float = option(1.0, "largest norm of all gradients together; 0 turns it off")
    ema: float = option(0.0, "momentum of averaged weights, 0.999 for instance; 0 turns it off")
    label_smoothing: float = option(0.0, "label smoothing, 0 to below 1")
    label_weights: str = option("any=2", "weights of labels in the loss, name=weight,...; others 1")
    sampling: str = option(
        "natural", "examples of an epoch, as they are or label-balanced", SAMPLINGS
    )
    freeze_epochs: int = option(0, "first epochs that train the head alone")
    batch_norm: str = option(
        "train", "batch normalization of an unfrozen backbone: its statistics", BATCH_NORMS
    )

    precision: str = option("auto", "arithmetic; auto goes by the hardware", PRECISIONS)
    xla: str = option("auto", "compile with XLA; auto: where there is a GPU", XLA)
    steps_per_execution: int = option(1, "steps a call of the compiled function")
    cache: str = option("none", "where decoded, resized images are kept between epochs", CACHES)
    cache_dir: str = option("", "folder of --cache disk (default: the run directory)", (), False)
    shuffle_buffer: int = option(2048, "records that the shuffle chooses from")
    seed: int = option(0, "seed of weights, order and augmentation")
    deterministic: bool = option(False, "bit-exact operations, slower on a GPU")
    backend: str = option("tensorflow", "what Keras computes with", BACKENDS)
    report: bool = option(True, "write report.html at the end", (), False)
    checkpoint_steps: int = option(0, "steps between checkpoints; 0: by time only", (), False)
    checkpoint_seconds: float = option(
        120.0, "seconds between checkpoints; 0: by steps only", (), False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)
        for name in ("image_size", "epochs", "batch_size", "accumulate", "steps_per_execution"):
            check(self, name, getattr(self, name) >= 1, "at least 1")
        check(self, "shuffle_buffer", self.shuffle_buffer >= 1, "at least 1")
        for name in ("fold", "patience", "freeze_epochs", "seed", "checkpoint_steps"):
            check(self, name, getattr(self, name) >= 0, "0 or more")
        for name in ("augment", "window_jitter", "warmup_epochs", "weight_decay", "clip_norm"):
            check(self, name, 0 <= getattr(self, name) < math.inf, "0 or more")
        check(self, "checkpoint_seconds", 0 <= self.checkpoint_seconds < math.inf, "0 or more")
        for name in ("dropout", "ema", "label_smoothing"):
            check(self, name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        check(self, "learning_rate", 0 < self.learning_rate < math.inf, "above 0")
        check(self, "freeze_epochs", self.freeze_epochs < self.epochs, "below --epochs")


@dataclass(frozen=True, kw_only=True)
class CrossvalOptions(TrainOptions):
    """The options of every fold's run; `run` holds them all."""


@dataclass(frozen=True, kw_only=True)
class _PredictionOptions(ShardAccess):
    """How a trained model answers."""

    run: Path = field(metadata=required("run directory of a finished or stopped training"))
    tta: bool = option(False, "predict the mean over each image and its mirror image")
    temperature: bool = option(False, "divide the logits by the temperatures kept in the run")
    batch_size: int = option(32, "images a step")
    backend: str = option("tensorflow", "what Keras computes with", BACKENDS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)
        check(self, "batch_size", self.batch_size >= 1, "at least 1")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(_PredictionOptions):
    """What `evaluate` reads and measures.

    Raises:
        BadInput: a value is outside its range; the message quotes it.
    """

    shards: str = option("", SHARDS_OF_RUN)
    split: str = option("", "split to measure (default: the fold that training left out)")
    fit_temperature: bool = option(
        False, "fit a temperature a label on this split, and keep them in the run"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fit_temperature and self.temperature:
            raise BadInput("--fit_temperature and --temperature: choose one")


@dataclass(frozen=True, kw_only=True)
class PredictOptions(_PredictionOptions):
    """What `predict` reads and where it writes the submission.

    Raises:
        BadInput: a value is outside its range; the message quotes it.
    """

    shards: str = field(metadata=required(SHARDS))
    output: Path = field(
        metadata=required("submission to write, a row per image and label: ID,Label")
    )
    split: str = option("test", "split to predict")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Which run's model is written, where and how.

    Raises:
        BadInput: a value is outside its range; the message quotes it.
    """

    run: Path = field(metadata=required("run directory of a finished or stopped training"))
    output: Path = field(metadata=required("folder to write to; made, or empty"))
    formats: str = option("keras,saved_model,onnx", "formats, separated by commas")
    temperature: bool = option(False, "divide the logits by the temperatures kept in the run")
    backend: str = option("tensorflow", "what Keras computes with", ("tensorflow",))

    def __post_init__(self) -> None:
        check_choices(self)
        unknown = set(self.formats.split(",")) - set(FORMATS)
        check(self, "formats", not unknown, f"some of {', '.join(FORMATS)}")


@dataclass(frozen=True, kw_only=True)
class ReportOptions(ShardAccess):
    """Which run is shown, and how many of its mistakes.

    Raises:
        BadInput: a value is outside its range; the message quotes it.
    """

    run: Path = field(metadata=required("run directory of a finished training"))
    shards: str = option("", SHARDS_OF_RUN)
    mistakes: int = option(12, "worst mistakes to show")
    backend: str = option("tensorflow", "what Keras computes with", BACKENDS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)
        check(self, "mistakes", self.mistakes >= 0, "0 or more")


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Which runs are set side by side."""

    runs: tuple[Path, ...] = field(
        metadata=required("run directories of finished trainings, the one to compare with first")
    )
    output: Path = field(default=Path("compare.html"), metadata=required("page to write"))


Options = (
    TrainOptions | EvaluateOptions | PredictOptions | ExportOptions | ReportOptions | CompareOptions
)


def check(options: Options | ShardAccess, name: str, good: bool, right: str) -> None:
    """Quotes the value of an option that is not `good`."""
    if not good:
        raise BadInput(f"--{name} {getattr(options, name)}: must be {right}")


def check_choices(options: Options | ShardAccess) -> None:
    """Compares each option that has choices with them."""
    for each in fields(options):
        choices = choices_of(each)
        if choices:
            check(options, each.name, getattr(options, each.name) in choices, ", ".join(choices))


def choices_of(each: Field[Any]) -> tuple[str, ...]:
    """The values an option may have; empty when any will do."""
    choices: tuple[str, ...] = each.metadata["choices"]
    return choices


def run_identity(options: TrainOptions) -> dict[str, Any]:
    """The options that make a run what it is, ready for JSON."""
    return {
        each.name: getattr(options, each.name)
        for each in fields(options)
        if each.metadata["same_run"]
    }


def label_weights(text: str, labels: tuple[str, ...]) -> tuple[float, ...]:
    """Parses `name=weight,...` into a weight a label.

    `any=2` is the default, and means nothing where there is no label `any`.

    Raises:
        BadInput: a pair is malformed, a weight not positive, or a label unknown.
    """
    given: dict[str, float] = {}
    for pair in filter(None, text.split(",")):
        name, _, value = pair.partition("=")
        try:
            given[name.strip()] = float(value)
        except ValueError:
            raise BadInput(f"--label_weights {pair!r}: must be name=weight") from None
        if not 0 < given[name.strip()] < math.inf:
            raise BadInput(f"--label_weights {pair!r}: the weight must be above 0")
    unknown = sorted(set(given) - set(labels) - {"any"})
    if unknown:
        raise BadInput(
            f"--label_weights {unknown[0]!r}: no such label; there are {', '.join(labels)}"
        )
    return tuple(given.get(label, 1.0) for label in labels)


def parse_windows(text: str) -> tuple[ChosenWindow, ...]:
    """Parses `name:center:width,...`, or the name alone of a default window.

    Raises:
        BadInput: a window is malformed, unknown, or has no width.
    """
    if not text:
        return DEFAULT_WINDOWS
    return tuple(parse_window(each.strip()) for each in text.split(","))


def parse_window(text: str) -> ChosenWindow:
    """Parses one window."""
    named = {each.name: each for each in DEFAULT_WINDOWS}
    if text in named:
        return named[text]
    try:
        name, center, width = text.split(":")
        window = ChosenWindow(name, float(center), float(width))
    except ValueError:
        raise BadInput(
            f"--windows {text!r}: must be name:center:width or {', '.join(named)}"
        ) from None
    if not (math.isfinite(window.center) and 0 < window.width < math.inf):
        raise BadInput(f"--windows {text!r}: the width must be above 0")
    return window

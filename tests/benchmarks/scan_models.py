"""What a scan model takes at 100,000 slices: features, its training, evaluation; time and memory.

    python -m tests.benchmarks.scan_models [--slices 100000] [--features 2048]

Makes shards of small synthetic images, in series of 30 slices, and the run of a slice network that
has as many features as a ResNet50 but takes next to no time, so that what is measured is all but
the slice network. Each command runs in a process of its own, whose CPU time and peak memory are
those that the kernel reports.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.machine import describe_machine
from tests.benchmarks.report import Figures, markdown
from tests.trainer.conftest import write_shards
from trainer.options import TrainOptions
from trainer.runs.run import Run
from trainer.runs.training_setup import prepare_training

SIZE, PATCH, SERIES = 32, 16, 30  # pixels, pixels, slices
FOLDS = 5


class Taken(NamedTuple):
    """What a command took: seconds of CPU time, and peak memory in MB."""

    cpu: float
    memory: float


def make_rows(count: int, fold: int) -> Iterator[dict[str, Any]]:
    """Slices with 64 different images: what they show does not matter here."""
    random = np.random.default_rng(fold)
    images = random.integers(0, 255, (64, SIZE, SIZE, 3), dtype=np.uint8)
    for i in range(count):
        ids = dict.fromkeys(("patient_id", "study_id", "series_id"), f"{fold}-{i // SERIES}")
        label = int(random.random() < 0.2)
        yield {
            "image": images[i % 64],
            "image_id": f"{fold}-{i}",
            "label": [label, 0, label],
            "position_z": 5.0 * (i % SERIES),
            **ids,
        }


def make_run(shards: Path, path: Path, features: int) -> None:
    """A complete run of a network of patches, untrained."""
    import keras

    from trainer.networks.model import build_classifier

    def patches(shape: tuple[int, ...]) -> Any:
        conv = keras.layers.Conv2D(features, PATCH, PATCH, activation="relu")
        return keras.Sequential([keras.Input(shape), conv])

    options = TrainOptions(
        shards=str(shards), run=path, model="patches", weights="none", image_size=SIZE
    )
    setup = prepare_training(options, patches)
    with Run(path).begun(options, setup.shards):
        made = build_classifier(options, setup.shards.image, setup.prevalence, "float32", patches)
        made.model.save(path / "model.keras")
    (path / "metrics.json").write_text(json.dumps({"split": "fold0"}))


def measure(*words: str) -> Taken:
    """Run a command of the trainer."""
    code = "import sys; from trainer.__main__ import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, words
    return Taken(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000)


def main(argv: Sequence[str]) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=2048)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="scan-models-") as folder:
        run = f"{folder}/run"
        per_fold = options.slices // FOLDS
        rows = {f"fold{i}": [*make_rows(per_fold, i)] for i in range(FOLDS)}
        make_run(write_shards(Path(folder) / "shards", rows), Path(run), options.features)
        words = ("--no-report", "--batch_size", "128")
        took = {
            "features of all slices, one epoch, evaluation": measure(
                "train_scans", run, *words, "--epochs", "1"
            ),
            "two epochs, evaluation": measure(
                "train_scans", run, *words, "--epochs", "2", "--output", f"{folder}/two"
            ),
            f"evaluation of {per_fold} slices": measure("evaluate", f"{run}/scans"),
            "the same of the slice network alone": measure("evaluate", run),
        }
    figures = Figures(
        f"{options.slices:,} slices, {options.features:,} features",
        ("command", "CPU s", "peak memory, MB"),
        [(name, f"{cpu:.0f}", f"{memory:,.0f}") for name, (cpu, memory) in took.items()],
    )
    print(markdown([figures], describe_machine(["tensorflow", "keras"])))


if __name__ == "__main__":
    main(sys.argv[1:])

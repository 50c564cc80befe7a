"""Small shard directories, written with TensorFlow itself.

A slice is noise with, for each positive label, a bright square in that label's own place:
a network can learn it in seconds. `any` is the OR of the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from tensorflow.python.framework import config

from tests.trainer import small_network
from trainer.__main__ import main
from trainer.evaluation import bootstrap
from trainer.options import TrainOptions
from trainer.runs.training_setup import prepare_training
from trainer.training.train import Loop, train

LABELS = ("upper", "lower", "any")
MANIFEST_WINDOWS = [
    {"name": "brain", "center": 40, "width": 80},
    {"name": "subdural", "center": 80, "width": 200},
    {"name": "bone", "center": 600, "width": 2800},
]
FRAME_BYTES = 16  # of a TFRecord, beside its data
Row = dict[str, Any]


def make_rows(
    count: int, size: int, seed: int, labeled: bool = True, prefix: str = ""
) -> list[Row]:
    """Slices of count / 4 patients."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        upper, lower = (int(each) for each in random.integers(0, 2, 2))
        image = random.integers(0, 60, (size, size, 3), dtype=np.uint8)
        half = size // 2
        if upper:
            image[: half // 2, half // 2 : -half // 2] += 180
        if lower:
            image[-half // 2 :, half // 2 : -half // 2] += 180
        rows.append(
            {
                "image": image,
                "image_id": f"ID_{prefix}{seed}_{i:04d}",
                "label": [upper, lower, upper | lower] if labeled else [-1, -1, -1],
                "patient_id": f"P{prefix}{seed}_{i // 4:03d}",
                "study_id": f"S{prefix}{seed}_{i // 4:03d}",
                "series_id": f"R{prefix}{seed}_{i // 4:03d}",
                "position_z": 5.0 * (i % 4),
            }
        )
    return rows


def serialize(row: Row) -> bytes:
    """A tf.train.Example of the contract."""

    def text(value: str) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))

    png = tf.io.encode_png(row["image"]).numpy()
    feature = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[png])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=row["label"])),
        "position_z": tf.train.Feature(float_list=tf.train.FloatList(value=[row["position_z"]])),
        "pixel_spacing": tf.train.Feature(float_list=tf.train.FloatList(value=[0.5, 0.5])),
        **{name: text(row[name]) for name in ("image_id", "patient_id", "study_id", "series_id")},
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    data: bytes = example.SerializeToString(deterministic=True)
    return data


def write_split(
    folder: Path, name: str, rows: list[Row], shards: int, labels: Sequence[str] = LABELS
) -> dict[str, Any]:
    """Writes a split's shards; its entry in the manifest."""
    entries = []
    for number in range(shards):
        path = folder / f"ich-{name}.tfrecord-{number:05d}-of-{shards:05d}"
        mine = rows[number::shards]
        with tf.io.TFRecordWriter(str(path)) as writer:
            for row in mine:
                writer.write(serialize(row))
        data = path.read_bytes()
        entries.append(
            {
                "file": path.name,
                "examples": len(mine),
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "label_counts": count_labels(mine, labels),
            }
        )
    return {
        "examples": len(rows),
        "patients": len({row["patient_id"] for row in rows}),
        "label_counts": count_labels(rows, labels),
        "shards": entries,
    }


def count_labels(rows: list[Row], labels: Sequence[str] = LABELS) -> dict[str, int]:
    return {name: sum(row["label"][i] == 1 for row in rows) for i, name in enumerate(labels)}


def write_shards(folder: Path, splits: dict[str, list[Row]], **changes: Any) -> Path:
    """Writes a whole shard directory; `changes` replace keys of its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    image = next(rows[0]["image"] for rows in splits.values() if rows)
    height, width, channels = image.shape
    labels = changes.get("labels", LABELS)
    manifest = {
        "schema_version": 1,
        "created": "2026-01-01T00:00:00Z",
        "labels": list(labels),
        "windows": MANIFEST_WINDOWS[:channels],
        "image": {
            "height": height,
            "width": width,
            "channels": channels,
            "dtype": str(image.dtype),
            "hu_offset": -1024 if image.dtype == np.uint16 else None,
        },
        "counts": {},
        "splits": {
            name: write_split(folder, name, rows, 2, labels) for name, rows in splits.items()
        },
        **changes,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    write_index(folder, splits, manifest["splits"], labels)
    return folder


def write_index(
    folder: Path, splits: dict[str, list[Row]], entries: dict[str, Any], labels: Sequence[str]
) -> None:
    """Writes what the trainer reads of index.parquet."""
    rows = []
    for name, entry in entries.items():
        for number, shard in enumerate(entry["shards"]):
            offset = 0
            for record, row in enumerate(splits[name][number :: len(entry["shards"])]):
                values = {f"label_{label}": row["label"][i] for i, label in enumerate(labels)}
                data = serialize(row)
                size, png = len(data) + FRAME_BYTES, tf.io.encode_png(row["image"]).numpy()
                place = {"record": record, "offset": offset, "bytes": size}
                place |= {"image_offset": offset + 12 + data.index(png), "image_bytes": len(png)}
                ids = {key: row[key] for key in row if key not in ("image", "label")}
                rows.append({"shard": shard["file"], "split": name, **place, **ids, **values})
                offset += size
    # In another order than the shards': nothing shall depend on it.
    pd.DataFrame(rows[::-1]).to_parquet(folder / "index.parquet", index=False)


@pytest.fixture(autouse=True)
def deterministic_operations_end_with_a_test() -> Iterator[None]:
    """TensorFlow keeps `--deterministic` for the rest of the process."""
    yield
    if config.is_op_determinism_enabled():
        config.disable_op_determinism()


TINY: dict[str, Any] = {
    "model": "smallresnet",
    "weights": "none",
    "image_size": 32,
    "batch_size": 8,
    "epochs": 2,
    "learning_rate": 3e-3,
    "checkpoint_seconds": 0.0,
}


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Options of the smallest run there is."""
    return dict(TINY)


DRAW_HISTORY = Loop.draw_history


@pytest.fixture(scope="session", autouse=True)
def short_training(full: bool) -> Iterator[None]:
    """One convolution for the sample's network, and no history.png: most of a training's time.

    What a user starts is tested in test_end_to_end.py; with --full all tests have the whole.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not full:
            patch.setattr(small_network.MAKER, small_network.one_convolution)
            patch.setattr(Loop, "draw_history", lambda _: None)
        yield


@pytest.fixture
def drawn_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has history.png drawn after all."""
    monkeypatch.setattr(Loop, "draw_history", DRAW_HISTORY)


@pytest.fixture
def without_curves(full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the curves of pages away, for tests of what else a page says: most of its time."""
    if not full:
        for name in ("svg_in_unit_square", "svg_by_epoch"):
            monkeypatch.setattr(f"trainer.report.plots.{name}", lambda *_, **__: "")


@pytest.fixture(scope="session")
def finished(shards: Path, short_training: None, made_once: Callable[..., Path]) -> Path:
    """A finished run that no test changes."""

    def make(run: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Loop, "draw_history", DRAW_HISTORY)
            train(prepare_training(TrainOptions(shards=shards, run=run, report=True, **TINY)))

    return made_once("finished", make)


@pytest.fixture(scope="module")
def eagerly(full: bool, finished: Path) -> Iterator[None]:
    """Compiling takes longer than the steps of a few scans, and so do 1,000 resamples."""
    with pytest.MonkeyPatch.context() as patch:
        if not full:
            patch.setattr(bootstrap, "SAMPLES", 50)
        tf.config.run_functions_eagerly(True)
        yield
        tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def train_scans(
    finished: Path, eagerly: None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """From flags of `train_scans` to a copy of the finished run, and the metrics of the new run."""

    def make(folder: str, flags: list[str]) -> tuple[Path, dict[str, Any]]:
        run = Path(shutil.copytree(finished, tmp_path_factory.mktemp(folder) / "run"))
        assert main(["train_scans", str(run), *flags]) == 0
        return run, json.loads((run / folder / "metrics.json").read_text())

    return make


@pytest.fixture(scope="session")
def rows_maker() -> Callable[..., list[Row]]:
    """`make_rows`."""
    return make_rows


@pytest.fixture(scope="session")
def shards_writer() -> Callable[..., Path]:
    """`write_shards`."""
    return write_shards


@pytest.fixture(scope="session")
def split_rows() -> dict[str, list[Row]]:
    """Three folds of 21, 20 and 20 slices and an unlabeled test split of 7, of 32 x 32."""
    folds = {f"fold{i}": make_rows(21 if i == 0 else 20, 32, seed=i) for i in range(3)}
    return {**folds, "test": make_rows(7, 32, seed=9, labeled=False)}


@pytest.fixture(scope="session")
def shards(made_once: Callable[..., Path], split_rows: dict[str, list[Row]]) -> Path:
    """A shard directory that no test changes."""
    return made_once("ich", lambda folder: write_shards(folder, split_rows))


@pytest.fixture
def edit_manifest(shards: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a directory whose manifest is the shards' with some keys changed."""

    def edit(**changes: Any) -> Path:
        manifest = json.loads((shards / "manifest.json").read_text()) | changes
        folder = tmp_path / "edited"
        folder.mkdir()
        for file in shards.glob("*.tfrecord-*"):
            (folder / file.name).symlink_to(file)
        if "splits" in changes:
            files = {
                e["file"] for split in changes["splits"].values() for e in split.get("shards", [])
            }
            index = pd.read_parquet(shards / "index.parquet")
            index[index["shard"].isin(files)].to_parquet(folder / "index.parquet", index=False)
        else:
            (folder / "index.parquet").symlink_to(shards / "index.parquet")
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return edit

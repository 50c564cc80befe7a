"""A shard directory of a few slices, made without the pipeline, with ids that are hard to show."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from headct.layout import INDEX, MANIFEST, index_columns

LABELS = ["any", "<b>& other"]
HOSTILE = "<script>alert('x')</script>"
# image_id, split, series_id, position_z, and the labels; the patient is the series' first letter.
SLICES = [
    ("a/../../etc/passwd", "fold0", "B 1", 5.0, 1, 0),
    (HOSTILE, "fold0", "A 1", 10.0, 0, 0),
    ("größe\u202e\"quoted'", "fold0", "A 1", -5.0, 1, 1),
    ("plain", "fold1", "A 2", 0.0, 0, 1),
    ("%2e%2e/&x=1#y?z", "fold1", "A 1", 0.0, 1, 0),
    ("last", "test", "C 1", np.nan, -1, -1),
]
IDS = [each[0] for each in SLICES]
SIDE = 16


def pixels(row: int, hu: bool = False) -> np.ndarray:
    """The stored image of a row: [H, W, 3] uint8, or [H, W, 1] uint16."""
    random = np.random.default_rng(row)
    if hu:
        return random.integers(0, 3000, (SIDE, SIDE, 1)).astype(np.uint16)
    return random.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)


def write_small_shards(folder: Path, hu: bool = False) -> Path:
    """Writes the directory, and returns it."""
    folder.mkdir(parents=True)
    splits: dict[str, dict[str, object]] = {}
    rows = []
    files: dict[str, bytes] = {}
    for number, (image_id, split, series, position, *labels) in enumerate(SLICES):
        png = cv2.imencode(".png", pixels(number, hu)[..., ::-1])[1].tobytes()
        name = f"ich-{split}.tfrecord-00000-of-00001"
        offset = len(files.setdefault(name, b""))
        files[name] += png
        row = {
            **dict.fromkeys(("record", "offset", "bytes", "rows", "columns"), SIDE),
            **{"image_id": image_id, "split": split, "shard": name, "position_z": position},
            **{"image_offset": offset, "image_bytes": len(png), "series_id": series},
            **{"study_id": series, "patient_id": f"{series[0]} <i>", "source": image_id},
            **{"transfer_syntax": "1.2", "repair": "none", "resized": False},
            **{"row_spacing": 0.5, "column_spacing": 0.5},
            **{f"label_{label}": value for label, value in zip(LABELS, labels, strict=True)},
        }
        rows.append(row)
    for name, data in files.items():
        (folder / name).write_bytes(data)
        examples = sum(row["shard"] == name for row in rows)
        shard = {"file": name, "examples": examples, "bytes": len(data), "sha256": "0" * 64}
        split = name.split(".")[0].removeprefix("ich-")
        splits[split] = {"examples": examples, "patients": 1, "shards": [shard]}
    schema = pa.schema(
        [(name, getattr(pa, TYPES.get(t, t))()) for name, t in index_columns(LABELS)]
    )
    frame = pd.DataFrame(rows)[schema.names]
    pq.write_table(pa.Table.from_pandas(frame, schema, preserve_index=False), folder / INDEX)
    windows = [{"name": name, "center": 40, "width": 80} for name in ("brain", "<s>", "bone")]
    image = {"height": SIDE, "width": SIDE, "channels": 3, "dtype": "uint8", "hu_offset": None}
    if hu:
        image |= {"channels": 1, "dtype": "uint16", "hu_offset": -1024}
    manifest = {
        **{"schema_version": 1, "labels": LABELS, "windows": [] if hu else windows},
        **{"image": image, "splits": splits},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


TYPES = {"double": "float64", "bool": "bool_"}

# Of the first four slices: of `any`, and of the other label.
PROBABILITIES = {IDS[0]: (0.2, 0.6), IDS[1]: (0.9, 0.1), IDS[2]: (0.7, 0.4), IDS[3]: (0.5, 0.9)}


def predictions() -> pd.DataFrame:
    """A model's predictions of some slices, as the trainer writes them."""
    rows = []
    for image_id, split, series, _, *labels in SLICES:
        if image_id in PROBABILITIES:
            row = {"image_id": image_id, "split": split, "patient_id": f"{series[0]} <i>"}
            for name, label, probability in zip(
                LABELS, labels, PROBABILITIES[image_id], strict=True
            ):
                row |= {f"probability_{name}": probability, f"label_{name}": label}
            rows.append(row)
    return pd.DataFrame(rows[::-1])

"""The slices of a patient, from bottom to top.

    python examples/patient_slices.py out/shards

Needs pandas, NumPy and OpenCV, and neither TensorFlow nor Beam: index.parquet says where each
record is. A record is a `tf.train.Example`, in which the PNG is found by how it begins and ends.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

PNG_BEGINS, PNG_ENDS = b"\x89PNG\r\n\x1a\n", b"IEND\xae\x42\x60\x82"


def read_image(folder: Path, row: pd.Series) -> np.ndarray:
    """The image of a row of the index, uint8 [H, W, C] with the channels in the shards' order."""
    with (folder / row["shard"]).open("rb") as file:
        file.seek(row["offset"])
        record = file.read(row["bytes"])
    begin = record.index(PNG_BEGINS)
    png = record[begin : record.rindex(PNG_ENDS) + len(PNG_ENDS)]
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    # OpenCV gives blue, green, red where the PNG has red, green, blue.
    return image[..., ::-1] if image.ndim == 3 else image[..., None]


def volume(folder: Path, patient: str) -> np.ndarray:
    """All slices of a patient, [slices, H, W, C], ordered by their position on the z axis."""
    index = pd.read_parquet(folder / "index.parquet")
    rows = index[index["patient_id"] == patient].sort_values("position_z")
    return np.stack([read_image(folder, row) for _, row in rows.iterrows()])


if __name__ == "__main__":
    shards = Path(sys.argv[1])
    patient = pd.read_parquet(shards / "index.parquet")["patient_id"].iloc[0]
    print(f"{patient}: a volume of {volume(shards, patient).shape}")

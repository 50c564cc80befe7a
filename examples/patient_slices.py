"""The slices of a patient, from bottom to top.

    python examples/patient_slices.py out/shards

Needs pandas, pyarrow and NumPy.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from shard_images import ShardImages


def volume(folder: Path, patient: str) -> np.ndarray:
    """All slices of a patient, [slices, H, W, C], in order of their position on the z axis."""
    index = pd.read_parquet(folder / "index.parquet")
    slices = index[index["patient_id"] == patient].sort_values("position_z")
    return np.stack([image for image, _ in ShardImages(folder, slices)])


if __name__ == "__main__":
    shards = Path(sys.argv[1])
    patient = pd.read_parquet(shards / "index.parquet")["patient_id"].iloc[0]
    print(f"{patient}: a volume of {volume(shards, patient).shape}")

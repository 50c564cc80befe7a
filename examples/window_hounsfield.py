"""Windows chosen afterwards, of shards in Hounsfield units.

    make preprocess INPUT=... OUTPUT=out/hu ARGS=--hu
    python examples/window_hounsfield.py out/hu fold0

Such shards hold one channel of 16 bits: Hounsfield units = value + hu_offset of the manifest.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf


def window(hounsfield: np.ndarray, center: float, width: float) -> np.ndarray:
    """Gray levels uint8: black at center - width/2, white at center + width/2."""
    levels = ((hounsfield - center) / width + 0.5) * 255
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    manifest = json.loads((folder / "manifest.json").read_text())
    shard = manifest["splits"][sys.argv[2]]["shards"][0]["file"]
    record = next(iter(tf.data.TFRecordDataset(str(folder / shard))))
    example = tf.train.Example.FromString(record.numpy())
    png = example.features.feature["image"].bytes_list.value[0]
    values = tf.io.decode_png(png, dtype=tf.uint16).numpy()
    hounsfield = values[..., 0].astype(np.float32) + manifest["image"]["hu_offset"]
    brain, stroke = window(hounsfield, 40, 80), window(hounsfield, 40, 40)
    print(
        f"{hounsfield.min():.0f} to {hounsfield.max():.0f} HU; brain {brain.shape}, {brain.dtype}"
    )
    print(f"gray levels between black and white: {np.mean((stroke > 0) & (stroke < 255)):.1%}")

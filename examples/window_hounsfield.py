"""Windows chosen afterwards, of shards in Hounsfield units.

make preprocess INPUT=... OUTPUT=out/hu ARGS=--hu
python examples/window_hounsfield.py out/hu
"""

import sys

import numpy as np

import headct


def window(hounsfield: np.ndarray, center: float, width: float) -> np.ndarray:
    """Gray levels uint8: black at center - width/2, white at center + width/2."""
    levels = ((hounsfield - center) / width + 0.5) * 255
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    shards = headct.open(sys.argv[1])
    hounsfield = shards[0]["image"][..., 0] + np.float32(shards.hu_offset)
    brain, stroke = window(hounsfield, 40, 80), window(hounsfield, 40, 40)
    print(
        f"{hounsfield.min():.0f} to {hounsfield.max():.0f} HU; brain {brain.shape}, {brain.dtype}"
    )
    print(f"gray levels between black and white: {np.mean((stroke > 0) & (stroke < 255)):.1%}")

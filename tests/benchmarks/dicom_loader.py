"""A loader that reads DICOM files in every epoch, as a PyTorch Dataset would; no TensorFlow."""

import os
import weakref
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom

WINDOWS = ((40, 80), (80, 200), (600, 2800))


class DicomLoader:
    """Resized slices, by a process a core; they start before any epoch, and end with the loader."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths = [str(path) for path in paths]
        self.load = partial(load_slice, size=size)
        self.pool = get_context("spawn").Pool(len(os.sched_getaffinity(0)))
        weakref.finalize(self, self.pool.terminate)

    def epoch(self) -> int:
        """Reads all; how many there were."""
        return sum(1 for _ in self.pool.imap(self.load, self.paths, chunksize=8))


def load_slice(path: str, size: int) -> Any:
    dataset = pydicom.dcmread(path)
    hounsfield = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    levels = [
        np.clip((hounsfield - center + width / 2) / width, 0, 1) * 255 for center, width in WINDOWS
    ]
    return cv2.resize(np.stack(levels, axis=-1).astype(np.uint8), (size, size))

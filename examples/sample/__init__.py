"""A synthetic head-CT data set in the form Kaggle distributes RSNA 2019.

    python -m examples.sample --output DIR [--patients 72] [--slices 20] [--seed 0] [--scans]

A seeded phantom, not a simulation of physics: signed distances (`fields`) describe a head
(`anatomy`) with bleeds (`hemorrhage`), `scanner` scans and encodes its slices, and `writer` writes
a data set, whole or recognizably unfinished. It contains no real person's data.
"""

from examples.sample.writer import SampleError, SampleSummary, write_sample

__all__ = ["SampleError", "SampleSummary", "write_sample"]

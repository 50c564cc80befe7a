"""A synthetic head-CT data set in the form Kaggle distributes RSNA 2019.

    python -m examples.sample --output DIR [--patients 72] [--slices 20] [--seed 0]

A seeded phantom, not a simulation of physics: signed distances (`fields`) make a head (`anatomy`)
with bleeds (`hemorrhage`), a slice of which is scanned and encoded (`scanner`), and a data set is
written whole or recognizably unfinished (`writer`). It holds no real person's data.
"""

from examples.sample.writer import SampleError, SampleSummary, write_sample

__all__ = ["SampleError", "SampleSummary", "write_sample"]

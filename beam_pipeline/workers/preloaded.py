"""Imported by the process that workers are forked from: reads the directory of an archive once."""

import os

from beam_pipeline.workers.pool import INPUT_VARIABLE
from headct.stores import load_archive

load_archive(os.environ.get(INPUT_VARIABLE, ""))

"""Imported by the process that workers are forked from, for what all of them are to have ready."""

import os

from beam_pipeline.workers.process import INPUT_VARIABLE
from headct.stores import load_archive

load_archive(os.environ.get(INPUT_VARIABLE, ""))

"""Imported by the workers' fork server: reads an archive's directory once for all workers."""

import os

from beam_pipeline.workers.pool import INPUT_VARIABLE
from headct.stores import load_archive

load_archive(os.environ.get(INPUT_VARIABLE, ""))

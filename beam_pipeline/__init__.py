"""Head-CT DICOM files to windowed PNG tensors in stratified TFRecord shards.

Python interface (the command line is `python -m beam_pipeline`):

    import beam_pipeline

    print(beam_pipeline.inspect("slices", labels="labels.csv"))  # what preprocess would do
    manifest = beam_pipeline.preprocess("slices", "out/shards", labels="labels.csv", folds=5)
    manifest["counts"]["written"]
    slice = beam_pipeline.read_slice("slices/ID_0123.dcm")
    slice.hounsfield  # float32 [rows, columns]

Import and functions leave the process unchanged: environment variables, signal handlers, log
settings and standard streams. `inspect` and `preprocess` start worker processes.
"""

from typing import TYPE_CHECKING, Any

from headct import __version__ as __version__

if TYPE_CHECKING:
    from beam_pipeline.api import CTSlice, Inspection, inspect, preprocess, read_slice

__all__ = ["CTSlice", "Inspection", "inspect", "preprocess", "read_slice"]


def __getattr__(name: str) -> Any:
    """Import public names lazily: workers do not need them."""
    if name not in __all__:
        raise AttributeError(f"module 'beam_pipeline' has no attribute {name!r}")
    from beam_pipeline import api

    return getattr(api, name)

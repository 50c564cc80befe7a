"""Head-CT DICOM files to windowed PNG tensors in stratified TFRecord shards."""

__version__ = "0.1.0"

"""Head-CT DICOM files to windowed PNG tensors in stratified TFRecord shards."""

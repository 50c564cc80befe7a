"""Reader of CT slices from DICOM bytes, and reasons to reject files.

In order: `dataset` parses a file up to its pixels and contains failures of third-party parsers,
`header` checks that a file is a CT slice, `slices` decodes its pixels, and `hounsfield` repairs and
rescales stored values.
"""

"""Reader of CT slices from DICOM bytes, and reasons to reject files.

In order: `dataset` parses a file up to its pixels and contains failures of third-party parsers,
`attributes` reads values, `header` checks that a file is a CT slice, `pixels` decodes with the help
of `codestream`, `slices` reads a slice, and `hounsfield` repairs and rescales stored values.
"""

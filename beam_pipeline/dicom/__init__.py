"""DICOM bytes to CT slices, or the reason why a file is rejected.

In this order: `dataset` parses a file up to its pixels and contains what third-party parsers do,
`attributes` reads values, `header` checks what makes a CT slice, `pixels` decodes with the help of
`codestream`, `slices` reads a slice, and `hounsfield` repairs and rescales stored values.
"""

"""DICOM bytes to what the pipeline needs of them, or the reason why they are of no use.

`dataset` parses a file up to its pixels, `attributes` reads values, `pixels` decodes with what
`codestream` says of compressed images, `third_party` contains what other readers do with broken
files, and `slices` says what makes a file a CT slice.
"""

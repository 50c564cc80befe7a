"""Verification of a shard directory: checksums, then consistency of all values.

`verification` runs the checks in order, and stops at a manifest that violates its schema
(`manifest_schema.json`). `description` checks the index, the rejects and the metadata; `shard`
checks every record; `source` compares pixels with the DICOM files; `splits` checks all records
together. `findings` collects problems.
"""

"""Read a shard directory back and check it: checksums first, then every value against the others.

`verification` has the order of the checks. It stops at a manifest that its schema
(`manifest_schema.json`) does not allow; else `description` checks the index, the rejects and the
metadata, `shard` every record, `source` pixels against the DICOM files, `splits` all records
together. `findings` collects what is wrong.
"""

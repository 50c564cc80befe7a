"""Verification of a shard directory: checksums, then consistency of all values."""

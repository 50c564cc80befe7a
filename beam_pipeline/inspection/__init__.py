"""Inspection of an input before a run: what would be written, excluded and rejected."""

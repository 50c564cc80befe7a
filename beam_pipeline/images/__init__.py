"""Conversion of a CT slice to the stored image."""

"""A slice to the image that is stored."""

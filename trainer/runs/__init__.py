"""A run directory: what it is, what is in it, who works on it."""

"""Predictions of a saved run, and figures of them."""

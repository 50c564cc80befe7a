"""Predictions of a saved run: metrics, calibration, submissions and exported models."""

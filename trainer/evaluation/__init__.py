"""Predictions of a saved run: their figures and calibration, submissions, exported models."""

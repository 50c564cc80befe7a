"""Shards, wherever they are, to batches of images and labels."""

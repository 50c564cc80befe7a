"""From a stored image to logits: layers, backbones, saved models, and the devices they run on.

Imports `trainer.data` and the modules at the top of `trainer`.
"""

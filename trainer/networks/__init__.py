"""Networks: layers, backbones, the classifier, saved models, and devices.

Imports `trainer.data` and the modules at the top of `trainer`.
"""

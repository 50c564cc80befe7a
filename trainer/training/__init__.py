"""Training: the model's step, the loop around it, the input of both, and cross-validation.

The top of the trainer: imports every other room.
"""

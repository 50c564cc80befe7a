"""Training: the training step, the loop, the input, and cross-validation.

May import every other package of the trainer.
"""

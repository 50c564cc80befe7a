"""Run directories: files, checkpoints and training patients; the setup of commands.

Imports `trainer.data`, `trainer.networks.catalog` and the modules at the top of `trainer`.
"""

"""Run directories: their files, checkpoints and training patients, and the setup of commands.

Imports `trainer.data`, `trainer.networks.catalog` and the modules at the top of `trainer`.
"""

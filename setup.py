"""For Beam's --setup_file, which wants this file; everything is declared in pyproject.toml."""

from setuptools import setup

setup()

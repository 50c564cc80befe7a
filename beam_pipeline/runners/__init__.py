"""Beam runners: the list of runners, and a job from submission to its end.

Functions import Beam, so that errors of options appear before Beam has loaded.
"""

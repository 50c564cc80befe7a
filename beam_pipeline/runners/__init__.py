"""Beam runners: which there are, and a job on one of them from submission to its end.

Beam is imported inside functions, so that a wrong option is answered before Beam has loaded.
"""

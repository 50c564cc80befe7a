"""Beam runners: how a job is started, watched and ended."""

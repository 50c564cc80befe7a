"""Shards, and what describes them."""

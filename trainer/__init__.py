"""Streams a shard directory through a GPU-resident network."""

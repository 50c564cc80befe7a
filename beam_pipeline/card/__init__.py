"""Data card of a shard directory: one page about the input and the output of a run."""

"""The formats of a shard directory's files, and of one that is not finished."""

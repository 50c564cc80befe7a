"""The shard directory: formats, the tables of an unfinished one, shards, manifest, completion.

`finish` completes a directory, with the data card; the other modules know neither planning nor the
card.
"""

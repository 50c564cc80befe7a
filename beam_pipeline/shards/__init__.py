"""The shard directory: formats, tables of an unfinished directory, shards, manifest.

The modules depend neither on planning nor on the data card; `beam_pipeline.finish` completes a
directory.
"""

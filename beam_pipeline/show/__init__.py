"""`headct show`: one image of a shard directory, with its row of the index."""

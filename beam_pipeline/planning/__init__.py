"""Planning: headers and labels to the split and shard of each slice."""

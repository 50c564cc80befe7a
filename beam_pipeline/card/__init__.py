"""The data card of a shard directory: one page that shows what went in and what came out."""

"""Reads a shard directory back and checks all of it.

`directory` has the order of the work; `claims` reads what the manifest says, `description`,
`index`, `shard`, `splits` and `source` hold the rest against it, `findings` collects what is wrong,
and `report` shows it.
"""

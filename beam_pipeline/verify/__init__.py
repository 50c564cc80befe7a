"""Reads a shard directory back and checks all of it: bytes by their SHA-256, then what they say.

`directory` has the order of the work. `claims` reads the manifest, and holds it against its schema
(`manifest.json` here), its digest and its own arithmetic. `description`, `index`, `shard`, `splits`
and `source` hold the rest against it, `findings` collects what is wrong, and `report` shows it.
"""

"""Files on local disks, in ZIP archives and in buckets.

`protocol` defines the interface of stores; `local`, `archives` and `buckets` are the three kinds,
and `urls` finds the store of a path or URL. `input_output` reads the input and writes the output.

An OSError concerns one file, a StoreError the whole store. Transient failures (timeouts, statuses
from 500, broken connections) are retried, until they end in a StoreError.
"""

from headct.stores.input_output import Folder, InputFiles, Reading, digest_file, find_input
from headct.stores.protocol import (
    DEFAULT_PATIENCE,
    FileInfo,
    Range,
    decode_source,
    encode_source,
    show_source,
)
from headct.stores.urls import (
    REMOTE_SCHEMES,
    find_store,
    is_local,
    load_archive,
    open_file,
    read_ranges,
)

__all__ = [
    "DEFAULT_PATIENCE",
    "REMOTE_SCHEMES",
    "FileInfo",
    "Folder",
    "InputFiles",
    "Range",
    "Reading",
    "decode_source",
    "digest_file",
    "encode_source",
    "find_input",
    "find_store",
    "is_local",
    "load_archive",
    "open_file",
    "read_ranges",
    "show_source",
]

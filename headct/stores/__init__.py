"""Files on local disks, in ZIP archives and in buckets.

`protocol` defines the interface of stores; `local`, `archives` and `buckets` are the three kinds,
and `urls` finds the store of a path or URL. On top, `input_files` reads the input, and `folder`
writes the output.

An OSError concerns one file, a StoreError the whole store. `retries` retries transient failures
(timeouts, statuses from 500, broken connections), until they end in a StoreError.
"""

from headct.stores.folder import Folder, digest_file
from headct.stores.input_files import InputFiles, Reading, find_input
from headct.stores.protocol import FileInfo, decode_source, encode_source, show_source
from headct.stores.retries import DEFAULT_PATIENCE
from headct.stores.urls import REMOTE_SCHEMES, find_store, is_local, load_archive, open_file

__all__ = [
    "DEFAULT_PATIENCE",
    "REMOTE_SCHEMES",
    "FileInfo",
    "Folder",
    "InputFiles",
    "Reading",
    "decode_source",
    "digest_file",
    "encode_source",
    "find_input",
    "find_store",
    "is_local",
    "load_archive",
    "open_file",
    "show_source",
]

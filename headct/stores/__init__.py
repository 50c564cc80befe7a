"""Files on local disks, in ZIP archives and in buckets.

`protocol` says what a store can do; `local`, `archives` and `buckets` are the three kinds, and
`urls` finds the store of a path or URL. Above them, `input_files` reads the input, and `folder`
writes the output.

A failure is an OSError, the fault of one file, or a StoreError, that of the store. Failures that
may pass (time-outs, answers of 500 and more, broken connections) are retried as `retries` says, and
end in a StoreError.
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

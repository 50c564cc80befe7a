"""Files, wherever they are: a path of this machine, or a URL of an object store.

`protocol` says what a store can do; `local` and `remote` are the two kinds, `archive` reads ZIP
archives, and `stores` finds the one of a path or URL. Above them, `inputs` reads the files of the
input, and `folder` writes those of the output.

Failures are of two kinds, and every function says which it raises: an OSError is the fault of one
file, a StoreError that of the store. What may pass (a time-out, a 5xx, a connection that breaks) is
tried again until patience is at an end, and is a StoreError then.
"""

from headct.stores.folder import Folder
from headct.stores.inputs import InputFiles, find_input
from headct.stores.protocol import FileInfo
from headct.stores.stores import REMOTE_SCHEMES, is_local, load_archive, open_file

__all__ = [
    "REMOTE_SCHEMES",
    "FileInfo",
    "Folder",
    "InputFiles",
    "find_input",
    "is_local",
    "load_archive",
    "open_file",
]

"""Compressed files, recognized by their first bytes, whatever they are called."""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import pyarrow as pa

_LAYERS = 3  # a .csv.gz in a .zip
_MAGIC_BYTES = 16
# What office programs keep in a ZIP archive, by a member that only they have.
_DOCUMENTS = (
    ("xl/", "an Excel workbook"),
    ("content.xml", "an OpenDocument file"),
)
_NEEDS_PASSWORD = 1  # flag of a member


@contextmanager
def decompressed(file: BinaryIO) -> Iterator[io.BufferedReader]:
    """A file's content: what is in it if it is of gzip, bzip2, xz, Zstandard or a ZIP archive.

    Raises:
        OSError: it is damaged, also where this is found while it is read in the block; so for an
            archive of several files, or one that needs a password.
    """
    try:
        yield _decompressed(file)
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise OSError(f"it is damaged or cut ({error})") from None


def _decompressed(file: BinaryIO) -> io.BufferedReader:
    content = io.BufferedReader(cast(Any, file))
    for _ in range(_LAYERS):
        head = content.peek(_MAGIC_BYTES)
        opener = next((opener for magic, opener in _OPENERS if head.startswith(magic)), None)
        if opener is None:
            break
        content = io.BufferedReader(opener(content))
    return content


def _only_member(file: Any) -> Any:
    archive = zipfile.ZipFile(file)
    for member, document in _DOCUMENTS:
        if any(name.startswith(member) for name in archive.namelist()):
            raise OSError(f"it is {document}; save its sheet as CSV")
    # The Finder of macOS adds a folder of its own.
    infos = [i for i in archive.infolist() if not i.is_dir() and i.filename[:9] != "__MACOSX/"]
    if len(infos) != 1:
        raise OSError(f"the archive holds {len(infos)} files, not one")
    if infos[0].flag_bits & _NEEDS_PASSWORD:
        raise OSError("the archive needs a password")
    try:
        return archive.open(infos[0])
    except NotImplementedError:
        raise OSError("the archive's compression is not supported; use Deflate") from None


_OPENERS: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b\x08", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
    (b"\x28\xb5\x2f\xfd", lambda file: pa.CompressedInputStream(file, "zstd")),
    (b"PK\x03\x04", _only_member),
    (b"PK\x05\x06", _only_member),  # an archive without members
)

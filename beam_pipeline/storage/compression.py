"""Compressed tables, recognized by their names."""

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa


@contextmanager
def decompressed(file: BinaryIO, name: str) -> Iterator[Any]:
    """A file's content, decompressed if its name ends in .gz, .bz2, .xz, .zst or .zip.

    Raises:
        OSError: it is not compressed in this way, or damaged, also while it is read in the block;
            so for an archive of several files, or one that needs a password.
    """
    try:
        yield _open(file, PurePosixPath(name).suffix.lower())
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise OSError(f"damaged or cut ({error})") from None


def _open(file: BinaryIO, suffix: str) -> Any:
    if suffix == ".gz":
        return gzip.open(file)
    if suffix == ".bz2":
        return bz2.open(file)
    if suffix == ".xz":
        return lzma.open(file)
    if suffix == ".zst":
        return pa.CompressedInputStream(file, "zstd")
    return _only_member(zipfile.ZipFile(file)) if suffix == ".zip" else file


def _only_member(archive: zipfile.ZipFile) -> Any:
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    if len(names) != 1:
        raise OSError(f"the archive holds {len(names)} files, not one")
    try:
        return archive.open(names[0])
    except RuntimeError:
        raise OSError("the archive needs a password") from None

"""Compressed tables, recognized by their names."""

import bz2
import gzip
import lzma
import zipfile
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa


def decompress(file: BinaryIO, name: str) -> Any:
    """A file's content, decompressed if its name ends in .gz, .bz2, .xz, .zst or .zip.

    Raises:
        OSError: it is not compressed in this way; so for an archive of several files.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".gz":
        return gzip.open(file)
    if suffix == ".bz2":
        return bz2.open(file)
    if suffix == ".xz":
        return lzma.open(file)
    if suffix == ".zst":
        return pa.CompressedInputStream(file, "zstd")
    if suffix == ".zip":
        return _only_member(file)
    return file


def _only_member(file: BinaryIO) -> Any:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise OSError(str(error)) from None
    if len(archive.namelist()) != 1:
        raise OSError(f"the archive holds {len(archive.namelist())} files, not one")
    return archive.open(archive.namelist()[0])

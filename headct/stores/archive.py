"""Files in a ZIP archive of this machine, read where they are, by any number of processes."""

import errno
import gc
import io
import struct
import zipfile
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from isal import isal_zlib
from numpy.typing import NDArray

from headct.errors import StoreError, UsageError
from headct.stores.local import LocalStore
from headct.stores.protocol import FileInfo
from headct.stores.sources import decode_source, encode_source

SUFFIX = ".zip"

_INFLATE_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment] # wrong in its stubs
_ENCRYPTED = 1  # bit of a member's flags
# A member's header, which its bytes follow; 4.3.7 of PKWARE's APPNOTE.TXT.
_HEADER = struct.Struct("<4s22xHH")
_SIGNATURE = b"PK\3\4"
# What can be read: bytes of a file to those in the archive, at most.
_RATIOS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
_PIECE = 1 << 15  # compressed bytes that are read at a time, where the first of a file are wanted
_ODD = frozenset({"", ".", ".."})  # parts of a path that lead nowhere
_LISTED = 1 << 12  # names that are taken out of the directory at a time

_MEMBER = np.dtype(
    [
        ("start", np.int64),  # of the header
        ("stored", np.int64),  # bytes in the archive
        ("size", np.int64),  # bytes of the file
        ("crc", np.uint32),
        ("method", np.uint16),
        ("flags", np.uint16),
    ]
)
# Of zipfile.ZipInfo.
_ATTRIBUTES = {
    "start": "header_offset",
    "stored": "compress_size",
    "size": "file_size",
    "crc": "CRC",
    "method": "compress_type",
    "flags": "flag_bits",
}


@dataclass(frozen=True)
class _Directory:
    """What an archive holds: for a million files no more than their names and 32 bytes each."""

    names: pa.LargeBinaryArray  # sorted
    members: NDArray[Any]  # of _MEMBER, one per name

    def first(self, name: bytes) -> int:
        """The place of the first name that is not before this one."""
        return bisect_left(range(len(self.names)), name, key=lambda at: self.names[at].as_py())

    def starts_with(self, at: int, prefix: bytes) -> bool:
        """Whether there is a name at a place, and it begins so."""
        return at < len(self.names) and bool(self.names[at].as_py().startswith(prefix))

    def find(self, name: bytes) -> Any:
        """A file's entry, or None."""
        at = self.first(name)
        found = at < len(self.names) and self.names[at].as_py() == name
        return self.members[at] if found else None


class ArchiveStore:
    """The files of a ZIP archive, under paths relative to its top.

    Args:
        archive: its absolute path.
        patience: seconds after which the disk or network that it is on is given up.
    """

    readers = LocalStore.readers
    read_together = LocalStore.read_together
    ranged_readers = LocalStore.ranged_readers

    def __init__(self, archive: str, patience: float) -> None:
        self._archive = archive
        self._disk = LocalStore(patience)

    def _directory(self) -> _Directory:
        return _read_directory(self._archive, self._info().version)

    def _info(self) -> FileInfo:
        info = self._disk.info(self._archive)
        if info is None:
            raise StoreError(self._archive, "is gone")
        return info

    def list(self, folder: str) -> Iterator[FileInfo]:
        """See ReadableStore.

        Raises:
            UsageError: it is no ZIP archive.
            StoreError: it cannot be read.
        """
        directory = self._directory()
        prefix = encode_source(f"{folder}/" if folder else "")
        at = directory.first(prefix)
        while names := directory.names[at : at + _LISTED].to_pylist():
            members = directory.members[at : at + _LISTED]
            sizes, checksums = members["size"].tolist(), members["crc"].tolist()
            for name, size, crc in zip(names, sizes, checksums, strict=True):
                if not name.startswith(prefix):
                    return
                path = decode_source(name[len(prefix) :])
                if not (path.startswith(".") or "/." in path):
                    yield FileInfo(path, size, _version(crc))
            at += _LISTED

    def info(self, path: str) -> FileInfo | None:
        """See ReadableStore; raises as `list` does."""
        member = self._directory().find(encode_source(path))
        if member is None:
            return None
        return FileInfo(path, int(member["size"]), _version(int(member["crc"])))

    def check_reachable(self, path: str) -> None:
        """See ReadableStore. Every request raises StoreError where the archive is gone."""

    def is_folder(self, path: str) -> bool:
        """See ReadableStore; raises as `list` does. The archive itself is one."""
        directory, prefix = self._directory(), encode_source(f"{path}/")
        return not path or directory.starts_with(directory.first(prefix), prefix)

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """See ReadableStore. A file that is read whole is compared with its checksum.

        Raises:
            OSError: there is no such file, or it is damaged, encrypted or compressed in another way
                than by Deflate.
            StoreError: the archive cannot be read.
        """
        archive = self._info()
        member = _read_directory(self._archive, archive.version).find(encode_source(path))
        if member is None:
            raise FileNotFoundError(errno.ENOENT, "No such file in the archive")
        if member["flags"] & _ENCRYPTED:
            raise OSError(errno.EACCES, "Encrypted in the archive")
        if member["method"] not in _RATIOS:
            raise OSError(errno.ENOTSUP, "Compressed in the archive in a way that is not supported")
        size, stored = int(member["size"]), int(member["stored"])
        # What a damaged directory says need not fit into the memory.
        most = stored * _RATIOS[int(member["method"])]
        if int(member["start"]) + stored > archive.size or size > most:
            raise OSError(errno.EIO, "Damaged in the archive")
        end = size if length is None else min(start + length, size)
        first = self._first_byte(int(member["start"]))
        if member["method"] == zipfile.ZIP_STORED:
            data = self._disk.read(self._archive, first + start, max(end - start, 0))
        else:
            data = self._inflate(first, stored, end)[start:]
        whole = start == 0 and end == size
        if len(data) < end - start or (whole and isal_zlib.crc32(data) != member["crc"]):
            raise OSError(errno.EIO, "Damaged in the archive")
        return data

    def _first_byte(self, header: int) -> int:
        """Where a member's bytes begin."""
        data = self._disk.read(self._archive, header, _HEADER.size)
        if len(data) < _HEADER.size or not data.startswith(_SIGNATURE):
            raise OSError(errno.EIO, "Damaged in the archive")
        _, name, extra = _HEADER.unpack(data)
        return header + _HEADER.size + int(name) + int(extra)

    def _inflate(self, first: int, stored: int, wanted: int) -> bytes:
        """The first bytes of a member, as many as are wanted or as there are."""
        inflater = isal_zlib.decompressobj(wbits=-15)
        pieces: list[bytes] = []
        missing = wanted
        at, end = first, first + stored
        # All at once where all is wanted; else in pieces, since a header is in the first of them.
        piece = _PIECE if wanted < stored else stored
        try:
            while missing > 0 and at < end and not inflater.eof:
                data = self._disk.read(self._archive, at, min(piece, end - at))
                pieces.append(inflater.decompress(data, missing))
                missing -= len(pieces[-1])
                at += piece
        except _INFLATE_ERROR:
            raise OSError(errno.EIO, "Damaged in the archive") from None
        return b"".join(pieces)

    def open(self, path: str) -> BinaryIO:
        """See ReadableStore; raises as `read` does."""
        return io.BytesIO(self.read(path))


def split_archive(path: str) -> tuple[str, str] | None:
    """The archive that a path leads into, and the path in it; None if there is none.

    Args:
        path: absolute.
    """
    parts = path.split("/")
    for number, part in enumerate(parts, start=1):
        if part.lower().endswith(SUFFIX):
            archive = "/".join(parts[:number])
            if LocalStore(0.0).info(archive) is not None:
                return archive, "/".join(parts[number:])
    return None


def _version(crc: int) -> str:
    return f"{crc:08x}"


@lru_cache(maxsize=2)
def _read_directory(archive: str, version: str) -> _Directory:
    """An archive's directory, read once; `version` is what the file system says of the file."""
    try:
        names, members = _parse_directory(archive)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        name = PurePosixPath(archive).name
        raise UsageError(
            f"{name} cannot be read as a ZIP archive ({error}); was it copied whole?"
        ) from None
    except OSError as error:
        raise StoreError(archive, error.strerror or type(error).__name__) from None
    # Of several with one name the last counts, as where they are unpacked.
    places = {name: at for at, name in enumerate(names)}
    order = sorted(places)
    return _Directory(
        pa.array(order, pa.large_binary()),
        members[np.fromiter(map(places.__getitem__, order), np.int64, len(order))],
    )


def _parse_directory(archive: str) -> tuple[list[bytes], NDArray[Any]]:
    """The names in an archive's own order, and what is said of each: [files] of _MEMBER."""
    with _no_collection(), zipfile.ZipFile(archive) as file:
        infos = [info for info in file.infolist() if not info.filename.endswith("/")]
        members = np.empty(len(infos), _MEMBER)
        for field, attribute in _ATTRIBUTES.items():
            values = map(attrgetter(attribute), infos)
            members[field] = np.fromiter(values, np.int64, len(infos))
        names = [_name(info) for info in infos]
    if b"" in names:
        raise zipfile.BadZipFile("a file has no name")
    return names, members


@contextmanager
def _no_collection() -> Iterator[None]:
    """Else the collector looks through a million new objects again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _name(info: zipfile.ZipInfo) -> bytes:
    parts = info.filename.split("/")
    if _ODD.isdisjoint(parts):
        return encode_source(info.filename)
    return encode_source("/".join(part for part in parts if part not in _ODD))

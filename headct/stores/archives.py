"""Files in ZIP archives, read without unpacking, and compressed files."""

import bz2
import errno
import gc
import gzip
import io
import lzma
import struct
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
from isal import isal_zlib
from numpy.typing import NDArray

from headct.errors import StoreError, UsageError
from headct.stores.local import LocalStore
from headct.stores.protocol import FileInfo, ReadableStore, decode_source, encode_source

_SUFFIX = ".zip"

_INFLATE_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment] # wrong in its stubs
_ENCRYPTED = 1  # bit of a member's flags
# The header in front of a member's bytes; 4.3.7 of PKWARE's APPNOTE.TXT.
_HEADER = struct.Struct("<4s22xHH")
_SIGNATURE = b"PK\3\4"
# Supported methods: largest ratio of a file's bytes to its compressed bytes.
_RATIOS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
_CHUNK = 1 << 15  # compressed bytes per read, to read only the start of a file
_DROPPED = frozenset({"", ".", ".."})  # path components without meaning
_BATCH = 1 << 12  # names per step of a listing

_MEMBER = np.dtype(
    [
        ("start", np.int64),  # offset of the header
        ("stored", np.int64),  # compressed bytes
        ("size", np.int64),  # bytes
        ("crc", np.uint32),
        ("method", np.uint16),
        ("flags", np.uint16),
    ]
)
# Attributes of zipfile.ZipInfo.
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
    """The directory of an archive, in 32 bytes per file and the names."""

    names: pa.LargeBinaryArray  # sorted
    members: NDArray[Any]  # dtype _MEMBER, one per name

    def first(self, name: bytes) -> int:
        """Return the index of the first name that is at least `name`."""
        return bisect_left(range(len(self.names)), name, key=lambda at: self.names[at].as_py())

    def starts_with(self, at: int, prefix: bytes) -> bool:
        """Return whether the name at an index exists and starts with a prefix."""
        return at < len(self.names) and bool(self.names[at].as_py().startswith(prefix))

    def find(self, name: bytes) -> Any:
        """Return the entry of a file, or None."""
        at = self.first(name)
        exists = at < len(self.names) and self.names[at].as_py() == name
        return self.members[at] if exists else None


class ArchiveStore(ReadableStore):
    """The files of a ZIP archive, under paths relative to its top.

    Args:
        archive: its absolute path.
        patience: time limit of retries on a failing disk or network, seconds.
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
        """List files.

        Raises:
            UsageError: this is not a ZIP archive.
            StoreError: the archive cannot be read.
        """
        directory = self._directory()
        prefix = encode_source(f"{folder}/" if folder else "")
        at = directory.first(prefix)
        while names := directory.names[at : at + _BATCH].to_pylist():
            members = directory.members[at : at + _BATCH]
            sizes, checksums = members["size"].tolist(), members["crc"].tolist()
            for name, size, crc in zip(names, sizes, checksums, strict=True):
                if not name.startswith(prefix):
                    return
                path = decode_source(name[len(prefix) :])
                if not (path.startswith(".") or "/." in path):
                    yield FileInfo(path, size, _version(crc))
            at += _BATCH

    def info(self, path: str) -> FileInfo | None:
        member = self._directory().find(encode_source(path))
        if member is None:
            return None
        return FileInfo(path, int(member["size"]), _version(int(member["crc"])))

    def check_reachable(self, path: str) -> None:
        """Do nothing: every request raises StoreError if the archive is gone."""

    def is_folder(self, path: str) -> bool:
        directory, prefix = self._directory(), encode_source(f"{path}/")
        return not path or directory.starts_with(directory.first(prefix), prefix)

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a file's bytes, or a range of them; verify the checksum of a whole file.

        Raises:
            OSError: the file is missing, damaged, encrypted or not compressed by Deflate.
            StoreError: the archive cannot be read.
        """
        archive = self._info()
        member = _read_directory(self._archive, archive.version).find(encode_source(path))
        if member is None:
            raise FileNotFoundError(errno.ENOENT, "No such file in the archive")
        if member["flags"] & _ENCRYPTED:
            raise OSError(errno.EACCES, "Encrypted in the archive")
        if member["method"] not in _RATIOS:
            raise OSError(errno.ENOTSUP, "Compressed in the archive by an unsupported method")
        size, stored = int(member["size"]), int(member["stored"])
        # A damaged directory may claim sizes that do not fit into memory.
        limit = stored * _RATIOS[int(member["method"])]
        if int(member["start"]) + stored > archive.size or size > limit:
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
        """Return the offset of a member's first byte."""
        data = self._disk.read(self._archive, header, _HEADER.size)
        if len(data) < _HEADER.size or not data.startswith(_SIGNATURE):
            raise OSError(errno.EIO, "Damaged in the archive")
        _, name, extra = _HEADER.unpack(data)
        return header + _HEADER.size + int(name) + int(extra)

    def _inflate(self, first: int, stored: int, wanted: int) -> bytes:
        """Decompress the first `wanted` bytes of a member, or all."""
        inflater = isal_zlib.decompressobj(wbits=-15)
        chunks: list[bytes] = []
        missing = wanted
        at, end = first, first + stored
        step = _CHUNK if wanted < stored else stored
        try:
            while missing > 0 and at < end and not inflater.eof:
                data = self._disk.read(self._archive, at, min(step, end - at))
                chunks.append(inflater.decompress(data, missing))
                missing -= len(chunks[-1])
                at += step
        except _INFLATE_ERROR:
            raise OSError(errno.EIO, "Damaged in the archive") from None
        return b"".join(chunks)

    def open(self, path: str) -> BinaryIO:
        return io.BytesIO(self.read(path))


def split_archive(path: str) -> tuple[str, str] | None:
    """Return the archive in an absolute path, and the path in the archive; None if none."""
    names = path.split("/")
    for number, name in enumerate(names, start=1):
        if name.lower().endswith(_SUFFIX):
            archive = "/".join(names[:number])
            if LocalStore(0.0).info(archive) is not None:
                return archive, "/".join(names[number:])
    return None


def _version(crc: int) -> str:
    return f"{crc:08x}"


@lru_cache(maxsize=2)
def _read_directory(archive: str, version: str) -> _Directory:
    """Read the directory of an archive, once per version of its file."""
    try:
        names, members = _parse_directory(archive)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        name = PurePosixPath(archive).name
        raise UsageError(
            f"{name} cannot be read as a ZIP archive ({error}); was it copied whole?"
        ) from None
    except OSError as error:
        raise StoreError(archive, error.strerror or type(error).__name__) from None
    # the last member with a name wins, as in unpacking
    indices = {name: at for at, name in enumerate(names)}
    order = sorted(indices)
    return _Directory(
        pa.array(order, pa.large_binary()),
        members[np.fromiter(map(indices.__getitem__, order), np.int64, len(order))],
    )


def _parse_directory(archive: str) -> tuple[list[bytes], NDArray[Any]]:
    """Return the names and members of an archive, in its own order."""
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
    """Pause garbage collection: it would repeatedly scan a million new objects."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _name(info: zipfile.ZipInfo) -> bytes:
    names = info.filename.split("/")
    return encode_source("/".join(name for name in names if name not in _DROPPED))


# Compressed files

_LAYERS = 3  # for example a .csv.gz in a .zip
_MAGIC_BYTES = 16
# Documents that are ZIP archives, by a characteristic member.
_DOCUMENTS = (
    ("xl/", "an Excel workbook"),
    ("content.xml", "an OpenDocument file"),
)


@contextmanager
def decompressed(file: BinaryIO) -> Iterator[io.BufferedReader]:
    """Decompress a file of gzip, bzip2, xz, Zstandard or ZIP, recognized by its first bytes.

    Raises:
        OSError: the file is damaged (also when the block reads), an archive of several files, or
            encrypted.
    """
    try:
        content = io.BufferedReader(cast(Any, file))
        for _ in range(_LAYERS):
            head = content.peek(_MAGIC_BYTES)
            opener = next((opener for magic, opener in _OPENERS if head.startswith(magic)), None)
            if opener is None:
                break
            content = io.BufferedReader(opener(content))
        yield content
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise OSError(f"it is damaged or cut ({error})") from None


def _open_only_member(file: Any) -> Any:
    archive = zipfile.ZipFile(file)
    for member, document in _DOCUMENTS:
        if any(name.startswith(member) for name in archive.namelist()):
            raise OSError(f"it is {document}; save its sheet as CSV")
    # The Finder of macOS adds a folder.
    infos = [i for i in archive.infolist() if not i.is_dir() and i.filename[:9] != "__MACOSX/"]
    if len(infos) != 1:
        raise OSError(f"the archive holds {len(infos)} files, not one")
    if infos[0].flag_bits & _ENCRYPTED:
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
    (b"PK\x03\x04", _open_only_member),
    (b"PK\x05\x06", _open_only_member),  # an archive without members
)

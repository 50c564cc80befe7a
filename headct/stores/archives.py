"""Files in ZIP archives, read without unpacking, and compressed files."""

import bz2
import errno
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


@dataclass(frozen=True)
class _Directory:
    """The directory of an archive, in 32 bytes per file and the names."""

    names: pa.LargeBinaryArray  # sorted
    members: NDArray[Any]  # dtype _MEMBER, one per name

    def below(self, prefix: bytes) -> range:
        """Return the indices of the names that start with a prefix."""
        rows, last = range(len(self.names)), prefix + b"\xff"  # never in UTF-8
        first = bisect_left(rows, prefix, key=lambda row: self.names[row].as_py())
        return rows[first : bisect_left(rows, last, key=lambda row: self.names[row].as_py())]

    def find(self, name: bytes) -> Any:
        """Return the entry of a file, or None."""
        rows = self.below(name)
        return self.members[rows[0]] if rows and self.names[rows[0]].as_py() == name else None


class ArchiveStore(ReadableStore):
    """The files of a ZIP archive, under paths relative to its top.

    Args:
        archive: its absolute path.
        patience: time limit of retries on a failing disk or network, seconds.
    """

    readers = LocalStore.readers
    ranged_readers = LocalStore.ranged_readers

    def __init__(self, archive: str, patience: float) -> None:
        self._archive = archive
        self._disk = LocalStore(patience)

    def _open(self) -> tuple[int, _Directory]:
        """Return the current size of the archive, and its directory."""
        info = self._disk.info(self._archive)
        if info is None:
            raise StoreError(self._archive, "is gone")
        return info.size, _read_directory(self._archive, info.version)

    def list(self, folder: str) -> Iterator[FileInfo]:
        """List files.

        Raises:
            UsageError: this is not a ZIP archive.
            StoreError: the archive cannot be read.
        """
        _, directory = self._open()
        prefix = encode_source(f"{folder}/" if folder else "")
        for row in directory.below(prefix):
            path = decode_source(directory.names[row].as_py()[len(prefix) :])
            if not (path.startswith(".") or "/." in path):
                yield _describe(path, directory.members[row])

    def info(self, path: str) -> FileInfo | None:
        member = self._open()[1].find(encode_source(path))
        return None if member is None else _describe(path, member)

    def is_folder(self, path: str) -> bool:
        _, directory = self._open()
        return not path or bool(directory.below(encode_source(f"{path}/")))

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a file's bytes, or a range of them; verify the checksum of a whole file.

        Raises:
            OSError: the file is missing, damaged, encrypted or not compressed by Deflate.
            StoreError: the archive cannot be read.
        """
        archive_size, directory = self._open()
        member = directory.find(encode_source(path))
        if member is None:
            raise FileNotFoundError(errno.ENOENT, "No such file in the archive")
        header, stored, size, crc, method, flags = member.item()
        if flags & _ENCRYPTED:
            raise OSError(errno.EACCES, "Encrypted in the archive")
        if method not in _RATIOS:
            raise OSError(errno.ENOTSUP, "Compressed in the archive by an unsupported method")
        # A damaged directory may claim sizes that do not fit into memory.
        if header + stored > archive_size or size > stored * _RATIOS[method]:
            raise OSError(errno.EIO, "Damaged in the archive")
        end = size if length is None else min(start + length, size)
        first = self._first_byte(header)
        if method == zipfile.ZIP_STORED:
            data = self._disk.read(self._archive, first + start, max(end - start, 0))
        else:
            data = self._inflate(first, stored, end)[start:]
        whole = start == 0 and end == size
        if len(data) < end - start or (whole and isal_zlib.crc32(data) != crc):
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


def split_archive(path: str) -> tuple[str, str] | None:
    """Return the archive in an absolute path, and the path in the archive; None if none."""
    names = path.split("/")
    for number, name in enumerate(names, start=1):
        archive = "/".join(names[:number])
        if name.lower().endswith(_SUFFIX) and LocalStore(0.0).info(archive) is not None:
            return archive, "/".join(names[number:])
    return None


def _describe(path: str, member: Any) -> FileInfo:
    return FileInfo(path, int(member["size"]), f"{int(member['crc']):08x}")


@lru_cache(maxsize=2)
def _read_directory(archive: str, version: str) -> _Directory:
    """Read the directory of an archive, once per version of its file."""
    try:
        with zipfile.ZipFile(archive) as file:
            # the last member with a name wins, as in unpacking
            infos = {_name(info): info for info in file.infolist() if info.filename[-1:] != "/"}
        if b"" in infos:
            raise zipfile.BadZipFile("a file has no name")
        names = sorted(infos)
        members = np.fromiter(map(_member, map(infos.__getitem__, names)), _MEMBER, len(names))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        name = PurePosixPath(archive).name
        raise UsageError(
            f"{name} cannot be read as a ZIP archive ({error}); was it copied whole?"
        ) from None
    except OSError as error:
        raise StoreError(archive, error.strerror or type(error).__name__) from None
    return _Directory(pa.array(names, pa.large_binary()), members)


def _name(info: zipfile.ZipInfo) -> bytes:
    """Return the path of a member, without components that have no meaning."""
    names = info.filename.split("/")
    return encode_source("/".join(name for name in names if name not in ("", ".", "..")))


def _member(info: zipfile.ZipInfo) -> tuple[int, ...]:
    """Return a row of _MEMBER."""
    sizes = (info.header_offset, info.compress_size, info.file_size)
    return (*sizes, info.CRC, info.compress_type, info.flag_bits)


# Compressed files

_LAYERS = 3  # for example a .csv.gz in a .zip
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
            head = content.peek()
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
    only = infos.pop()
    if only.flag_bits & _ENCRYPTED:
        raise OSError("the archive needs a password")
    try:
        return archive.open(only)
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

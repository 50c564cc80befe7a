"""The frames of a TFRecord file that may be damaged, read once and hashed on the way."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast

from headct.tfrecord import CorruptRecord, read_record

_CHUNK = 1 << 20


class HashedFile:
    """A file that is read once, from its beginning to its end, and hashed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.position = 0

    def read(self, size: int) -> bytes:
        """The next bytes, fewer at the end."""
        data = self._file.read(size)
        self._hash.update(data)
        self.position += len(data)
        return data

    def skip_to(self, position: float) -> None:
        """Read on to a position, or to the end."""
        while self.read(int(min(_CHUNK, position - self.position))):
            pass

    def finish(self) -> str:
        """Read all that is left; the SHA-256 of the file, in hexadecimal."""
        self.skip_to(math.inf)
        return self._hash.hexdigest()


def read_frames(
    file: HashedFile, rows: Mapping[int, dict[str, Any]]
) -> Iterator[tuple[int, bytes | CorruptRecord]]:
    """Where each frame begins, and its data or what is wrong with it.

    Args:
        file: to read from its beginning.
        rows: of the index, by record: after a frame without a known end, reading resumes where the
            index says that the next one begins, if that is still ahead.
    """
    record = 0
    while True:
        offset = file.position
        try:
            data = read_record(cast(BinaryIO, file), offset)
        except CorruptRecord as error:
            yield offset, error
            if error.end is None:
                row = rows.get(record + 1)
                if row is None or row["offset"] < file.position:
                    return
                file.skip_to(row["offset"])
        else:
            if data is None:
                return
            yield offset, data
        record += 1

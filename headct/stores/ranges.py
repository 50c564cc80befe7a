"""Parallel reading of file ranges in any process, including forked processes."""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from headct.stores.urls import find_store, is_local

Range = tuple[str, int, int | None]  # a file's path in the folder, first byte, number of bytes

_forked = False
_helper: "_Helper | None" = None


def read_ranges(folder: str, ranges: Sequence[Range]) -> list[bytes]:
    """Return ranges of files; a range ends with its file.

    Args:
        folder: path or URL.
        ranges: of files in it.

    Raises:
        OSError: a file is missing or cannot be read.
        UsageError: unknown kind of store.
        StoreError: the store fails or refuses access.
    """
    if not _forked or is_local(folder):
        return _read(folder, ranges)
    global _helper
    if _helper is None:
        _helper = _Helper()
    return _helper.read(folder, ranges)


def _read(folder: str, ranges: Sequence[Range]) -> list[bytes]:
    store, path = find_store(folder)

    def read(part: Range) -> bytes:
        name, start, length = part
        return store.read(f"{path}/{name}" if path else name, start, length)

    if len(ranges) == 1 or not store.ranged_readers:
        return [read(part) for part in ranges]
    with ThreadPoolExecutor(min(store.ranged_readers, len(ranges))) as threads:
        return list(threads.map(read, ranges))


class _Helper:
    """A process that reads for a forked process: obstore's threads do not survive a fork."""

    def __init__(self) -> None:
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import _serve; _serve()"
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def read(self, folder: str, ranges: Sequence[Range]) -> list[bytes]:
        """Call `read_ranges` in the helper; return its result or raise its exception."""
        questions, answers = self._process.stdin, self._process.stdout
        assert questions is not None
        assert answers is not None
        with self._lock:
            pickle.dump((folder, list(ranges)), questions)
            questions.flush()
            result: list[bytes] | Exception = pickle.load(answers)
        if isinstance(result, Exception):
            raise result
        return result


def _serve() -> None:
    """Answer requests of one process until the process ends."""
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    while True:
        try:
            folder, ranges = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        result: Any
        try:
            result = _read(folder, ranges)
        except Exception as error:  # raised again in the calling process
            result = error
        pickle.dump(result, answers)
        answers.flush()


def _after_fork() -> None:
    global _forked, _helper
    _forked, _helper = True, None


os.register_at_fork(after_in_child=_after_fork)

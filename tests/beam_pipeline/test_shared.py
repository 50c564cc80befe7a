import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import pytest

from beam_pipeline.workers import pool
from beam_pipeline.workers.pool import place_sockets
from beam_pipeline.workers.serve import SharedNumbers
from headct.errors import UsageError
from tests.processes import run_python

_POOL = """
import multiprocessing.heap
multiprocessing.heap.Arena._dir_candidates = ["/no/such/folder"]  # as without /dev/shm
from beam_pipeline.workers import WorkerPool
from tests.beam_pipeline.test_workers import upper
print(list(WorkerPool(upper, 1).map([("a", "b"), ("crash", "c")])))
"""


def add(numbers: SharedNumbers) -> None:
    numbers[0] -= 1
    numbers[1] += 1 << 40


def test_two_processes_see_the_same_numbers() -> None:
    before = len([*Path("/proc/self/fd").iterdir()])
    context: Any = multiprocessing.get_context("forkserver")
    numbers = SharedNumbers()
    process = context.Process(target=add, args=(numbers,))
    process.start()
    numbers.close()
    process.join()
    assert (numbers[0], numbers[1]) == (-1, 1 << 40)
    del numbers, process
    assert len([*Path("/proc/self/fd").iterdir()]) <= before + 4  # the server's


def test_workers_need_neither_shared_memory_nor_a_short_folder(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    ended = run_python("-c", _POOL, TMPDIR=str(folder))
    expected = [{"a": "A", "b": "B"}, {"crash": "decoder_crashed", "c": "C"}]
    assert ended.stdout == f"{expected}\n", ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_folder_that_cannot_hold_a_socket_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", None)  # type: ignore[attr-defined]
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 80)
    monkeypatch.setattr(pool, "_SHORT_FOLDERS", ("/no/such/folder",))
    with pytest.raises(UsageError, match=r"^TMPDIR /x{80} is too long .* of at most 71 bytes$"):
        place_sockets()


def test_no_folder_for_temporary_files_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/no/such/folder"])
    with pytest.raises(UsageError, match="set TMPDIR to one"):
        place_sockets()

"""Files of this machine; those of object stores are tested against servers."""

import dataclasses
import errno
import hashlib
import math
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import obstore
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from obstore.exceptions import GenericError, NotSupportedError
from obstore.store import MemoryStore

from headct.errors import HeadctError, ObjectRefused, OutputError, StoreError, UsageError
from headct.reasons import ObjectFault, Reason
from headct.stores import FileInfo, Folder, InputFiles, find_input, is_local, open_file
from headct.stores.buckets import ObjectStore
from headct.stores.local import LocalStore

A_MOMENT = 0.2  # seconds of patience


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.dcm", "a.dcm", "sub/c.dcm", "sub/deep/d.dcm", ".hidden", ".git/e.dcm", "f.txt"):
        write(tmp_path / name, name.encode())
    return tmp_path


def write(path: Path, data: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def paths(text: object) -> list[str]:
    return [info.path for info in InputFiles.parse(str(text)).list()]


def fail(times: float, number: int, action: Callable[..., Any], of: str = "") -> Callable[..., Any]:
    """The action, which fails the first times; only for paths that end so."""
    left = [times]

    def attempt(file: Any, *arguments: Any, **options: Any) -> Any:
        path = Path(f"/proc/self/fd/{file}").readlink() if isinstance(file, int) else file
        if str(path).endswith(of) and left[0] > 0:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return action(file, *arguments, **options)

    return attempt


# What is the input


def test_a_folder_is_all_its_files_but_hidden_ones(tree: Path) -> None:
    assert paths(tree) == ["a.dcm", "b.dcm", "f.txt", "sub/c.dcm", "sub/deep/d.dcm"]
    assert paths(f"{tree}/") == paths(f"file://{tree}") == paths(tree)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.dcm", ["a.dcm", "b.dcm"]),
        ("*/*.dcm", ["sub/c.dcm"]),
        ("**/*.dcm", ["a.dcm", "b.dcm", "sub/c.dcm", "sub/deep/d.dcm"]),
        ("sub/**/*.dcm", ["sub/c.dcm", "sub/deep/d.dcm"]),
        ("**/deep/*", ["sub/deep/d.dcm"]),
        ("**", ["a.dcm", "b.dcm", "f.txt", "sub/c.dcm", "sub/deep/d.dcm"]),
        ("s*.dcm", []),
        ("s?b/c*", ["sub/c.dcm"]),
        ("[a]*", ["a.dcm"]),
        ("[!a]*", ["b.dcm", "f.txt"]),
        ("?.txt", ["f.txt"]),
        ("*.png", []),
    ],
)
def test_a_pattern_is_what_matches_it(tree: Path, pattern: str, expected: list[str]) -> None:
    below = InputFiles.parse(f"{tree}/{pattern}")
    assert [os.path.relpath(f"{below.root}/{f.path}", tree) for f in below.list()] == expected


def test_a_pattern_may_be_relative_or_a_url(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert paths("*.dcm") == paths(f"file://{tree}/*.dcm") == ["a.dcm", "b.dcm"]
    assert paths("sub") == paths("sub/**") == ["c.dcm", "deep/d.dcm"]
    assert InputFiles.parse("sub/deep/*").read("d.dcm") == b"sub/deep/d.dcm"


@pytest.mark.parametrize("folder", ["", "sub/"])
def test_one_file_is_itself(tree: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    name = "c.dcm" if folder else "a.dcm"
    for text in (f"{folder}{name}", f"{tree}/{folder}{name}", f"file://{tree}/{folder}{name}"):
        files = InputFiles.parse(text)
        assert [(info.path, info.size) for info in files.list()] == [(name, len(folder + name))]
        assert files.read(name) == (folder + name).encode()


@pytest.mark.parametrize("name", ["absent", "absent/*.dcm", "a.dcm/x", "a.dcm/*", "x" * 300])
def test_a_missing_input_is_refused(tree: Path, name: str) -> None:
    with pytest.raises(UsageError) as refused:
        InputFiles.parse(f"{tree}/{name}")
    assert str(refused.value) == f"input {tree}/{name} does not exist"


def test_an_input_that_may_not_be_looked_at_is_refused(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "stat", fail(math.inf, errno.EACCES, Path.stat, "sub"))
    with pytest.raises(HeadctError):
        InputFiles.parse(str(tree / "sub"))


def test_an_unknown_kind_of_store_is_refused_with_those_that_are_known() -> None:
    known = r"unknown kind of store ftp://; want .*s3://, .*gs://, az://, .*https://$"
    for use in (InputFiles.parse, open_file, lambda url: Folder(url).names()):
        with pytest.raises(UsageError, match=known):
            use("ftp://host/slices")


@pytest.mark.parametrize(
    ("url", "local"),
    [("slices", True), ("/s", True), ("file:///s", True), ("s3://b/s", False), ("a:b", True)],
)
def test_what_is_of_this_machine(url: str, local: bool) -> None:
    assert is_local(url) is local


# Names


def test_names_that_look_like_patterns_are_taken_as_they_are(tmp_path: Path) -> None:
    for name in ("br[1]/a.dcm", "br1/wrong.dcm", "f[1].dcm", "f1.dcm", "what?", "st*r/x"):
        write(tmp_path / name, name.encode())
    assert paths(tmp_path / "br[1]") == ["a.dcm"]
    assert InputFiles.parse(f"{tmp_path}/br[1]").read("a.dcm") == b"br[1]/a.dcm"
    assert paths(tmp_path / "f[1].dcm") == ["f[1].dcm"]
    assert InputFiles.parse(f"{tmp_path}/f[1].dcm").read("f[1].dcm") == b"f[1].dcm"
    assert paths(tmp_path / "what?") == ["what?"]
    assert paths(tmp_path / "st*r") == ["x"]
    assert InputFiles.parse(str(tmp_path)).read("br[1]/a.dcm") == b"br[1]/a.dcm"
    (tmp_path / "br[1]" / "a.dcm").unlink()
    (tmp_path / "br[1]").rmdir()
    assert paths(tmp_path / "br[1]") == []  # a pattern now, of names in its folder
    assert paths(f"{tmp_path}/br[1]/*") == ["br1/wrong.dcm"]


ODD = [b"caf\xe9.dcm", "café.dcm".encode(), b"two\nlines.dcm", b"a\\b.dcm", b" .dcm", b"~.dcm"]


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_a_file_with_any_name_is_listed_and_read(tmp_path: Path, name: bytes) -> None:
    with Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).open("wb") as file:
        file.write(name)
    for text in (
        tmp_path,
        f"{tmp_path}/*.dcm",
        f"{tmp_path}/**",
        f"{tmp_path}/{os.fsdecode(name)}",
    ):
        files = InputFiles.parse(str(text))
        (info,) = files.list()
        assert os.fsencode(info.path) == name
        assert info.size == len(name)
        assert files.read(info.path) == name
        assert list(files.read_ahead([(info.path, info.size)])) == [name]


def test_a_folder_with_any_name_is_listed(tmp_path: Path) -> None:
    folder = os.fsdecode(b"caf\xe9")
    write(tmp_path / folder / "a.dcm", b"in it")
    assert paths(tmp_path) == [f"{folder}/a.dcm"]
    files = InputFiles.parse(f"{tmp_path}/{folder}")
    assert files.read("a.dcm") == b"in it"


NAME_BYTES = b"a.0-/\xe9 "
NAMES = st.lists(st.sampled_from(list(NAME_BYTES)), min_size=1, max_size=7).map(bytes)


def is_a_path(name: bytes) -> bool:
    return all(part and not part.startswith(b".") for part in name.split(b"/"))


@given(st.lists(NAMES.filter(is_a_path), max_size=20))
@example([b"a/b", b"a.dcm", b"a-b/c", b"a0", b"a/b0/c", b"a/b.", b"\xe9/a", b"\xe9-"])
def test_files_are_listed_in_the_order_of_their_bytes(names: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = set()
        for name in names:
            try:
                write(Path(folder, os.fsdecode(name)))
            except (NotADirectoryError, IsADirectoryError, FileExistsError):
                continue  # another name has a folder where this has a file, or the reverse
            made.add(name)
        assert [os.fsencode(path) for path in paths(folder)] == sorted(made)


def test_a_linked_folder_takes_the_place_of_a_folder_in_the_order(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "x")
    write(tmp_path / "in" / "a.dcm")
    write(tmp_path / "in" / "a0")
    (tmp_path / "in" / "a").symlink_to("../elsewhere")
    assert paths(tmp_path / "in") == ["a.dcm", "a/x", "a0"]


# Links, and what is no file


def test_links_to_files_and_folders_are_followed(tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "file.dcm").symlink_to("../a.dcm")
    (folder / "folder").symlink_to(tree / "sub")
    assert paths(folder) == ["file.dcm", "folder/c.dcm", "folder/deep/d.dcm"]
    files = InputFiles.parse(str(folder))
    assert files.read("file.dcm") == b"a.dcm"
    assert files.read("folder/c.dcm") == b"sub/c.dcm"
    assert [info.size for info in files.list()] == [5, 9, 14]
    (tmp_path / "link").symlink_to(folder)
    assert paths(tmp_path / "link") == paths(folder)


def test_two_links_to_a_folder_are_two_folders(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "x")
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "one").symlink_to("../elsewhere")
    (folder / "two").symlink_to("../elsewhere")
    assert paths(folder) == ["one/x", "two/x"]


@pytest.mark.timeout(20)
def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    write(tmp_path / "in" / "deep" / "a.dcm")
    (tmp_path / "in" / "deep" / "up").symlink_to("..")
    (tmp_path / "in" / "deep" / "here").symlink_to(".")
    (tmp_path / "in" / "self").symlink_to("self")
    assert paths(tmp_path / "in") == ["deep/a.dcm", "self"]
    with pytest.raises(OSError, match="symbolic links") as raised:
        InputFiles.parse(str(tmp_path / "in")).read("self")
    assert raised.value.errno == errno.ELOOP


def test_a_link_to_nothing_is_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").symlink_to("absent")
    files = InputFiles.parse(str(tmp_path))
    assert list(files.list()) == [FileInfo("a.dcm", 0, "")]
    with pytest.raises(FileNotFoundError):
        files.read("a.dcm")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_an_error_at_once(tmp_path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(tmp_path / "a.dcm")
    else:
        (tmp_path / "a.dcm").symlink_to("/dev/zero")
    files = InputFiles.parse(str(tmp_path))
    assert [info.path for info in files.list()] == ["a.dcm"]
    with pytest.raises(OSError, match="Not a regular file"):
        files.read("a.dcm")
    (outcome,) = files.read_ahead([("a.dcm", 0)])
    assert isinstance(outcome, OSError)
    with files.reading() as reading, pytest.raises(OSError, match="Not a regular file"):
        reading.part("a.dcm", 0, 10, bytes).result()


def test_a_folder_in_place_of_a_file_is_an_error_of_the_file(tree: Path) -> None:
    with pytest.raises(OSError, match="Not a regular file"):
        InputFiles.parse(str(tree)).read("sub")


def test_a_folder_that_cannot_be_listed_ends_the_run(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "scandir", fail(math.inf, errno.EACCES, os.scandir, "deep"))
    with pytest.raises(StoreError, match=r"sub/deep: cannot be listed: Permission denied; the"):
        paths(tree)


# Reading


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, 4, b"0123"),
        (3, 4, b"3456"),
        (8, 4, b"89"),
        (10, 4, b""),
        (1000, 4, b""),
        (0, 0, b""),
        (0, 1000, b"0123456789"),
    ],
)
def test_a_part_of_a_file_ends_where_the_file_does(
    tmp_path: Path, start: int, length: int, expected: bytes
) -> None:
    write(tmp_path / "a.dcm", b"0123456789")
    with InputFiles.parse(str(tmp_path)).reading() as reading:
        assert reading.now("a.dcm", start, length) == expected
        assert reading.part("a.dcm", start, length, len).result() == len(expected)


def test_a_part_that_cannot_be_read_says_so_when_it_is_needed(tree: Path) -> None:
    with InputFiles.parse(str(tree)).reading() as reading:
        asked = reading.ahead("cab", lambda name: reading.part(f"{name}.dcm", 0, 9, bytes))
        assert [name for name, _ in asked] == ["c", "a", "b"]
        missing, there = reading.part("absent", 0, 9, bytes), reading.part("a.dcm", 0, 9, bytes)
        assert there.result() == b"a.dcm"
        with pytest.raises(FileNotFoundError):
            missing.result()


def test_a_read_that_the_kernel_cuts_short_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.dcm", b"0123456789")
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: pread(file, min(size, 3), at))
    files = InputFiles.parse(str(tmp_path))
    assert files.read("a.dcm") == b"0123456789"
    with files.reading() as reading:
        assert reading.now("a.dcm", 2, 7) == b"2345678"
        assert reading.now("a.dcm", 2, 70) == b"23456789"


def test_files_are_read_ahead_in_order(tree: Path) -> None:
    files = InputFiles.parse(str(tree))
    results = list(files.read_ahead([("a.dcm", 5), ("absent", 5), ("b.dcm", 5)] * 10))
    assert results[0::3] == [b"a.dcm"] * 10
    assert results[2::3] == [b"b.dcm"] * 10
    assert all(isinstance(result, FileNotFoundError) for result in results[1::3])
    assert list(files.read_ahead([])) == []


def test_files_of_any_size_are_read_ahead(tree: Path) -> None:
    files = InputFiles.parse(str(tree))
    assert list(files.read_ahead([("a.dcm", 1 << 40)] * 30)) == [b"a.dcm"] * 30


def test_reading_ahead_may_be_given_up(tree: Path) -> None:
    results = InputFiles.parse(str(tree)).read_ahead([("a.dcm", 5)] * 1000)
    assert next(results) == b"a.dcm"
    results.close()  # type: ignore[attr-defined]


def test_a_read_that_hangs_is_not_waited_for_when_reading_ahead_is_given_up(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, given_up, done = LocalStore.read, threading.Event(), []

    def hang(store: LocalStore, path: str, *wanted: Any) -> bytes:
        if path.endswith("b.dcm"):
            given_up.wait(5)
            done.append(path)
        return read(store, path, *wanted)

    monkeypatch.setattr(LocalStore, "read", hang)
    results = InputFiles.parse(str(tree)).read_ahead([("a.dcm", 5), ("b.dcm", 5)])
    assert next(results) == b"a.dcm"
    results.close()  # type: ignore[attr-defined]
    assert not done
    given_up.set()


def test_requests_that_wait_for_a_thread_are_dropped_at_the_end(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalStore, "ranged_readers", 1)
    begun, go_on = threading.Event(), threading.Event()

    def hang(data: bytes) -> bytes:
        begun.set()
        go_on.wait(5)
        return data

    with InputFiles.parse(str(tree)).reading() as reading:
        first, second = (reading.part("a.dcm", 0, 5, hang) for _ in range(2))
        begun.wait(5)
    assert second.cancelled()
    go_on.set()
    assert first.result(5) == b"a.dcm"


@pytest.mark.parametrize(("readers", "in_flight"), [(0, 1), (1, 2), (3, 6)])
def test_a_far_store_is_asked_for_twice_as_many_parts_as_it_has_readers(
    tree: Path, monkeypatch: pytest.MonkeyPatch, readers: int, in_flight: int
) -> None:
    monkeypatch.setattr(LocalStore, "ranged_readers", readers)
    asked = []

    with InputFiles.parse(str(tree)).reading() as reading:

        def ask(start: int) -> Future[bytes]:
            asked.append(start)
            return reading.part("a.dcm", start, 1, bytes)

        parts = reading.ahead(range(5), ask)
        assert [next(parts)[0], len(asked)] == [0, min(in_flight, 5)]
        assert [next(parts)[0], len(asked)] == [1, min(in_flight + 1, 5)]
        assert [part.result() for _, part in parts] == [b"d", b"c", b"m"]
    assert asked == [*range(5)]


class AtOnce:
    """An executor that does everything when it is asked to."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(call(*arguments))
        return done

    def shutdown(self, **options: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("mebibytes", "ahead"),
    [
        (1, 8),  # as many as there are readers, and the one that is worked on
        (16, 4),  # 64 MiB are not too many
        (17, 3),
        (33, 1),
        (65, 1),
        (1000, 1),
    ],
)
def test_so_many_files_are_read_ahead_as_memory_holds(
    tree: Path, monkeypatch: pytest.MonkeyPatch, mebibytes: int, ahead: int
) -> None:
    monkeypatch.setattr(LocalStore, "readers", 7)
    monkeypatch.setattr("headct.stores.input_output.ThreadPoolExecutor", AtOnce)
    read, count = LocalStore.read, [0]

    def counted(store: LocalStore, *arguments: Any) -> bytes:
        count[0] += 1
        return read(store, *arguments)

    monkeypatch.setattr(LocalStore, "read", counted)
    results = InputFiles.parse(str(tree)).read_ahead([("a.dcm", mebibytes << 20)] * 20)
    assert next(results) == b"a.dcm"
    assert count[0] == ahead
    assert len([*results]) == 19


def test_another_content_is_another_version(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", b"one")
    (before,) = InputFiles.parse(str(tmp_path)).list()
    assert before == FileInfo("a.dcm", 3, str(path.stat().st_mtime_ns))
    path.write_bytes(b"two")
    os.utime(path, ns=(0, int(before.version) + 1))
    (after,) = InputFiles.parse(str(path)).list()
    assert after == FileInfo("a.dcm", 3, str(int(before.version) + 1))


def test_a_file_is_opened_from_its_beginning(tree: Path) -> None:
    for url in (str(tree / "sub/c.dcm"), f"file://{tree}/sub/c.dcm"):
        with open_file(url) as file:
            assert file.read(3) + file.read() == b"sub/c.dcm"
    with pytest.raises(FileNotFoundError):
        open_file(str(tree / "absent"))


# Failures that may pass


@pytest.mark.parametrize("call", ["open", "pread"])
@pytest.mark.parametrize("number", [errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE])
def test_a_failure_that_passes_costs_nothing(
    tree: Path, call: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = InputFiles.parse(str(tree))
    for read in (
        lambda: files.read("a.dcm"),
        lambda: next(files.read_ahead([("a.dcm", 5)])),
        lambda: Folder(str(tree)).read("a.dcm"),
    ):
        monkeypatch.setattr(os, call, fail(2, number, getattr(os, call), "a.dcm"))
        assert read() == b"a.dcm"
        monkeypatch.undo()


@pytest.mark.parametrize("call", ["open", "pread"])
def test_a_failure_that_lasts_is_the_stores(
    tree: Path, call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = InputFiles.parse(str(tree), A_MOMENT)
    monkeypatch.setattr(os, call, fail(math.inf, errno.ESTALE, getattr(os, call), "a.dcm"))
    message = f"^{tree}: no answer for 0.2 s .Stale file handle.; the same command resumes$"
    with pytest.raises(StoreError, match=message):
        files.read("a.dcm")
    with pytest.raises(StoreError, match=message):
        list(files.read_ahead([("b.dcm", 5), ("a.dcm", 5)]))
    with files.reading() as reading, pytest.raises(StoreError, match=message):
        reading.part("a.dcm", 0, 5, bytes).result()
    assert f"{tree}: Stale file handle; trying again for up to 0.2 s" in caplog.text


@pytest.mark.parametrize("call", ["open", "pread"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENOENT])
def test_a_failure_of_a_file_is_its_own_at_once(
    tree: Path, call: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, call, fail(1, number, getattr(os, call), "a.dcm"))
    files = InputFiles.parse(str(tree))
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        files.read("a.dcm")
    assert raised.value.errno == number
    assert files.read("a.dcm") == b"a.dcm"  # there was one attempt


def test_opening_is_tried_again_too(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", fail(2, errno.ESTALE, Path.open, "a.dcm"))
    with open_file(str(tree / "a.dcm")) as file:
        assert file.read() == b"a.dcm"
    monkeypatch.setattr(Path, "open", fail(math.inf, errno.ESTALE, Path.open, "a.dcm"))
    with pytest.raises(StoreError, match="Stale file handle"):
        open_file(str(tree / "a.dcm"), A_MOMENT)


def test_listing_is_tried_again_too(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(InputFiles.parse(str(tree)).list())
    monkeypatch.setattr(os, "scandir", fail(2, errno.ESTALE, os.scandir, "sub"))
    assert list(InputFiles.parse(str(tree)).list()) == expected
    monkeypatch.setattr(os, "scandir", fail(math.inf, errno.ESTALE, os.scandir, "sub"))
    with pytest.raises(StoreError, match="Stale file handle"):
        list(InputFiles.parse(str(tree), A_MOMENT).list())


@dataclass
class Faltering:
    """What a folder lists, and the first time its entries are looked at, a failure that passes."""

    found: Any
    look: Callable[[], Any]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.found, name)

    def stat(self) -> Any:
        return self.look() or self.found.stat()

    def is_dir(self) -> Any:
        return self.look() or self.found.is_dir()


def test_what_is_listed_is_looked_at_again_too(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "link").symlink_to("sub")
    expected = list(InputFiles.parse(str(tree)).list())
    scandir, look = os.scandir, {}

    @contextmanager
    def falter(folder: str) -> Iterator[Any]:
        with scandir(folder) as found:
            for entry in (entries := list(found)):
                look.setdefault(entry.path, fail(1, errno.ESTALE, lambda _: None))
            yield [Faltering(entry, partial(look[entry.path], entry.path)) for entry in entries]

    monkeypatch.setattr(os, "scandir", falter)
    assert list(InputFiles.parse(str(tree)).list()) == expected


def test_a_store_that_fails_is_not_an_input_that_is_not_there(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sub", "a.dcm"):
        monkeypatch.setattr(Path, "stat", fail(2, errno.ESTALE, Path.stat, name))
        assert paths(tree / name)
        monkeypatch.setattr(Path, "stat", fail(math.inf, errno.ESTALE, Path.stat, name))
        with pytest.raises(StoreError, match="Stale file handle"):
            InputFiles.parse(str(tree / name), A_MOMENT)
        monkeypatch.undo()


# Outages: what holds a file is away for a moment, or for good


@contextmanager
def away(path: Path, seconds: float = 0.3) -> Iterator[None]:
    """Rename a folder or file; it is back after some seconds, or at the end of the block."""
    hidden = path.with_name(f"{path.name}.away")
    path.rename(hidden)
    back = threading.Timer(min(seconds, 60), hidden.rename, (path,))
    back.start()
    try:
        yield
    finally:
        if seconds == math.inf:
            back.cancel()
            hidden.rename(path)
        back.join()


@contextmanager
def unmounted(path: Path, seconds: float = 0.3) -> Iterator[None]:
    """Show an empty folder in place of one, as a mount point without its disk is."""
    with away(path, seconds):  # which takes the place of an empty folder
        path.mkdir()
        yield


def first_part(files: InputFiles, source: str) -> bytes:
    with files.reading() as reading:
        return reading.part(source, 0, 100, bytes).result()


def refusing(*refused: str, is_foreign: bool = False) -> Callable[..., bytes]:
    """A store's `read` that refuses files of these names."""
    read = LocalStore.read

    def refuse(store: LocalStore, path: str, *wanted: Any) -> bytes:
        if path.rpartition("/")[2] in refused:
            raise ObjectRefused("disk", "refused", "check it", is_foreign=is_foreign)
        return read(store, path, *wanted)

    return refuse


def test_a_refused_file_is_at_fault_if_any_other_can_be_read(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = InputFiles.parse(str(tree), A_MOMENT)
    monkeypatch.setattr(LocalStore, "read", refusing("a.dcm", "b.dcm", "c.dcm", "f.txt"))
    with pytest.raises(ObjectFault) as raised:
        files.read("a.dcm")
    assert (raised.value.reason, str(raised.value)) == (Reason.OBJECT_UNAVAILABLE, "refused")
    # What was read last is tried though the listing does not have it.
    assert files.read(".hidden") == b".hidden"
    every = ("a.dcm", "b.dcm", "c.dcm", "d.dcm", "f.txt")
    monkeypatch.setattr(LocalStore, "read", refusing(*every))
    with pytest.raises(ObjectFault):
        files.read("a.dcm")


@pytest.mark.parametrize(
    ("is_foreign", "message"), [(False, "disk: refused; check it"), (True, "disk: refused")]
)
def test_a_store_that_refuses_all_is_at_fault(
    tree: Path, monkeypatch: pytest.MonkeyPatch, is_foreign: bool, message: str
) -> None:
    asked: list[str] = []
    every = ("a.dcm", "b.dcm", "c.dcm", "d.dcm", "f.txt")
    refuse = refusing(*every, is_foreign=is_foreign)

    def count(store: LocalStore, path: str, *wanted: Any) -> bytes:
        asked.append(path.rpartition("/")[2])
        return refuse(store, path, *wanted)

    monkeypatch.setattr(LocalStore, "read", count)
    with pytest.raises(StoreError, match=f"^{message}") as raised:
        InputFiles.parse(str(tree), A_MOMENT).read("a.dcm")
    assert not isinstance(raised.value, ObjectFault)
    assert asked[:6] == ["a.dcm", "b.dcm", "f.txt", "c.dcm", "d.dcm", "a.dcm"]
    assert (len(asked) > 6) == is_foreign  # a proxy may be starting


def test_of_many_files_sixteen_are_tried_in_place_of_a_refused_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(48):
        write(tmp_path / f"{number:02}")
    asked: list[str] = []

    def refuse(store: LocalStore, path: str, *wanted: Any) -> bytes:
        asked.append(path.rpartition("/")[2])
        raise ObjectRefused("disk", "refused")

    monkeypatch.setattr(LocalStore, "read", refuse)
    with pytest.raises(ObjectRefused):
        InputFiles.parse(str(tmp_path), A_MOMENT).read("01")
    assert asked == ["01", *(f"{number:02}" for number in range(0, 48, 3)), "01"]


# Of the input `sub` itself, of a folder in it or around it.
OUTAGES = pytest.mark.parametrize(
    ("outage", "of"),
    [(away, "sub"), (away, "sub/deep"), (unmounted, "sub/deep"), (away, "")],
)


@OUTAGES
def test_an_outage_is_waited_for(tree: Path, outage: Any, of: str) -> None:
    files = InputFiles.parse(str(tree / "sub"))
    for read in (first_part, InputFiles.look_again):
        with outage(tree / of):
            assert read(files, "deep/d.dcm") == b"sub/deep/d.dcm"


@OUTAGES
def test_an_outage_that_lasts_is_the_stores(tree: Path, outage: Any, of: str) -> None:
    files = InputFiles.parse(str(tree / "sub"), A_MOMENT)
    message = f"^{tree}/sub: no answer for 0.2 s .a folder .*; the same command resumes$"
    for read in (first_part, InputFiles.look_again):
        with outage(tree / of, math.inf), pytest.raises(StoreError, match=message):
            read(files, "deep/d.dcm")


def test_a_link_into_a_folder_that_is_away_is_waited_for(tmp_path: Path) -> None:
    write(tmp_path / "disk" / "a.dcm", b"there")
    write(tmp_path / "in" / "b.dcm")
    (tmp_path / "in" / "a.dcm").symlink_to(tmp_path / "disk" / "a.dcm")
    files = InputFiles.parse(str(tmp_path / "in"))
    with away(tmp_path / "disk"):
        assert first_part(files, "a.dcm") == b"there"
    (tmp_path / "disk" / "a.dcm").unlink()
    write(tmp_path / "disk" / "other")
    with pytest.raises(FileNotFoundError):
        first_part(files, "a.dcm")


@pytest.mark.timeout(20)
def test_a_file_that_is_missing_alone_is_missing_at_once(tree: Path) -> None:
    files = InputFiles.parse(str(tree))
    for read in (first_part, InputFiles.look_again):
        with pytest.raises(FileNotFoundError):
            read(files, "sub/absent")


def test_a_second_look_finds_a_file_that_is_back(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "open", fail(1, errno.ENOENT, os.open, "a.dcm"))
    assert first_part(InputFiles.parse(str(tree)), "a.dcm") == b"a.dcm"


@pytest.mark.parametrize("of", ["", "sub"])
def test_a_folder_that_is_away_while_it_is_listed_is_waited_for(tree: Path, of: str) -> None:
    expected = list(InputFiles.parse(str(tree)).list())
    listing = InputFiles.parse(str(tree)).list()
    found = [] if not of else [next(listing)]
    with away(tree / of):
        assert found + list(listing) == expected


def test_a_folder_that_stays_away_while_it_is_listed_ends_the_run(tree: Path) -> None:
    listing = InputFiles.parse(str(tree), A_MOMENT).list()
    next(listing)
    with (
        away(tree / "sub", math.inf),
        pytest.raises(StoreError, match="a folder is gone while it is listed"),
    ):
        list(listing)


def test_a_file_that_is_away_while_it_is_listed_keeps_its_size(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is renamed between the look at its names and that at its files."""
    expected = list(InputFiles.parse(str(tree)).list())
    scandir, looks = os.scandir, []

    @contextmanager
    def outage(folder: str) -> Iterator[Any]:
        looks.append(folder)
        with scandir(folder) as found:
            entries = list(found)
        hidden = Path(folder).rename(f"{folder}.away") if len(looks) == 1 else Path(folder)
        try:
            yield entries
        finally:
            hidden.rename(folder)

    monkeypatch.setattr(os, "scandir", outage)
    assert list(InputFiles.parse(str(tree)).list()) == expected
    assert len(looks) == 4  # the first folder twice


@pytest.mark.parametrize("kind", ["folder", "file", "pattern", "archive"])
def test_an_input_that_was_there_is_waited_for(tree: Path, kind: str) -> None:
    text = {
        "folder": tree,
        "file": tree / "a.dcm",
        "pattern": tree / "sub" / "*.dcm",
        "archive": tree / "a.zip",
    }[kind]
    with zipfile.ZipFile(tree / "a.zip", "w") as archive:
        archive.writestr("a.dcm", b"a.dcm")
    expected = InputFiles.parse(str(text))
    listed = list(expected.list())
    with away(tree / "sub" if kind == "pattern" else Path(text)):
        found = find_input(str(text), 60)
        assert list(found.list()) == listed
    assert dataclasses.replace(found, patience=expected.patience) == expected
    with (
        away(tree / "sub" if kind == "pattern" else Path(text), math.inf),
        pytest.raises(StoreError, match="the input is gone"),
    ):
        find_input(str(text), A_MOMENT)


# The folder of the output


@pytest.mark.parametrize("durable", [True, False])
def test_what_is_written_can_be_read_and_removed(tmp_path: Path, durable: bool) -> None:
    for folder in (Folder(str(tmp_path / "out")), Folder(f"file://{tmp_path}/out")):
        assert folder.names() == set()
        folder.write("a/b.bin", b"bytes", durable=durable)
        folder.write("c", b"", durable=durable)
        assert folder.names() == {"a", "c"}
        assert folder.exists("a/b.bin")
        assert not folder.exists("a/absent")
        assert folder.read("a/b.bin") == b"bytes"
        with folder.open("a/b.bin") as file:
            assert file.read() == b"bytes"
        folder.remove("a")
        folder.remove("c")
        folder.remove("never was there")
        assert folder.names() == set()


def test_a_file_is_added_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(str(tmp_path / "out"))
    for name, has_links in {"a": True, "sub/b": False}.items():
        if not has_links:
            monkeypatch.setattr(os, "link", fail(math.inf, errno.EPERM, os.link))
        assert folder.add(name, b"first")
        assert not folder.add(name, b"second")
        assert folder.read(name) == b"first"
    assert folder.names() == {"a", "sub"}
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write a in .*file: "):
        Folder(str(tmp_path / "file")).add("a", b"")


def test_an_object_is_added_once_where_the_store_can_tell() -> None:
    bucket = MemoryStore()
    store = ObjectStore("s3://bucket", A_MOMENT, (bucket, bucket))
    assert store.add("out/a", b"first")
    assert not store.add("out/a", b"second")
    assert store.read("out/a") == b"first"


def test_a_store_without_conditional_requests_writes_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put, errors = obstore.put, iter([NotSupportedError("no"), GenericError("status code: 501 No")])

    def put_without_conditions(*args: Any, mode: str | None = None, **named: Any) -> Any:
        if mode == "create":
            raise next(errors)
        return put(*args, **named)

    monkeypatch.setattr(obstore, "put", put_without_conditions)
    bucket = MemoryStore()
    store = ObjectStore("s3://bucket", A_MOMENT, (bucket, bucket))
    assert store.add("a", b"first")
    assert store.add("a", b"second")
    assert store.read("a") == b"second"


def test_entries_of_a_bucket_tell_folders_from_files() -> None:
    bucket = MemoryStore()
    for key in ("out/a", "out/a/b", "out/c/d/e", "out2/f"):
        bucket.put(key, b"")
    store = ObjectStore("s3://bucket", A_MOMENT, (bucket, bucket))
    assert store.entries("out") == {"a", "a/", "c/"}
    assert store.entries("") == {"out/", "out2/"}
    assert store.entries("nowhere") == set()


def test_what_is_not_there_cannot_be_read(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    for read in (folder.read, folder.open, folder.sha256):
        with pytest.raises(FileNotFoundError):
            read("absent")


def test_a_remote_file_is_unchanged_if_its_version_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    folder.write("a", b"bytes")
    monkeypatch.setattr("headct.stores.input_output.is_local", lambda url: False)
    assert folder.is_unchanged("a", folder.version("a"), "")
    for name, version in (("a", "other"), ("a", ""), ("absent", "")):
        assert not folder.is_unchanged(name, version, "")


def test_a_local_file_is_unchanged_if_its_bytes_are(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("a", b"bytes")
    sha256 = hashlib.sha256(b"bytes").hexdigest()
    assert folder.sha256("a") == sha256
    assert folder.version("a") == folder.version("absent") == ""
    assert folder.is_unchanged("a", "", sha256)
    assert not folder.is_unchanged("absent", "", sha256)
    before = (tmp_path / "a").stat()
    (tmp_path / "a").write_bytes(b"bytez")  # as after a power failure: size and time are the same
    os.utime(tmp_path / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not folder.is_unchanged("a", "", sha256)


def test_a_file_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("shard", b"old")
    with folder.create("shard") as file:
        file.write(b"new and longer")
        file.flush()
        assert folder.read("shard") == b"old"
        file.seek(4)
        assert file.read(3) == b"and"
        file.seek(0, os.SEEK_END)
    assert folder.read("shard") == b"new and longer"
    assert folder.names() == {"shard"}


def write_half(folder: Folder, name: str, error: BaseException, durable: bool) -> None:
    with folder.create(name, durable=durable) as file:
        file.write(b"first half")
        raise error


@pytest.mark.parametrize("error", [TypeError, KeyboardInterrupt, StoreError])
@pytest.mark.parametrize("durable", [True, False])
def test_a_write_that_fails_leaves_nothing(
    tmp_path: Path, error: type[BaseException], durable: bool
) -> None:
    folder = Folder(str(tmp_path))
    folder.write("old", b"old")
    for name in ("shard", "old"):
        with pytest.raises(error):
            write_half(folder, name, error("store", "fails"), durable)
    assert folder.names() == {"old"}
    assert folder.read("old") == b"old"


def test_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with (
        pytest.raises(OutputError, match=r"^cannot write shard in .*: No space left on device$"),
        folder.create("shard"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert folder.names() == set()


def test_a_disk_that_is_full_when_it_must_be_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", fail(math.inf, errno.ENOSPC, os.fsync))
    folder = Folder(str(tmp_path))
    folder.write("shard", b"records", durable=False)
    with pytest.raises(OutputError, match=r"cannot write other in .*: No space left on device"):
        folder.write("other", b"records")
    assert folder.names() == {"shard"}
    with pytest.raises(OutputError, match=r"cannot write shard in .*: No space left on device"):
        folder.make_durable(["shard"])


def test_a_folder_below_a_file_cannot_be_written(tree: Path) -> None:
    folder = Folder(str(tree / "a.dcm" / "out"))
    assert folder.names() == set()
    with pytest.raises(OutputError, match=r"cannot write x in .*: Not a directory"):
        folder.write("x", b"")


def test_a_file_in_place_of_the_output_is_refused(tree: Path) -> None:
    with pytest.raises(UsageError, match=r"output .*a\.dcm is a file, not a folder"):
        Folder(str(tree / "a.dcm")).names()


def test_a_folder_that_may_not_be_looked_into_is_refused(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "listdir", fail(math.inf, errno.EACCES, os.listdir, tree.name))
    with pytest.raises(HeadctError, match="Permission denied"):
        Folder(str(tree)).names()


def test_files_made_durable_must_be_there(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("shard", b"records", durable=False)
    folder.make_durable(["shard"])
    with pytest.raises(OutputError, match=r"cannot write absent in .*: No such file"):
        folder.make_durable(["shard", "absent"])


def test_only_what_killed_processes_left_behind_is_removed(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.remove_partial()
    for name in ("shard", f".shard.{'01ef' * 8}.partial", ".another's.partial", ".hidden", "sub/x"):
        folder.write(name, b"")
    folder.remove_partial()
    assert folder.names() == {"shard", ".another's.partial", ".hidden", "sub"}


def test_entries_tell_folders_and_links_from_files(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "out"))
    for name in ("file", "@", "sub/file"):
        folder.write(name, b"")
    os.mkfifo(tmp_path / "out" / "pipe")
    for name, target in {"link": "file", "away": "sub", "lost": "nowhere"}.items():
        (tmp_path / "out" / name).symlink_to(target)
    assert folder.entries() == {"file", "@", "sub/", "link", "away/@", "lost/@", "pipe/@"}
    assert folder.names() == {"file", "@", "sub", "link", "away", "lost", "pipe"}


@pytest.mark.parametrize("killed", [True, False])
def test_a_file_that_another_process_writes_is_kept_while_that_lives(
    tmp_path: Path, killed: bool
) -> None:
    code = "import sys; from headct.stores import Folder\n"
    code += "with Folder(sys.argv[1]).create('shard') as file:\n"
    code += "    file.write(b'all of it'); print('writing', flush=True); sys.stdin.read()"
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    writer.stdout.readline()
    folder = Folder(str(tmp_path))
    folder.remove_partial()
    assert len(folder.names()) == 1
    if killed:
        writer.kill()
    writer.stdin.close()
    writer.wait(timeout=30)
    writer.stdout.close()
    folder.remove_partial()
    assert folder.names() == (set() if killed else {"shard"})


def test_a_folder_is_removed_while_another_process_writes_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    folder.write("sub/first", b"")
    remove = shutil.rmtree
    late = iter(["second", "third"])

    def remove_and_write(path: str) -> None:
        name = next(late, None)
        if name:
            folder.write(f"sub/{name}", b"")
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", remove_and_write)
    folder.remove("sub")
    assert folder.names() == set()


def test_a_linked_folder_is_removed_without_what_it_leads_to(tmp_path: Path) -> None:
    write(tmp_path / "precious" / "thesis.tex")
    folder = Folder(str(tmp_path / "out"))
    folder.write("shard", b"")
    (tmp_path / "out" / "link").symlink_to("../precious")
    folder.remove("link")
    assert folder.names() == {"shard"}
    assert (tmp_path / "precious" / "thesis.tex").exists()


def test_what_is_written_has_the_permissions_of_any_file(tmp_path: Path) -> None:
    Folder(str(tmp_path)).write("shard", b"")
    modes = {
        stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "shard", write(tmp_path / "x"))
    }
    assert len(modes) == 1

"""Listings of buckets whose keys are any text; others are in test_storage_faults.py."""

from collections.abc import Iterator

import pytest

from headct.errors import StoreError, UsageError
from headct.reasons import Reason, Rejected
from headct.stores import InputFiles
from headct.stores.bucket_clients import open_client
from headct.stores.buckets import ObjectStore
from tests.headct.scripted_store import ScriptedStore, serve

A_MOMENT = 1.0  # second of patience


@pytest.fixture
def store() -> Iterator[ScriptedStore]:
    store = ScriptedStore()
    with serve(store):
        yield store


def rejection(files: InputFiles, source: str) -> Rejected | None:
    """What a file is rejected with; None if it can be read."""
    try:
        files.read(source)
    except OSError as error:
        return Rejected.unread(error)
    return None


ODD = {
    "a//b.dcm": "its key has '//'",
    "a/./b.dcm": "its key has the part '.' or '..'",
    "a/../b.dcm": "its key has the part '.' or '..'",
    "..": "its key has the part '.' or '..'",
    "a\tb.dcm": "its key has a control character",
    "a\nb.dcm": "its key has a control character",
    "a\x01\x1b[2J.dcm": "its key has a control character",
    "a\x7f.dcm": "its key has a control character",
}
EVEN = ["0", "100%.dcm", "a%20b.dcm", "a%zz.dcm", "a\\b.dcm", "ä~#?*[x].dcm", " x ", "y" * 1000]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("folder", ["", "in/"])
def test_an_object_with_an_odd_key_is_rejected_and_no_other(
    store: ScriptedStore, folder: str, odd: str
) -> None:
    store.objects = {f"{folder}{key}": b"slice" for key in (*EVEN, odd)}
    files = InputFiles.parse(f"s3://data/{folder}", A_MOMENT)
    listed = [info.path for info in files.list()]
    assert listed == sorted((*EVEN, odd), key=str.encode)
    rejected = {path: why for path in listed if (why := rejection(files, path))}
    assert [*rejected] == [odd]
    assert rejected[odd].reason is Reason.UNUSABLE_KEY
    assert rejected[odd].detail == ODD[odd]


@pytest.mark.parametrize("odd", ["in/a.dcm/", "/a.dcm"])
def test_an_object_whose_slash_at_an_end_is_dropped_is_rejected(
    store: ScriptedStore, odd: str
) -> None:
    store.objects = {odd: b"slice"}
    files = InputFiles.parse(f"s3://data/{odd[:-6].strip('/')}", A_MOMENT)
    assert [info.path for info in files.list()] == ["a.dcm"]
    rejected = rejection(files, "a.dcm")
    assert rejected is not None
    assert rejected.reason is Reason.VANISHED


def test_many_odd_keys_are_listed_page_by_page(store: ScriptedStore) -> None:
    store.page = 3
    store.objects = {f"in/{number:02d}{'//' * (number % 2)}x": b"1" for number in range(20)}
    listed = [info.path for info in InputFiles.parse("s3://data/in", A_MOMENT).list()]
    assert [f"in/{path}" for path in listed] == sorted(store.objects)


def test_markers_of_folders_and_hidden_objects_are_left_out(store: ScriptedStore) -> None:
    store.objects = {"in/sub/": b"", "in/sub/a//b": b"1", "in/.hidden/c": b"1", "in//": b""}
    found = InputFiles.parse("s3://data/in", A_MOMENT).list()
    assert [info.path for info in found] == ["sub/a//b"]


def test_a_store_that_cannot_be_listed_otherwise_says_so(store: ScriptedStore) -> None:
    store.objects = {"a//b": b"1"}
    client = open_client("s3://data", {}, {})
    with pytest.raises(StoreError) as refused:
        list(ObjectStore("az://data", A_MOMENT, (client, client)).list(""))
    assert str(refused.value).endswith("'.', '..' or a control character; rename it")


def test_a_key_that_begins_with_a_slash_is_not_taken_for_another(store: ScriptedStore) -> None:
    store.objects = {"/b.dcm": b"1", "a.dcm": b"1"}
    with pytest.raises(StoreError, match=r"or a key begins with a slash; copy the input else"):
        list(InputFiles.parse("s3://data", A_MOMENT).list())


@pytest.mark.parametrize("path", ["a//b", "a/../b", "./b", "a\tb"])
def test_a_path_that_no_key_can_have_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="cannot be read from a store: it has"):
        InputFiles.parse(f"s3://data/{path}")

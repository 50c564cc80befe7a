"""Buckets that refuse some objects or all, and listings of keys that are any text.

Others are in test_storage_faults.py.
"""

from collections.abc import Iterator

import pytest

from beam_pipeline.planning.labels import read_labels
from headct.errors import HeadctError, StoreError, UsageError
from headct.reasons import ObjectFault, Reason, Rejected
from headct.stores import InputFiles, input_output
from headct.stores.bucket_clients import open_client
from headct.stores.buckets import ObjectStore
from headct.stores.protocol import why_unusable
from tests.headct.scripted_store import LISTING, Answer, ScriptedStore, refusal, serve

A_MOMENT = 1.0  # second of patience
PAGE = b"<html><body>Please log in.</body></html>"
SSE_C = "The object was stored using a form of Server Side Encryption. The correct parameters"

ARCHIVED = refusal(403, "InvalidObjectState")
DENIED = refusal(403, "AccessDenied")
TRANSCODED = Answer(200, b"decompressed on the way")  # whatever part was asked for


@pytest.fixture
def store() -> Iterator[ScriptedStore]:
    store = ScriptedStore({f"in/{number}": b"slice" for number in range(5)})
    store.objects |= {f"in/sub/{number}": b"slice" for number in range(5)}
    input_output._readable.clear()
    with serve(store):
        yield store


def read(source: str, length: int | None = 3) -> bytes:
    with InputFiles.parse("s3://data/in", A_MOMENT).reading() as reading:
        return reading.now(source, 0, length or 1 << 20)


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (ARCHIVED, "archived (403 Forbidden, InvalidObjectState)"),
        (DENIED, "access denied (403 Forbidden, AccessDenied)"),
        (refusal(400, "InvalidRequest", SSE_C), "encrypted with a key of the customer"),
        (refusal(400, "KMS.DisabledException"), "encrypted with a key that cannot be used"),
        (refusal(409, "BlobArchived"), "archived (409 Conflict, BlobArchived)"),
        (Answer(405), "405 Method Not Allowed"),
        (TRANSCODED, "as of an object that is stored with Content-Encoding: gzip"),
    ],
)
def test_an_object_that_is_kept_back_is_rejected_and_no_other(
    store: ScriptedStore, answer: Answer, detail: str
) -> None:
    store.answers = {"in/1": answer}
    assert read("0") == b"sli"
    with pytest.raises(ObjectFault) as kept_back:
        read("1")
    assert kept_back.value.reason is Reason.OBJECT_UNAVAILABLE
    assert detail in kept_back.value.what
    assert read("2") == b"sli"


@pytest.mark.parametrize(
    "answer", [DENIED, Answer(405), Answer(401), TRANSCODED, Answer(200, PAGE)]
)
def test_a_store_that_keeps_back_all_objects_fails(store: ScriptedStore, answer: Answer) -> None:
    store.answers = dict.fromkeys(store.objects, answer)
    with pytest.raises(StoreError):
        read("1")


def test_access_that_is_withdrawn_during_a_run_is_no_verdict(store: ScriptedStore) -> None:
    assert read("0") == b"sli"
    store.answers = {"in/1": DENIED}
    with pytest.raises(ObjectFault):
        read("1")
    store.answers = dict.fromkeys(store.objects, DENIED)
    with pytest.raises(StoreError, match=r"access denied .*; the same command resumes"):
        read("1")


@pytest.mark.parametrize("code", ["ExpiredToken", "SignatureDoesNotMatch", "RequestTimeTooSkewed"])
def test_credentials_that_are_refused_are_no_verdict(store: ScriptedStore, code: str) -> None:
    store.answers = {"in/1": refusal(403, code)}
    with pytest.raises(StoreError, match=code):
        read("1")


def test_a_folder_that_is_kept_back_is_not_all(store: ScriptedStore) -> None:
    denied = [key for key in store.objects if "sub" not in key]
    store.answers = dict.fromkeys(denied, DENIED)
    store.objects |= dict.fromkeys(map(str, range(2000)), b"")
    with pytest.raises(ObjectFault):
        read("1")


def test_an_answer_that_is_none_of_the_protocol_is_not_waited_for_long(
    store: ScriptedStore,
) -> None:
    store.answers = {LISTING: Answer(200, b'{"message": "hello"}')}
    with pytest.raises(StoreError) as failed:
        list(InputFiles("s3://data/in", patience=A_MOMENT).list())
    assert str(failed.value) == (
        "s3://data: the answer is not a list of objects; check the endpoint, and proxies between "
        "it and this machine"
    )


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (ARCHIVED, "cannot read label file s3://data/l.csv: archived (403 Forbidden, Invalid"),
        (DENIED, "s3://data/l.csv: access denied (403 Forbidden, AccessDenied); AWS_PROFILE, or"),
        (
            Answer(404, PAGE),
            "s3://data: a web page instead of an answer (404 Not Found); check the",
        ),
    ],
)
def test_a_label_file_that_is_kept_back_is_one_line(
    store: ScriptedStore, answer: Answer, message: str
) -> None:
    store.answers = {"l.csv": answer}
    with pytest.raises(HeadctError) as refused:
        read_labels("s3://data/l.csv", patience=A_MOMENT)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


# Keys


@pytest.fixture(params=["s3", "gs"])
def scheme(request: pytest.FixtureRequest) -> str:
    """The protocol that a bucket is listed by; listings by botocore are in that of S3."""
    return str(request.param)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedStore]:
    store = ScriptedStore()
    with serve(store) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
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
    "/b.dcm": "its key begins with a slash",
    "a/./b.dcm": "its key has the part '.' or '..'",
    "a/../b.dcm": "its key has the part '.' or '..'",
    "..": "its key has the part '.' or '..'",
    "a\tb.dcm": "its key has a control character",
    "a\nb.dcm": "its key has a control character",
    "a\x01\x1b[2J.dcm": "its key has a control character",
    "a\x7f.dcm": "its key has a control character",
    "a.dcm/": "its key ends with a slash",
}
EVEN = ["0", "100%.dcm", "a%20b.dcm", "a%zz.dcm", "a\\b.dcm", "ä~#?*[x].dcm", " x ", "y" * 1000]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("folder", ["", "in/"])
def test_an_object_with_an_odd_key_is_rejected_and_no_other(
    keys: ScriptedStore, scheme: str, folder: str, odd: str
) -> None:
    keys.objects = {f"{folder}{key}": b"slice" for key in (*EVEN, odd)}
    files = InputFiles.parse(f"{scheme}://data/{folder}", A_MOMENT)
    listed = [info.path for info in files.list()]
    assert listed == [key.rstrip("/") for key in sorted((*EVEN, odd), key=str.encode)]
    rejected = {path: why for path in listed if (why := rejection(files, path))}
    assert [*rejected] == [odd.rstrip("/")]
    (why,) = rejected.values()
    assert why.reason is Reason.UNUSABLE_KEY
    assert why.detail == ("its key has '//'" if folder and odd.startswith("/") else ODD[odd])


@pytest.mark.parametrize(
    "among",
    [
        ["in/a", "in/a-1", "in/a/"],
        ["in/a/", "in/a//b", "in/a/c"],
        ["in//a/", "in/a"],
        ["/0"],
        ["/0", "0"],
        ["/0", "0", "0/"],
        ["/a", "a"],
        ["-", "//", "/b", "a"],
    ],
)
def test_keys_that_differ_in_slashes_at_their_ends_are_different_objects(
    keys: ScriptedStore, scheme: str, among: list[str]
) -> None:
    keys.objects = dict.fromkeys(among, b"slice")
    folder = "in/" if among[0].startswith("in") else ""
    files = InputFiles.parse(f"{scheme}://data/{folder}", A_MOMENT)
    reasons = [rejection(files, info.path) for info in files.list()]
    usable = [not why_unusable(key) for key in sorted(among, key=str.encode)]
    assert [why is None for why in reasons] == usable
    assert {why.reason for why in reasons if why} == {Reason.UNUSABLE_KEY}


def test_many_odd_keys_are_listed_page_by_page(keys: ScriptedStore, scheme: str) -> None:
    keys.page = 3
    keys.objects = {f"in/{number:02d}{'//' * (number % 2)}x": b"1" for number in range(20)}
    listed = [info.path for info in InputFiles.parse(f"{scheme}://data/in", A_MOMENT).list()]
    assert [f"in/{path}" for path in listed] == sorted(keys.objects)


def test_markers_of_folders_and_hidden_objects_are_left_out(
    keys: ScriptedStore, scheme: str
) -> None:
    markers = ["in/sub/", "in//", "in/.hidden/c"]
    keys.objects = dict.fromkeys(markers, b"") | {"in/sub-1": b"1", "in/empty": b""}
    files = InputFiles.parse(f"{scheme}://data/in", A_MOMENT)
    assert [info.path for info in files.list()] == ["empty", "sub-1"]
    keys.objects |= {"in/sub/a//b": b""}
    assert [info.path for info in files.list()] == ["empty", "sub-1", "sub/a//b"]


def test_a_store_that_cannot_be_listed_otherwise_says_so(keys: ScriptedStore) -> None:
    keys.objects = {"a//b": b"1"}
    client = open_client("s3://data", A_MOMENT)
    with pytest.raises(StoreError) as refused:
        list(ObjectStore("az://data", A_MOMENT, (client, client)).list(""))
    assert str(refused.value).endswith("'.', '..' or a control character; rename it")


@pytest.mark.parametrize("path", ["a//b", "a/../b", "./b", "a\tb"])
def test_a_path_that_no_key_can_have_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="cannot be read from a store: it has"):
        InputFiles.parse(f"s3://data/{path}")

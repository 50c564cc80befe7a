"""A store that refuses some objects, or all."""

from collections.abc import Iterator

import pytest

from beam_pipeline.planning.labels import read_labels
from headct.errors import HeadctError, StoreError
from headct.reasons import ObjectFault, Reason
from headct.stores import InputFiles, files
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
    files._readable.clear()
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

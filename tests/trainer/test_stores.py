"""Answers that emulators of stores do not give; others are in test_remote_shards.py."""

from collections.abc import Iterator

import pytest

from headct.errors import StorageError
from tests.headct.scripted_store import Answer, ScriptedStore, refusal, serve
from trainer.data.stores import open_bucket, run_requests

A_MOMENT = 1.0  # second of patience
PAGE = b"<html><body>Please log in.</body></html>"
ENDPOINT = "; check the endpoint and what stands between it and this machine"


@pytest.fixture
def store() -> Iterator[ScriptedStore]:
    store = ScriptedStore({"shards/manifest.json": b"{}"})
    with serve(store):
        yield store


def read(key: str, patience: float = A_MOMENT) -> bytes:
    told: list[str] = []
    bucket = open_bucket("s3://data", patience, told.append)
    return run_requests(bucket.read_part(key, 0, 2))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            refusal(403, "InvalidObjectState"),
            "a file of the shards is archived (403 Forbidden, InvalidObjectState); restore it "
            "first",
        ),
        (
            refusal(400, "KMS.DisabledException"),
            "a file of the shards is encrypted with a key that cannot be used (400 Bad Request, "
            "KMS.DisabledException); restore it first",
        ),
        (
            Answer(200, PAGE),
            f"the answer is not the part of a file that was asked for{ENDPOINT}",
        ),
        (
            Answer(404, PAGE),
            f"a web page instead of an answer (404 Not Found){ENDPOINT}",
        ),
    ],
)
def test_what_stays_wrong_is_one_line(store: ScriptedStore, answer: Answer, message: str) -> None:
    store.answers = {"shards/manifest.json": answer}
    with pytest.raises(StorageError) as failed:
        read("shards/manifest.json")
    assert str(failed.value) == f"s3://data: {message}"


def test_a_key_that_cannot_be_is_one_line(store: ScriptedStore) -> None:
    with pytest.raises(StorageError, match="cannot be the key of an object"):
        read("shards//manifest.json")


def test_who_asks_may_pay(store: ScriptedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REQUEST_PAYER", "true")
    assert read("shards/manifest.json") == b"{}"
    assert [asked["x-amz-request-payer"] for asked in store.headers] == ["requester"]

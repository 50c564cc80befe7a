"""Settings that clients of stores take from the environment."""

import errno
import os
import tempfile

import obstore
import pytest

from beam_pipeline.errors import OutputError
from beam_pipeline.storage import Folder, InputFiles
from beam_pipeline.storage.clients import open_store
from tests.beam_pipeline.scripted_store import ScriptedStore, serve

A_MOMENT = 1.0  # second of patience


@pytest.mark.parametrize("key", ["a", "a//b"])  # listed by obstore, and by boto3
def test_who_asks_s3_may_pay(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ScriptedStore({f"in/{key}": b"slice", "in/b": b"slice"})
    monkeypatch.setenv("AWS_REQUEST_PAYER", "true")
    with serve(store):
        files = InputFiles.parse("s3://data/in", A_MOMENT)
        assert [info.path for info in files.list()] == [key, "b"]
        assert files.read("b") == b"slice"
    assert {asked["x-amz-request-payer"] for asked in store.headers} == {"requester"}


def test_who_asks_google_may_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ScriptedStore({"a": b"slice"})
    with serve(store) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setenv("GOOGLE_CLOUD_QUOTA_PROJECT", "my-project")
        google = open_store("gs://data", {}, {})
        assert bytes(obstore.get(google, "a").bytes()) == b"slice"
    assert [asked["x-goog-user-project"] for asked in store.headers] == ["my-project"]


def test_a_full_folder_for_temporary_files_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "tempdir", "/full")
    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", fail)
    with serve(ScriptedStore()), pytest.raises(OutputError) as failed:
        Folder("s3://data/out", A_MOMENT).write("a", b"1")
    assert str(failed.value) == (
        "cannot write a in s3://data/out: No space left on device (in /full, TMPDIR)"
    )

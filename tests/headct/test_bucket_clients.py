"""Settings that clients of stores take from the environment."""

import errno
import os
import tempfile
from pathlib import Path

import obstore
import pytest

from beam_pipeline.__main__ import main
from headct.errors import OutputError
from headct.stores import Folder, InputFiles, open_file
from headct.stores.bucket_clients import open_client
from tests.headct.scripted_store import Answer, ScriptedStore, serve

A_MOMENT = 1.0  # second of patience
ROOT = Path(__file__).parent


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
        google = open_client("gs://data", A_MOMENT)
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


def test_a_web_server_is_given_signatures_and_need_not_know_of_ranges() -> None:
    store = ScriptedStore({"l.csv": b"labels"}, {"a": Answer(200, b"0123456789")})
    with serve(store) as address:
        with open_file(f"{address}/data/l.csv?sig=secret&se=1", A_MOMENT) as file:
            assert file.read() == b"labels"
        with InputFiles(f"{address}/data", name="a", patience=A_MOMENT).reading() as reading:
            assert reading.now("a", 3, 5) == b"34567"


def test_a_signature_is_not_in_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with serve(ScriptedStore()) as address:
        labels = f"{address}/data/l.csv?X-Amz-Signature=secret"
        assert main([f"--input={ROOT}", f"--labels={labels}", "--output=/no/such"]) == 2
    assert "secret" not in (said := capsys.readouterr().err)
    assert f"label file {address}/data/l.csv?*** does not exist" in said

"""Settings that clients of stores take from the environment."""

import errno
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from beam_pipeline.__main__ import main
from headct.errors import OutputError, StoreError
from headct.stores import Folder, InputFiles, bucket_clients, open_file
from tests.headct.scripted_store import Answer, ScriptedStore, serve

A_MOMENT = 1.0  # second of patience
ROOT = Path(__file__).parent


@pytest.mark.parametrize("key", ["a", "a//b"])  # listed by obstore, and by botocore
def test_who_asks_s3_may_pay(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ScriptedStore({f"in/{key}": b"slice", "in/b": b"slice"})
    monkeypatch.setenv("AWS_REQUEST_PAYER", "true")
    with serve(store):
        files = InputFiles.parse("s3://data/in", A_MOMENT)
        assert [info.path for info in files.list()] == [key, "b"]
        assert files.read("b") == b"slice"
    assert {asked["x-amz-request-payer"] for asked in store.headers} == {"requester"}


@pytest.mark.parametrize("key", ["a", "a//b"])
def test_who_asks_google_may_pay(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ScriptedStore({f"in/{key}": b"slice", "in/b": b"slice"})
    monkeypatch.setenv("GOOGLE_CLOUD_QUOTA_PROJECT", "my-project")
    with serve(store) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        files = InputFiles.parse("gs://data/in", A_MOMENT)
        assert [info.path for info in files.list()] == [key, "b"]
        assert files.read("b") == b"slice"
    assert {asked["x-goog-user-project"] for asked in store.headers} == {"my-project"}


def list_odd_of_google(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """List a bucket that is not an emulator's, with the environment's credentials."""
    store = ScriptedStore({"in/a//b": b"slice"})
    with serve(store) as address:
        monkeypatch.setattr(bucket_clients, "_GOOGLE", address)
        (page,) = bucket_clients.list_any_keys("gs://data", "in", "")
    assert [item["path"] for item in page] == ["in/a//b"]
    return store.headers


def test_google_is_asked_with_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    google = pytest.importorskip("google.oauth2.credentials")
    found = google.Credentials("my-token")  # valid, as it does not expire
    monkeypatch.setattr("google.auth.default", lambda scopes: (found, None))
    (asked,) = list_odd_of_google(monkeypatch)
    assert asked["Authorization"] == "Bearer my-token"


def test_google_is_asked_anonymously(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    (asked,) = list_odd_of_google(monkeypatch)
    assert "Authorization" not in asked


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GOOGLE_APPLICATION_CREDENTIALS", "/no/such"),
        ("GOOGLE_SERVICE_ACCOUNT_KEY", "{}"),
        ("GOOGLE_SERVICE_ACCOUNT", "/no/such"),
    ],
)
def test_missing_credentials_of_google_are_one_line(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("google.auth")
    monkeypatch.setenv(variable, value)
    with pytest.raises(StoreError, match=r"gs://data: no credentials .*; GOOGLE_APPLICATION_CRED"):
        list_odd_of_google(monkeypatch)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.auth", None)
    with pytest.raises(StoreError, match=r"control character; rename it, or install google-auth"):
        list_odd_of_google(monkeypatch)


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

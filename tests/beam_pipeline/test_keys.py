import hashlib
import hmac
from pathlib import Path

import pytest

from beam_pipeline.keys import (
    KEY_VARIABLE,
    hash_id,
    holds_identifier,
    input_key,
    key_check,
    patient_of_study,
    read_key,
    study_of,
)
from headct.errors import StoreError, UsageError
from headct.stores import InputFiles
from headct.stores.local import LocalStore

PATIENCE = 1.0
KEY = b"sixteen bytes or more"


def test_a_key_is_read_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_bytes(b"\xff of the key file\n")
    monkeypatch.setenv(KEY_VARIABLE, "of the environment")
    assert read_key(str(tmp_path / "key"), PATIENCE) == b"\xff of the key file"
    assert read_key(None, PATIENCE) == b"of the environment"
    (tmp_path / "key").write_bytes(b"of just 16 bytes")
    assert read_key(str(tmp_path / "key"), PATIENCE) == b"of just 16 bytes"


def test_a_key_that_can_be_guessed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_bytes(b"15 bytes long.." + b"\n" * 9)
    with pytest.raises(UsageError, match="needs a key of 16 bytes or more"):
        read_key(str(tmp_path / "key"), PATIENCE)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(UsageError, match=f"or the environment variable {KEY_VARIABLE}"):
        read_key(None, PATIENCE)


def test_a_key_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--identifier_key_file .*absent: No such file"):
        read_key(str(tmp_path / "absent"), PATIENCE)


def test_a_check_tells_keys_apart_and_is_none_of_their_digests() -> None:
    key = b"sixteen bytes or more"
    assert len(key_check(key)) == 16
    assert key_check(key) == key_check(bytes(key)) != key_check(key + b"!")
    assert not hashlib.sha256(key).hexdigest().startswith(key_check(key))


def test_the_key_of_an_input_is_made_of_the_first_file_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").write_bytes(b"a" * (1 << 18) + b"not the rest")
    (tmp_path / "b").write_bytes(b"b")
    files = InputFiles(str(tmp_path))
    expected = hashlib.blake2b(b"a" * (1 << 18), digest_size=32).digest()
    assert input_key(files, ["absent", "folder", "a", "b"]) == expected
    assert input_key(files, ["b", "a"]) != expected


def test_where_no_file_can_be_read_ids_are_hashed_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "there").touch()  # an empty folder is a disk that is away
    files = InputFiles(str(tmp_path))
    key = input_key(files, ["absent", "away"])
    assert len(key) == 32
    assert key == input_key(files, ["absent", "away"])
    assert key != input_key(files, ["absent"])


def test_a_store_that_fails_gives_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise StoreError("the disk", "is on fire")

    monkeypatch.setattr(LocalStore, "read", fail)
    with pytest.raises(StoreError, match="is on fire"):
        input_key(InputFiles(str(tmp_path)), ["a"])


def test_hashes_are_keyed_and_stable() -> None:
    expected = hmac.new(KEY, b"patient_id\0Roe", hashlib.sha256).hexdigest()[:16]
    assert hash_id(KEY, "patient_id", "Roe") == expected
    assert hash_id(KEY + b"!", "patient_id", "Roe") != expected
    assert hash_id(KEY, "patient_id", "Doe") != expected
    assert hash_id(KEY, "series_id", "Roe") != expected  # the same text, another purpose


def test_without_a_key_an_id_is_itself() -> None:
    assert hash_id(b"", "patient_id", "Roe") == "Roe"


def test_the_patient_of_a_study_is_told_from_others() -> None:
    assert patient_of_study("1.2") == "study \\ 1.2"
    assert study_of(patient_of_study("1.2")) == "1.2"
    assert study_of("1.2") is None


def test_a_text_that_is_no_utf_8_has_a_hash() -> None:
    expected = hmac.new(KEY, b"study_id\0\xff\xc3", hashlib.sha256).hexdigest()[:16]
    assert hash_id(KEY, "study_id", "\udcff\udcc3") == expected


@pytest.mark.parametrize(
    ("path", "identifier"),
    [
        ("DOE_JOHN/IM0001", "Doe^John"),
        ("a/doejohn.dcm", "Doe^John"),
        ("mustermann1964/1.dcm", "Mustermann"),
        ("mrn47110815/1.dcm", "MRN-4711-0815"),
        ("CT12345/1.dcm", "12345"),
        ("12345_2.dcm", "12345"),
        ("müller/1", "M\u00fcller"),
        ("roes/1.dcm", "Roes"),  # four letters
        ("1doe1990x/1.dcm", "Doe 1990"),
        ("9a1234.dcm", "A1234"),
    ],
)
def test_a_path_that_holds_an_identifier(path: str, identifier: str) -> None:
    assert holds_identifier(path, ["nothing", identifier])


@pytest.mark.parametrize(
    ("path", "identifier"),
    [
        ("112345.dcm", "12345"),  # another number
        ("123456.dcm", "12345"),
        ("doering/1.dcm", "Doer"),  # another word
        ("doe19901/1.dcm", "Doe 1990"),
        ("xa1234.dcm", "A1234"),
        ("1234ab.dcm", "1234A"),
        ("1/2/3.dcm", "2"),  # too short to tell
        ("kim/1.dcm", "Kim"),
        ("a.b/1.dcm", "a+b.*"),  # no pattern
        ("any/path", "^"),
        ("any/path", ""),
    ],
)
def test_a_path_that_does_not(path: str, identifier: str) -> None:
    assert not holds_identifier(path, [identifier])

import dataclasses
import hashlib
import hmac
import io
import math
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipeline.dicom.acquisition import Acquisition
from beam_pipeline.dicom.header import FIRST_BYTES, Header, read_header
from beam_pipeline.dicom.hounsfield import PixelEncoding
from beam_pipeline.keys import hash_id, patient_of_study, study_of
from beam_pipeline.options import Identifiers, LeakCheck, Options
from beam_pipeline.planning.inventory import (
    SCHEMA,
    Inspected,
    find_key,
    inspect_part,
    list_parts,
    name_of,
)
from beam_pipeline.shards.unfinished import Unfinished
from beam_pipeline.workers import Watch
from headct.declarations import Mark
from headct.errors import StoreError
from headct.layout import inventory_table, listing_table
from headct.reasons import Reason
from headct.stores import FileInfo, Folder, InputFiles, decode_source, encode_source, show_source
from headct.stores.local import LocalStore
from tests.beam_pipeline.dicom_files import SIGNED_16, make_dicom
from tests.beam_pipeline.steps import Witness

WriteSlice = Callable[..., Path]
IDS = ("patient_id", "study_id", "series_id")
KEY = b"sixteen bytes or more"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


def options_for(folder: Path, tmp_path: Path, **changes: Any) -> Options:
    return Options.of(input=str(folder), output=str(tmp_path / "out"), **changes)


def inspect(options: Options, watch: Watch | None = None) -> Inspected:
    """List the input, which is one part, and inspect it."""
    assert len([*list_parts(options)]) == 1
    return inspect_part(0, watch or Watch(), options=options)


def rows_of(options: Options, part: int = 0) -> dict[str, dict[str, Any]]:
    """The inventory's rows by their sources."""
    table = Unfinished(Folder(options.files.output)).read(inventory_table(part))
    assert table.schema.equals(SCHEMA)
    return {show_source(decode_source(row["source"])): row for row in table.to_pylist()}


def listing_of(options: Options, part: int) -> list[dict[str, Any]]:
    return list(Unfinished(Folder(options.files.output)).read(listing_table(part)).to_pylist())


def test_every_file_is_in_one_part_in_order(folder: Path, tmp_path: Path) -> None:
    for number in range(600):
        (folder / f"{number % 7}").mkdir(exist_ok=True)
        (folder / f"{number % 7}" / f"{number}.dcm").write_bytes(bytes(number))
    options = options_for(folder, tmp_path)
    assert [*list_parts(options)] == [256, 256, 88]
    rows = [row for part in range(3) for row in listing_of(options, part)]
    files = {os.fsencode(path.relative_to(folder)): path for path in folder.glob("*/*")}
    assert [row["source"] for row in rows] == sorted(files)
    for row in rows:
        found = files[row["source"]].stat()
        assert (row["size"], row["version"]) == (found.st_size, str(found.st_mtime_ns))


def list_of(
    infos: Iterator[FileInfo | StoreError],
) -> Callable[[InputFiles], Iterator[FileInfo]]:
    """Stands for a large input's listing, which may fail."""

    def found(self: InputFiles) -> Iterator[FileInfo]:
        for info in infos:
            if isinstance(info, StoreError):
                raise info
            yield info

    return found


def test_parts_of_a_large_input_are_larger(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    infos = (FileInfo(f"{number:06d}", number, "v") for number in range(100_000))
    monkeypatch.setattr(InputFiles, "list", list_of(infos))
    parts = [*list_parts(options_for(folder, tmp_path))]
    # 16 parts of each size until 4096: 4096 + 8192 + 16384 + 32768 = 61440 files in 64 parts.
    grown = [256] * 16 + [512] * 16 + [1024] * 16 + [2048] * 16
    assert parts == [*grown, *[4096] * 9, 100_000 - 61_440 - 9 * 4096]


def test_an_input_that_cannot_be_listed_whole_ends_the_list_with_an_error(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    infos = [FileInfo("a", 1, "v")] * 300 + [StoreError("disk", "cannot be listed")]
    monkeypatch.setattr(InputFiles, "list", list_of(iter(infos)))
    parts = list_parts(options_for(folder, tmp_path))
    assert next(parts) == 256
    with pytest.raises(StoreError, match="disk: cannot be listed"):
        next(parts)


def test_a_header_gives_a_row_and_a_bad_file_its_reason(
    small_data_set: Path, folder: Path, tmp_path: Path
) -> None:
    for name in ("ID_11.dcm", "ID_32.dcm", "ID_text.dcm"):
        (folder / name).write_bytes((small_data_set / "slices" / name).read_bytes())
    (folder / "ID_gone.dcm").touch()
    options = options_for(folder, tmp_path, leak_check=LeakCheck.OFF, identifiers=Identifiers.KEEP)
    assert [*list_parts(options)] == [4]
    (folder / "ID_gone.dcm").unlink()
    witness = Witness({0: Reason.DECODER_CRASHED})
    assert inspect_part(0, witness, options=options) == Inspected(files=4, rejected=3, reused=0)
    rows = rows_of(options)
    assert [*rows] == ["ID_11.dcm", "ID_32.dcm", "ID_gone.dcm", "ID_text.dcm"]
    data = (folder / "ID_32.dcm").read_bytes()
    header = Header.decode(rows["ID_32.dcm"]["header"])
    assert (header.rows, header.columns, header.position_z) == (32, 32, 10.0)
    assert rows["ID_32.dcm"] == {
        "source": b"ID_32.dcm",
        "size": len(data),
        "version": str((folder / "ID_32.dcm").stat().st_mtime_ns),
        "image_id": "ID_32",
        "sop_instance_uid": rows["ID_32.dcm"]["sop_instance_uid"],
        "patient_id": "Secret^Name3",
        "study_id": "secret.study.3",
        "series_id": "secret.series.3",
        "fingerprint": 0,
        "path_identifies": False,
        "pixel_offset": len(data) - 32 * 32 * 2,
        "pixel_bytes": 32 * 32 * 2,
        "header": rows["ID_32.dcm"]["header"],
        "acquisition": Acquisition().encode(),
        "reason": "",
        "detail": "",
    }
    assert without_listing(rows["ID_11.dcm"]) == rejected("ID_11", "decoder_crashed")
    assert without_listing(rows["ID_gone.dcm"]) == rejected("ID_gone", "vanished")
    assert without_listing(rows["ID_text.dcm"]) == rejected("ID_text", "not_dicom")
    assert witness.places == [1, 3]  # what is excluded is not touched, what is gone not parsed


def without_listing(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("source", "size", "version")}


def rejected(image_id: str, reason: str, detail: str = "") -> dict[str, Any]:
    return {
        "image_id": image_id,
        **dict.fromkeys(("sop_instance_uid", *IDS), ""),
        "fingerprint": 0,
        "path_identifies": False,
        "pixel_offset": -1,
        "pixel_bytes": 0,
        "header": "",
        "acquisition": "",
        "reason": reason,
        "detail": detail,
    }


def test_what_is_no_regular_file_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(folder / "pipe.dcm")
    options = options_for(folder, tmp_path)
    assert inspect(options) == Inspected(files=1, rejected=1, reused=0)
    row = without_listing(rows_of(options)["pipe.dcm"])
    assert row == rejected("pipe", "read_error", "Not a regular file")


def test_a_link_to_nothing_has_vanished(folder: Path, tmp_path: Path) -> None:
    (folder / "link.dcm").symlink_to("absent")
    options = options_for(folder, tmp_path)
    assert inspect(options) == inspect(options) == Inspected(files=1, rejected=1, reused=0)
    assert rows_of(options)["link.dcm"]["reason"] == "vanished"


@pytest.mark.parametrize(
    ("source", "image_id"),
    [
        ("a/b/ID_1.dcm", "ID_1"),
        ("a.b/IM0001", "IM0001"),
        ("1.2.840.113.5", "1.2.840.113.5"),
        ("x/1.2.840.113.5", "1.2.840.113.5"),
        ("1.2.3.dcm", "1.2.3"),
        ("1.2.3.DCM", "1.2.3"),
        ("1.2.3.4a", "1.2.3"),
        ("slice.001", "slice.001"),
        ("a/.dcm", ".dcm"),
        ("1.", "1"),
    ],
)
def test_the_image_id_is_the_name_without_suffix_but_all_of_a_uid(
    source: str, image_id: str
) -> None:
    assert name_of(source) == image_id


@given(st.binary())
def test_any_bytes_may_be_a_path(stored: bytes) -> None:
    path = decode_source(stored)
    assert path == os.fsdecode(stored)
    assert encode_source(path) == stored
    assert show_source(path).encode().decode() == show_source(path)


def test_a_file_whose_name_is_no_utf_8_is_read(
    write_slice: WriteSlice, folder: Path, tmp_path: Path
) -> None:
    write_slice(folder / "a.dcm").rename(folder / os.fsdecode(b"caf\xe9.dcm"))
    options = options_for(folder, tmp_path)
    inspect(options)
    row = rows_of(options)["caf\\xe9.dcm"]
    assert (row["source"], row["image_id"]) == (b"caf\xe9.dcm", "caf\\xe9")
    assert row["reason"] == ""


@pytest.mark.parametrize("identifiers", Identifiers)
def test_a_sop_instance_uid_is_hashed_as_other_ids_are(
    write_slice: WriteSlice, folder: Path, tmp_path: Path, identifiers: Identifiers
) -> None:
    data = write_slice(folder / "a.dcm", SOPInstanceUID="1.2.3").read_bytes()
    (tmp_path / "key").write_bytes(KEY)
    key_file = str(tmp_path / "key")
    options = options_for(folder, tmp_path, identifiers=identifiers, identifier_key_file=key_file)
    inspect(options)
    own_key = hashlib.blake2b(data[: 1 << 18], digest_size=32).digest()
    key = {Identifiers.ORDINAL: own_key, Identifiers.HASH: KEY, Identifiers.KEEP: b""}[identifiers]
    expected = hash_id(key, "image_id", "1.2.3") if key else "1.2.3"
    assert rows_of(options)["a.dcm"]["sop_instance_uid"] == expected
    assert find_key(options) == key


@pytest.mark.parametrize("beyond", [-12, -2, 0, 2, 30_000])
def test_a_header_longer_than_what_is_read_first_is_read_on(
    folder: Path, tmp_path: Path, beyond: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 999, (128, 128)).astype(np.int16)
    short = len(make_dicom(pixels, ImageComments="..")) - pixels.nbytes
    comments = "." * (FIRST_BYTES - short + 2 + beyond)
    data = make_dicom(pixels, ImageComments=comments)
    assert data[FIRST_BYTES + beyond :] == pixels.tobytes()
    (folder / "a.dcm").write_bytes(data)
    options = options_for(folder, tmp_path)
    inspect(options)
    row = rows_of(options)["a.dcm"]
    assert (row["reason"], row["pixel_offset"]) == ("", FIRST_BYTES + beyond)
    assert row["pixel_bytes"] == pixels.nbytes
    header = read_header(io.BytesIO(data), len(data))
    anonymous = dict.fromkeys(("sop_instance_uid", *IDS), "")
    assert Header.decode(row["header"]) == dataclasses.replace(header, **anonymous)


def test_pixels_that_are_deflated_or_not_asked_for_have_no_fingerprint(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "deflated.dcm").write_bytes(make_dicom(syntax="1.2.840.10008.1.2.1.99"))
    (folder / "plain.dcm").write_bytes(make_dicom())
    rows = {}
    for check in (LeakCheck.JOIN, LeakCheck.REPORT, LeakCheck.OFF):
        options = options_for(folder, tmp_path / check, leak_check=check)
        inspect(options)
        rows[check] = rows_of(options)
    expected = int.from_bytes(
        hashlib.blake2b(SIGNED_16.tobytes(), digest_size=8).digest(), "little"
    )
    assert rows[LeakCheck.JOIN]["plain.dcm"]["fingerprint"] == expected
    assert rows[LeakCheck.REPORT] == rows[LeakCheck.JOIN]
    assert rows[LeakCheck.OFF]["plain.dcm"]["fingerprint"] == 0
    assert rows[LeakCheck.JOIN]["deflated.dcm"]["fingerprint"] == 0
    assert rows[LeakCheck.JOIN]["deflated.dcm"]["pixel_offset"] == -1
    assert rows[LeakCheck.JOIN]["deflated.dcm"]["reason"] == ""


def texts_of(row: dict[str, Any]) -> str:
    return repr(row).lower()


def test_ids_of_headers_are_hashed_unless_they_are_to_be_kept(
    small_data_set: Path, tmp_path: Path
) -> None:
    slices = small_data_set / "slices"
    key = b"sixteen bytes or more"
    (tmp_path / "key").write_bytes(key)
    found = {}
    for kind in Identifiers:
        options = options_for(slices, tmp_path / kind, identifiers=kind)
        options = options.changed(identifier_key_file=str(tmp_path / "key"))
        inspect(options)
        found[kind] = rows_of(options)
    kept, hashed, numbered = (found[k] for k in (Identifiers.KEEP, Identifiers.HASH, "ordinal"))
    for source, row in kept.items():
        if row["reason"]:
            assert [hashed[source][name] for name in IDS] == [""] * 3
            continue
        for name in IDS:
            message = f"{name}\0{row[name]}".encode()
            assert hashed[source][name] == hmac.new(key, message, "sha256").hexdigest()[:16]
            assert hashed[source][name] != numbered[source][name]
    assert kept["ID_00.dcm"]["patient_id"] == "Secret^Name0"
    for rows in (hashed, numbered):
        assert not any("secret" in texts_of(row) for row in rows.values())
        assert rows["ID_00.dcm"]["patient_id"] == rows["ID_04.dcm"]["patient_id"]
        assert len({row["patient_id"] for row in rows.values() if row["patient_id"]}) == 7
        assert len({rows["ID_00.dcm"][name] for name in IDS}) == 3


@pytest.mark.parametrize("identifiers", Identifiers)
def test_a_study_stands_for_a_patient_without_an_id(
    write_slice: WriteSlice,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    identifiers: Identifiers,
) -> None:
    monkeypatch.setenv("ICH_IDENTIFIER_KEY", "0123456789abcdef")
    ids = {"a": ("", "1.2"), "b": (None, "1.2"), "c": (" ", "1.3"), "d": ("1.2", "1.2")}
    ids |= {"e": ("study \\ 1.2", "1.4"), "f": ("study ", "1.5")}
    for name, (patient, study) in ids.items():
        write_slice(folder / f"{name}.dcm", PatientID=patient, StudyInstanceUID=study)
    options = options_for(folder, tmp_path, identifiers=identifiers)
    inspect(options)
    rows = rows_of(options)
    patients = {name: rows[f"{name}.dcm"]["patient_id"] for name in ids}
    assert patients["a"] == patients["b"] == patient_of_study(rows["a.dcm"]["study_id"])
    assert len({*patients.values()}) == 5
    assert [name for name in ids if study_of(patients[name]) is not None] == ["a", "b", "c"]


def test_ids_that_are_to_be_numbered_are_hashed_alike_in_all_parts_and_by_no_other_input(
    write_slice: WriteSlice, folder: Path, tmp_path: Path
) -> None:
    for number in range(257):
        write_slice(folder / f"{number:03d}.dcm", SIGNED_16, PatientID="same")
    options = options_for(folder, tmp_path)
    assert [*list_parts(options)] == [256, 1]
    patients = set()
    for part in range(2):
        inspect_part(part, Watch(), options=options)
        patients |= {row["patient_id"] for row in rows_of(options, part).values()}
    assert len(patients) == 1
    write_slice(folder / "000.dcm", SIGNED_16 + 1, PatientID="same")
    other = options_for(folder, tmp_path / "other")
    [*list_parts(other)]
    inspect_part(1, Watch(), options=other)
    assert {row["patient_id"] for row in rows_of(other, 1).values()}.isdisjoint(patients)


# What follows: a second run finds the inventory of the first.


@pytest.fixture
def three(write_slice: WriteSlice, folder: Path, tmp_path: Path) -> Options:
    """Three files, of which c cannot be used."""
    for name in "ab":
        write_slice(folder / f"{name}.dcm", PatientID="first")
    (folder / "c.dcm").write_bytes(b"not DICOM")
    # The key of the input does not come from a file that the test changes.
    return options_for(folder, tmp_path, identifiers=Identifiers.KEEP)


def overwrite(path: Path, data: bytes, *, touch: bool) -> None:
    """Replace a file's content; its time of modification is another or the same."""
    before = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(before + touch, before + touch))


def test_files_that_are_the_same_are_not_read_again(three: Options) -> None:
    folder = Path(three.files.input)
    assert inspect(three) == Inspected(files=3, rejected=1, reused=0)
    before = rows_of(three)
    for path in folder.iterdir():  # what no one can see without reading
        overwrite(path, bytes(path.stat().st_size), touch=False)
    witness = Witness()
    assert inspect(three, witness) == Inspected(files=3, rejected=1, reused=3)
    assert rows_of(three) == before
    assert witness.places == []


@pytest.mark.parametrize("change", ["time", "size"])
def test_a_file_that_changed_is_read_again_and_no_other(three: Options, change: str) -> None:
    folder = Path(three.files.input)
    inspect(three)
    overwrite(folder / "a.dcm", bytes((folder / "a.dcm").stat().st_size), touch=False)
    data = (folder / "b.dcm").read_bytes()
    assert data.count(b"first ") == 1
    if change == "time":
        overwrite(folder / "b.dcm", data.replace(b"first ", b"second"), touch=True)
    else:
        overwrite(folder / "b.dcm", data.replace(b"first ", b"second") + b"\0\0", touch=False)
    witness = Witness()
    assert inspect(three, witness) == Inspected(files=3, rejected=1, reused=2)
    assert witness.places == [1]
    rows = rows_of(three)
    assert [rows[f"{name}.dcm"]["patient_id"] for name in "abc"] == ["first", "second", ""]
    found = (folder / "b.dcm").stat()
    assert (rows["b.dcm"]["size"], rows["b.dcm"]["version"]) == (
        found.st_size,
        str(found.st_mtime_ns),
    )
    assert inspect(three) == Inspected(files=3, rejected=1, reused=3)


@pytest.mark.parametrize("reason", [Reason.DECODER_CRASHED, Reason.DECODER_TIMED_OUT])
def test_a_reason_that_may_pass_is_not_kept(three: Options, reason: Reason) -> None:
    assert inspect(three, Watch({1: reason})) == Inspected(files=3, rejected=2, reused=0)
    assert rows_of(three)["b.dcm"]["reason"] == reason
    witness = Witness()
    assert inspect(three, witness) == Inspected(files=3, rejected=1, reused=2)
    assert witness.places == [1]
    assert rows_of(three)["b.dcm"]["reason"] == ""


def test_a_file_whose_store_tells_no_version_is_always_read(
    three: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = Path(three.files.input, "a.dcm").stat().st_size
    for patient in (b"first ", b"second"):
        data = Path(three.files.input, "a.dcm").read_bytes().replace(b"first ", patient)
        Path(three.files.input, "a.dcm").write_bytes(data)
        monkeypatch.setattr(InputFiles, "list", list_of(iter([FileInfo("a.dcm", size, "")])))
        assert inspect(three) == Inspected(files=1, rejected=0, reused=0)
        assert rows_of(three)["a.dcm"]["patient_id"] == patient.decode().strip()


def test_a_file_that_is_back_is_read(three: Options) -> None:
    path, away = Path(three.files.input, "b.dcm"), Path(three.files.output).parent / "away"
    assert [*list_parts(three)] == [3]
    path.rename(away)
    assert inspect_part(0, Watch(), options=three) == Inspected(files=3, rejected=2, reused=0)
    assert rows_of(three)["b.dcm"]["reason"] == "vanished"
    away.rename(path)
    assert inspect(three) == Inspected(files=3, rejected=1, reused=2)
    assert rows_of(three)["b.dcm"]["reason"] == ""


@pytest.mark.parametrize("call", range(6))
def test_an_outage_of_the_input_changes_nothing(
    three: Options, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is renamed away before one of the first reads: key, headers, fingerprints."""
    three = three.changed(identifiers=Identifiers.ORDINAL)
    inspect(three)
    expected = rows_of(three)
    three = three.changed(output=f"{three.files.output}-again")
    assert [*list_parts(three)] == [3]
    read, calls = LocalStore.read, []
    folder = Path(three.files.input)

    def away(store: LocalStore, path: str, *part: Any) -> bytes:
        calls.extend([path] if path.startswith(f"{folder}/") else [])
        if calls[call:] == [path]:
            hidden = folder.rename(f"{folder}.away")
            threading.Timer(0.1, hidden.rename, (folder,)).start()
        return read(store, path, *part)

    monkeypatch.setattr(LocalStore, "read", away)
    assert inspect_part(0, Watch(), options=three) == Inspected(files=3, rejected=1, reused=0)
    assert rows_of(three) == expected
    assert len(calls) > call


def test_an_outage_that_lasts_leaves_no_verdicts(three: Options) -> None:
    three = three.changed(storage_patience=1)
    assert [*list_parts(three)] == [3]
    folder = Path(three.files.input)
    hidden = folder.rename(f"{folder}.away")
    with pytest.raises(StoreError, match=f"{folder}: no answer for 1 s .*; the same command res"):
        inspect_part(0, Watch(), options=three)
    assert Unfinished(Folder(three.files.output)).find(inventory_table(0)) is None
    hidden.rename(folder)
    assert inspect(three) == Inspected(files=3, rejected=1, reused=0)


def test_a_link_that_leads_somewhere_after_it_was_listed_has_that_size(
    folder: Path, tmp_path: Path, write_slice: WriteSlice
) -> None:
    (folder / "link.dcm").symlink_to(tmp_path / "disk" / "there.dcm")
    options = options_for(folder, tmp_path)
    assert [*list_parts(options)] == [1]
    write_slice(tmp_path / "disk" / "there.dcm")
    assert inspect_part(0, Watch(), options=options) == Inspected(files=1, rejected=0, reused=0)
    assert rows_of(options)["link.dcm"]["pixel_bytes"] == 32 * 32 * 2


def test_time_to_read_a_long_header_is_not_the_decoders(folder: Path, tmp_path: Path) -> None:
    """A store that is away meanwhile must not be taken for a decoder that hangs."""

    class Diary(Watch):
        told: ClassVar[list[str]] = []

        def waiting(self) -> None:
            self.told.append("waiting")

        def working(self, place: int) -> None:
            self.told.append("working")

    (folder / "long.dcm").write_bytes(make_dicom(PatientComments="x" * (1 << 16)))
    options = options_for(folder, tmp_path, leak_check=LeakCheck.OFF)
    assert [*list_parts(options)] == [1]
    assert not inspect_part(0, Diary(), options=options).rejected
    assert Diary.told == ["working", "waiting", "working", "waiting"]


def test_new_files_are_read_and_the_others_found_at_their_new_places(
    three: Options, write_slice: WriteSlice
) -> None:
    inspect(three)
    write_slice(Path(three.files.input, "a2.dcm"), PatientID="new")
    witness = Witness()
    assert inspect(three, witness) == Inspected(files=4, rejected=1, reused=3)
    assert witness.places == [1]
    patients = [row["patient_id"] for row in rows_of(three).values()]
    assert patients == ["first", "new", "first", ""]


@pytest.mark.parametrize("crashed", [False, True])
def test_a_file_that_is_gone_is_not_in_the_inventory_any_more(
    three: Options, crashed: bool
) -> None:
    inspect(three, Watch({1: Reason.DECODER_CRASHED} if crashed else {}))
    Path(three.files.input, "b.dcm").unlink()
    assert inspect(three) == Inspected(files=2, rejected=1, reused=2)
    assert [*rows_of(three)] == ["a.dcm", "c.dcm"]


def test_another_key_of_the_identifiers_makes_all_be_read_again(
    three: Options, tmp_path: Path
) -> None:
    (tmp_path / "key").write_bytes(b"one key of many bytes")
    hashed = three.changed(identifiers=Identifiers.HASH, identifier_key_file=str(tmp_path / "key"))
    inspect(hashed)
    before = rows_of(hashed)
    assert inspect(hashed) == Inspected(files=3, rejected=1, reused=3)
    (tmp_path / "key").write_bytes(b"another key of many bytes")
    assert inspect(hashed) == Inspected(files=3, rejected=1, reused=0)
    assert rows_of(hashed)["a.dcm"]["patient_id"] != before["a.dcm"]["patient_id"]
    message = b"patient_id\0first"
    expected = hmac.new(b"another key of many bytes", message, "sha256").hexdigest()[:16]
    assert rows_of(hashed)["a.dcm"]["patient_id"] == expected


OTHER_VALUES: dict[str, Any] = {
    "labels": "labels.csv",
    "windows": "brain",
    "hu": True,
    "voi": "linear",
    "image_size": 64,
    "files": "list.txt",
    "max_patients": 1,
    "min_slices": 1,
    "one_series_per_study": True,
    "slice_thickness": 1.0,
    "label_level": "patient",
    "id_column": "id",
    "unlabeled": "skip",
    "label_columns": "any",
    "folds": 2,
    "holdout": 0.5,
    "folds_from": "shards",
    "examples_per_shard": 1,
    "seed": 1,
}


def test_options_that_are_kept_headers_for_decide_nothing_of_them(
    three: Options, tmp_path: Path
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("a.dcm\nb.dcm\nc.dcm\n")
    kinds = Options.groups().values()
    fields = {name: field for kind in kinds for name, field in kind.model_fields.items()}
    marked = {name for name, field in fields.items() if Mark.AFTER_HEADERS in field.metadata}
    assert marked == OTHER_VALUES.keys()
    inspect(three)
    before = three.files.folder.read(".unfinished/inventory/00000.arrow")
    for name, value in (OTHER_VALUES | {"files": listed}).items():
        three.files.folder.remove(".unfinished/inventory")
        inspect(three.changed(**{name: value}))
        assert three.files.folder.read(".unfinished/inventory/00000.arrow") == before, name


def test_an_inventory_that_was_cut_is_made_again(three: Options) -> None:
    inspect(three)
    before = rows_of(three)
    path = Path(three.files.output, ".unfinished", f"{inventory_table(0)}.arrow")
    path.write_bytes(path.read_bytes()[:-100])
    assert inspect(three) == Inspected(files=3, rejected=1, reused=0)
    assert rows_of(three) == before


def test_a_store_that_fails_is_no_verdict_on_a_file(
    three: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    [*list_parts(three)]

    def fail(*_: object) -> bytes:
        raise StoreError("disk", "is on fire")

    monkeypatch.setattr("headct.stores.input_output.Reading.now", fail)
    with pytest.raises(StoreError, match="disk: is on fire"):
        inspect_part(0, Watch(), options=three)
    assert Unfinished(Folder(three.files.output)).find(inventory_table(0)) is None


def test_a_header_is_carried_without_its_ids() -> None:
    encoding = PixelEncoding(16, 12, 11, signed=False, slope=0.5, intercept=-1000.0, padding=(0, 9))
    header = Header(
        sop_instance_uid="uid",
        patient_id="patient",
        study_id="study",
        series_id="series",
        identifiers=("patient", "name"),
        position_z=math.nan,
        pixel_spacing=(0.5, 0.25),
        rows=512,
        columns=256,
        transfer_syntax="1.2.840.10008.1.2",
        encoding=encoding,
        window=(40.0, 80.0),
        voi_function="SIGMOID",
        pixel_offset=1234,
        beginning="abcdef",
    )
    text = header.encode()
    assert "patient" not in text
    assert len(text) < 150  # one per slice is in memory
    anonymous = {"sop_instance_uid": "", "patient_id": "", "study_id": "", "series_id": ""}
    assert repr(Header.decode(text)) == repr(dataclasses.replace(header, **anonymous))
    plain = dataclasses.replace(
        header, position_z=0.1, window=None, encoding=dataclasses.replace(encoding, padding=None)
    )
    assert Header.decode(plain.encode()) == dataclasses.replace(plain, **anonymous)

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beam_pipeline.dicom import Header
from beam_pipeline.errors import Reason, UsageError
from beam_pipeline.hounsfield import PixelEncoding
from beam_pipeline.inventory import (
    Batch,
    decode_header,
    encode_header,
    inspect_batch,
    list_batches,
    name_of,
)
from beam_pipeline.options import ImageId, LeakCheck, Options
from beam_pipeline.storage import InputFiles


def test_every_file_is_in_one_batch(small_data_set: Path) -> None:
    files = InputFiles.parse(str(small_data_set / "slices"))
    batches = [batch for batch in list_batches(files) if isinstance(batch, Batch)]
    sources = [source for batch in batches for source in batch.sources]
    assert sources == sorted(path.name for path in (small_data_set / "slices").iterdir())


def test_a_header_gives_a_row_and_a_bad_file_its_reason(small_data_set: Path) -> None:
    files = InputFiles.parse(str(small_data_set / "slices"))
    seen: list[int] = []
    batch = Batch(("ID_32.dcm", "ID_text.dcm", "ID_absent.dcm", "ID_11.dcm"))
    batch = batch.excluding("ID_11.dcm", Reason.DECODER_CRASHED)
    options = Options("in", None, "out", leak_check=LeakCheck.OFF)
    frame = inspect_batch(batch, seen.append, files=files, options=options)
    header = decode_header(frame["header"][0])
    assert header is not None
    assert (header.rows, header.columns, header.position_z) == (32, 32, 10.0)
    assert frame.drop(columns="header").to_dict("records") == [
        {
            "source": "ID_32.dcm",
            "image_id": "ID_32",
            "patient_id": "Secret^Name3",
            "study_id": "secret.study.3",
            "series_id": "secret.series.3",
            "fingerprint": "",
            "reason": "",
            "detail": "",
        },
        _rejected("ID_text", "not_dicom", ""),
        _rejected("ID_absent", "unreadable", "No such file or directory"),
        _rejected("ID_11", "decoder_crashed", ""),
    ]
    assert seen == [0, 1, 2, 3]


def _rejected(name: str, reason: str, detail: str) -> dict[str, str]:
    ids = {"patient_id": "", "study_id": "", "series_id": "", "fingerprint": ""}
    return {"source": f"{name}.dcm", "image_id": name, **ids, "reason": reason, "detail": detail}


def test_the_image_id_is_the_name_without_suffix() -> None:
    assert name_of("a/b/ID_1.dcm") == "ID_1"
    assert name_of("a.b/IM0001") == "IM0001"
    assert name_of("1.2.840.dcm") == "1.2.840"


def test_a_folder_that_cannot_be_listed_ends_the_list_with_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def list_one(self: InputFiles) -> Iterator[str]:
        yield "a.dcm"
        raise UsageError("cannot list b")

    monkeypatch.setattr(InputFiles, "list", list_one)
    (error,) = list_batches(InputFiles(str(tmp_path)))
    assert isinstance(error, UsageError)


def test_a_slice_may_be_identified_by_its_sop_instance_uid(
    write_slice: Callable[..., Path], tmp_path: Path
) -> None:
    write_slice(tmp_path / "a.dcm", SOPInstanceUID="1.2.3")
    write_slice(tmp_path / "b.dcm", SOPInstanceUID=None)
    options = Options("in", None, "out", image_id=ImageId.SOP_INSTANCE_UID)
    frame = inspect_batch(
        Batch(("a.dcm", "b.dcm")),
        lambda place: None,
        files=InputFiles(str(tmp_path)),
        options=options,
    )
    assert frame["image_id"].tolist() == ["1.2.3", ""]
    assert frame["reason"].tolist() == ["", "missing_attribute"]


def test_a_header_is_carried_without_its_ids() -> None:
    encoding = PixelEncoding(16, 12, 11, signed=False, slope=0.5, intercept=-1000.0, padding=(0, 9))
    header = Header(
        *("uid", "patient", "study", "series", 12.25, (0.5, 0.25), 512, 256, "1.2.840.10008.1.2"),
        *(encoding, (40.0, 80.0), 1234, "abcdef"),
    )
    text = encode_header(header)
    assert "patient" not in text
    anonymous = {"sop_instance_uid": "", "patient_id": "", "study_id": "", "series_id": ""}
    assert decode_header(text) == dataclasses.replace(header, **anonymous)
    plain = dataclasses.replace(
        header, window=None, encoding=dataclasses.replace(encoding, padding=None)
    )
    assert decode_header(encode_header(plain)) == dataclasses.replace(plain, **anonymous)


def test_a_header_that_cannot_be_recognised_is_not_carried() -> None:
    encoding = PixelEncoding(8, 8, 7, signed=False, slope=1.0, intercept=0.0)
    header = Header("", "", "", "", 0.0, (1.0, 1.0), 2, 2, "1.2", encoding)
    assert encode_header(header) == ""
    assert decode_header("") is None

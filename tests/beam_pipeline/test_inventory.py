from pathlib import Path

from beam_pipeline.errors import Reason
from beam_pipeline.inventory import Batch, image_id, inspect_batch, list_batches
from beam_pipeline.storage import InputFiles


def test_every_file_is_in_one_batch(small_data_set: Path) -> None:
    files = InputFiles.parse(str(small_data_set / "slices"))
    sources = [source for batch in list_batches(files) for source in batch.sources]
    assert sources == sorted(path.name for path in (small_data_set / "slices").iterdir())


def test_a_header_gives_a_row_and_a_bad_file_its_reason(small_data_set: Path) -> None:
    files = InputFiles.parse(str(small_data_set / "slices"))
    seen: list[int] = []
    batch = Batch(("ID_32.dcm", "ID_text.dcm", "ID_absent.dcm", "ID_11.dcm"))
    batch = batch.excluding("ID_11.dcm", Reason.DECODER_CRASHED)
    frame = inspect_batch(batch, seen.append, files=files)
    assert frame.to_dict("records") == [
        {
            "source": "ID_32.dcm",
            "image_id": "ID_32",
            "patient_id": "Secret^Name3",
            "study_id": "secret.study.3",
            "series_id": "secret.series.3",
            "reason": "",
            "detail": "",
        },
        _rejected("ID_text", "not_dicom", ""),
        _rejected("ID_absent", "unreadable", "No such file or directory"),
        _rejected("ID_11", "decoder_crashed", ""),
    ]
    assert seen == [0, 1, 2, 3]


def _rejected(name: str, reason: str, detail: str) -> dict[str, str]:
    ids = {"patient_id": "", "study_id": "", "series_id": ""}
    return {"source": f"{name}.dcm", "image_id": name, **ids, "reason": reason, "detail": detail}


def test_the_image_id_is_the_name_without_suffix() -> None:
    assert image_id("a/b/ID_1.dcm") == "ID_1"
    assert image_id("a.b/IM0001") == "IM0001"
    assert image_id("1.2.840.dcm") == "1.2.840"

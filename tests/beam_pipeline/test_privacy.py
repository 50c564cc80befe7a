"""What a run writes and says about files with names, birth dates and ids in their headers."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

SECRETS = {
    "PatientName": "Mustermann^Erika",
    "PatientID": "MRN-4711-0815",
    "PatientBirthDate": "19640812",
    "PatientAddress": "Heidestrasse 17",
    "OtherPatientIDs": "SSN-078-05-1120",
    "AccessionNumber": "ACC-99887766",
    "InstitutionName": "Charite Mitte",
    "ReferringPhysicianName": "House^Gregory",
    "StudyDescription": "Kopf nach Sturz vom Pferd",
    "StudyInstanceUID": "1.2.276.0.7230010.3.1.2.424242",
    "SeriesInstanceUID": "1.2.276.0.7230010.3.1.3.434343",
    "SOPInstanceUID": "1.2.276.0.7230010.3.1.4.444444",
}
# Values that make a reader complain, and that its complaint might quote.
BAD_VALUES = [
    {"PhotometricInterpretation": "MUSTERMANN ERIKA"},
    {"Modality": "ERIKA MUSTERMANN"},
    {"PatientID": ""},
    {"Rows": None},
    {"PixelData": b"19640812"},
]
# No writer lets these pass: they are put in place of a value of the same length.
BAD_BYTES = [
    {"RescaleSlope": (b"Erika^Mustermann", "1.00000000000000")},
    {"RescaleIntercept": (b"MRN-4711-0815", "-1024.0000000")},
    {"WindowCenter": (b"House^Gregory", "40.0000000000")},
]


@pytest.fixture
def folder(tmp_path: Path, write_slice: Callable[..., Path]) -> Path:
    slices = tmp_path / "in"
    for number in range(6):
        write_slice(slices / f"ID_good{number}.dcm", **SECRETS)
    for number, values in enumerate(BAD_VALUES):
        write_slice(slices / f"ID_bad{number}.dcm", **SECRETS | values)
    for number, changes in enumerate(BAD_BYTES):
        ((keyword, (bad, good)),) = changes.items()
        path = write_slice(slices / f"ID_text{number}.dcm", **SECRETS | {keyword: good})
        path.write_bytes(path.read_bytes().replace(good.encode(), bad))
    whole = (slices / "ID_good0.dcm").read_bytes()
    (slices / "ID_cut.dcm").write_bytes(whole[: len(whole) // 4])
    (slices / "ID_flipped.dcm").write_bytes(whole[:300] + b"\xff" * 20 + whole[320:])
    return tmp_path


@pytest.mark.parametrize("complete", [False, True])
def test_nothing_of_a_header_is_found_in_any_output(folder: Path, complete: bool) -> None:
    command = [sys.executable, "-W", "always", "-m", "beam_pipeline", "--image_size", "32"]
    command += ["--input", str(folder / "in"), "--output", str(folder / "out")]
    command += ["--max_reject_fraction", "1" if complete else "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if complete else 3), done.stderr
    texts = {"stdout": done.stdout, "stderr": done.stderr}
    for path in (folder / "out").rglob("*"):
        if path.suffix == ".parquet":
            texts[path.name] = pd.read_parquet(path).to_csv()
        elif path.is_file():
            texts[path.name] = path.read_bytes().decode("latin-1")
    assert len(texts) > 3
    words = [word for value in SECRETS.values() for word in value.split("^")] + ["MUSTERMANN"]
    for name, text in texts.items():
        for word in words:
            assert word.lower() not in text.lower(), f"{word} in {name}"

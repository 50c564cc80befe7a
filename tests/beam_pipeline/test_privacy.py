"""What a run writes and says about files with names, birth dates and ids in their headers."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from beam_pipeline.__main__ import main
from beam_pipeline.keys import KEY_VARIABLE, hash_id
from beam_pipeline.shards.unfinished import decode_table
from headct.layout import ID_COLUMNS

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning:apache_beam.*")  # Beam's own

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
KEY = "key-of-all-identifiers-0123456789"

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
    write_slice(slices / "ID_flat.dcm", np.zeros((32, 32), np.int16), **SECRETS)
    (tmp_path / "key").write_text(KEY)
    return tmp_path


# How many files of 17 may be rejected, and the tables that a run leaves which ends with that.
ENDS = {
    "while planning": (1, {"listing", "inventory"}),
    "after writing": (7, {"listing", "inventory", "plan", "written", "rejects.arrow"}),
    "complete": (17, set[str]()),
}


# Each end and each way; all pairs with --full.
SOME = {
    ("while planning", "hash"),
    ("after writing", "ordinal"),
    ("complete", "hash by the environment"),
}
PAIRS = [
    pytest.param(*pair, marks=[] if pair in SOME else [pytest.mark.full])
    for pair in itertools.product(ENDS, ("ordinal", "hash", "hash by the environment"))
]


@pytest.mark.parametrize(("end", "identifiers"), PAIRS)
def test_nothing_of_a_header_is_found_in_any_output(
    folder: Path, end: str, identifiers: str
) -> None:
    rejects, tables = ENDS[end]
    command = [sys.executable, "-W", "always", "-m", "beam_pipeline", "--image_size", "32"]
    command += ["--input", str(folder / "in"), "--output", str(folder / "out")]
    command += ["--max_reject_fraction", str(rejects / 17)]
    command += ["--identifiers", identifiers.partition(" ")[0]]
    environment = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    if identifiers == "hash":
        command += ["--identifier_key_file", str(folder / "key")]
    elif identifiers != "ordinal":
        environment[KEY_VARIABLE] = KEY
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if end == "complete" else 3), done.stderr
    assert {path.name for path in (folder / "out" / ".unfinished").glob("*")} >= tables
    assert (folder / "out" / "report.html").exists()
    texts = {"stdout": done.stdout, "stderr": done.stderr} | read_all(folder / "out")
    assert len(texts) > 4
    assert any("ID_good0" in text for text in texts.values())  # so an id would be found
    words = [word for value in SECRETS.values() for word in value.split("^")] + ["MUSTERMANN"]
    words += [KEY, *(hash_id(b"", column, SECRETS[name]) for column, name in IDS.items())]
    for name, text in texts.items():
        for word in words:
            assert word.lower() not in text.lower(), f"{word} in {name}"


@pytest.mark.parametrize(("image_id", "told"), [("file_name", 3), ("ordinal", 0)])
def test_paths_that_hold_identifiers_are_counted_and_told(
    tmp_path: Path,
    write_slice: Callable[..., Path],
    image_id: str,
    told: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    places = ["MUSTERMANN_ERIKA/a", "b_MRN-4711-0815", "ACC-99887766/c", "study/d", "e"]
    for place in places:
        write_slice(tmp_path / "in" / f"{place}.dcm", **SECRETS | {"SOPInstanceUID": place})
    options = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main([*options, "--image_size", "32", "--image_id", image_id]) == 0
    shown = capfd.readouterr()
    assert ("--image_id ordinal hides all paths" in shown.out) == bool(told)
    assert "ustermann" not in shown.out + shown.err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["counts"]["identifying_paths"] == told
    if told:
        assert f"{told} files have their patient's ID" in shown.out


IDS = dict(zip(ID_COLUMNS, ("PatientID", "StudyInstanceUID", "SeriesInstanceUID"), strict=True))


def read_all(folder: Path) -> dict[str, str]:
    """All files of a folder as text, and tables decompressed."""
    texts = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.suffix == ".parquet":
            texts[name] = pd.read_parquet(path).to_csv()
        elif path.suffix == ".arrow":
            table = decode_table(path.read_bytes())
            texts[name] = f"{table.to_pylist()} {table.schema.metadata}"
        elif path.is_file():
            texts[name] = path.read_bytes().decode("latin-1")
    return texts

"""The data set on disk: slices, a few bad files, labels; whole or recognizably unfinished.

DIR/sample.json            what it is, written first
DIR/slices/ID_*.dcm        complete series, and the bad files
DIR/test_slices/ID_*.dcm   series of other patients, which no row of the labels names
DIR/labels.csv             `ID,Label`, one row per class, written last and atomically
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np

from examples.sample.encoding import (
    BADLY_ENCODED,
    ENCODINGS,
    Names,
    dicom_bytes,
    stored_values,
)
from examples.sample.fields import SIZE, Field
from examples.sample.hemorrhage import KINDS
from examples.sample.scanner import Patient, scan_slice, with_artifacts

LABELS = (*KINDS, "any")
VERSION = 2  # of the generator: another one makes other files from the same parameters
PATIENTS, TEST_PATIENTS, SLICES = 72, 4, 20  # unless other numbers are asked for
MIN_SLICES, MAX_SLICES, MAX_PATIENTS = 4, 400, 100_000
REPEATED_IDS = 4  # Kaggle's file repeats the rows of four images
TRUNCATED_BYTES = 153_710  # of PixelData, as in ID_6431af929
CROPPED = (472, 424)  # rows, columns of the slice that is not 512 x 512

MARKER, LABEL_FILE = "sample.json", "labels.csv"
FOLDERS = ("slices", "test_slices")

Rows = dict[str, dict[str, bool]]
State = Literal["absent", "unfinished", "older", "whole"]


class SampleError(ValueError):
    """The parameters are out of range, or the folder holds something else."""


@dataclass(frozen=True)
class Parameters:
    """What the bytes of a sample follow from."""

    patients: int = PATIENTS
    slices: int = SLICES
    seed: int = 0
    test_patients: int = TEST_PATIENTS
    version: int = VERSION
    scans: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.patients <= MAX_PATIENTS:
            raise SampleError(f"--patients {self.patients}: want 1 to {MAX_PATIENTS}")
        if not 0 <= self.test_patients <= MAX_PATIENTS:
            raise SampleError(f"--test_patients {self.test_patients}: want 0 to {MAX_PATIENTS}")
        if not MIN_SLICES <= self.slices <= MAX_SLICES:
            raise SampleError(f"--slices {self.slices}: want {MIN_SLICES} to {MAX_SLICES}")
        if self.seed < 0:
            raise SampleError(f"--seed {self.seed}: want 0 or more")

    @property
    def marker(self) -> dict[str, int]:
        """What the marker tells; without `scans`, what it has always told."""
        return {name: value for name, value in asdict(self).items() if name != "scans" or value}

    def slices_of(self, patient: int) -> int:
        """How many slices a patient's series has: with `scans`, a third are twice as thin."""
        thin = np.random.SeedSequence([self.seed, *b"thin", patient]).generate_state(1)[0] % 3 == 0
        return self.slices * (2 if self.scans and thin else 1)


@dataclass(frozen=True)
class BadFile:
    """One of the bad files: what is wrong, and whose slice at which index it is."""

    fault: str
    patient: int
    index: int


@dataclass(frozen=True)
class SampleSummary:
    """What is in a sample.

    `replaced` says whether one of an older version was there. `files` counts `slices`,
    `test_files` counts `test_slices`, `label_counts` labelled slices; `bad_files` maps a fault to
    a path below the sample's folder.
    """

    output: Path
    parameters: Parameters
    reused: bool
    replaced: bool
    files: int
    test_files: int
    label_counts: dict[str, int]
    bad_files: dict[str, str]

    @property
    def slices(self) -> Path:
        """The folder of labelled DICOM files."""
        return self.output / "slices"

    @property
    def test_slices(self) -> Path:
        """The folder of DICOM files to predict."""
        return self.output / "test_slices"

    @property
    def labels(self) -> Path:
        """The label file."""
        return self.output / "labels.csv"


def write_sample(
    output: Path,
    *,
    patients: int = PATIENTS,
    slices: int = SLICES,
    seed: int = 0,
    test_patients: int = TEST_PATIENTS,
    scans: bool = False,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> SampleSummary:
    """Write a sample, or find it there already.

    Args:
        output: a folder that is absent, empty, or holds this sample, whole or unfinished, or one
            of an older version, which is replaced.
        patients: complete series, one a patient.
        slices: a series.
        seed: the bytes follow from it and the numbers of patients and slices alone.
        test_patients: patients without labels, beside the others.
        scans: whether a third of the series are twice as thin, and some slices show artifacts that
            look like blood; blood is on neighboring slices, too.
        workers: processes; 1 works in this one.
        progress: called after each patient with the number of patients done since the last call.

    Raises:
        SampleError: a parameter is out of range, or `output` holds something else. It is left as
            it is.
    """
    parameters = Parameters(patients, slices, seed, test_patients, scans=scans)
    output = Path(output)
    state = _state(output, parameters)
    if state == "whole":
        return _summarize(output, parameters, reused=True)
    # Only labels written after the last slice may call the sample whole.
    (output / LABEL_FILE).unlink(missing_ok=True)
    if state == "older":
        _remove_slices(output)
    for folder in FOLDERS:
        (output / folder).mkdir(parents=True, exist_ok=True)
    _write_text(output / MARKER, json.dumps(parameters.marker) + "\n")
    rows: Rows = {}
    everyone = patients + test_patients
    for part in _run(partial(_write_patient, output, parameters), everyone, workers):
        rows |= part
        if progress:
            progress(1)
    _write_duplicate(output, parameters)
    _write_labels(output / LABEL_FILE, rows)
    return _summarize(output, parameters, reused=False, replaced=state == "older")


def bad_files(parameters: Parameters) -> tuple[BadFile, ...]:
    """Which files are bad, the same number at any size.

    The repaired and the cropped one stand for a slice of their series, which stays complete; the
    others lie beyond its ends, or are copies.
    """
    spread: tuple[tuple[str, int, Callable[[int], int]], ...] = (
        ("badly_encoded", 1, lambda slices: slices // 2),
        ("cropped", 2, lambda slices: slices // 2 + 1),
        ("unlabelled", 3, lambda _: -1),
        ("truncated", 4, lambda _: -2),
        ("constant", 5, lambda slices: slices),
        ("not_dicom", 6, lambda _: -3),
        ("duplicate", 7, lambda _: 0),
    )
    patients = [(fault, number % parameters.patients, place) for fault, number, place in spread]
    return tuple(BadFile(f, each, place(parameters.slices_of(each))) for f, each, place in patients)


def image_id(parameters: Parameters, patient: int, index: int) -> str:
    """The name of a slice: `ID_` and nine hexadecimal digits, no two alike."""
    return _identifier(parameters.seed, "image", patient * 1024 + index + 64, 9)


def _identifier(seed: int, role: str, number: int, digits: int) -> str:
    # Multiplication by an odd number permutes the integers modulo a power of two.
    offset = np.random.SeedSequence([seed, *role.encode()]).generate_state(1, np.uint64)[0]
    value = (number * 0x9E3779B97F4A7C15 + int(offset)) % 16**digits
    return f"ID_{value:0{digits}x}"


def _names(parameters: Parameters, patient: int, index: int) -> Names:
    return Names(
        image_id(parameters, patient, index),
        _identifier(parameters.seed, "patient", patient, 8),
        _identifier(parameters.seed, "study", patient, 10),
        _identifier(parameters.seed, "series", patient, 10),
    )


def _run(task: Callable[[int], Rows], count: int, workers: int) -> Iterator[Rows]:
    if workers == 1:
        yield from map(task, range(count))
        return
    # Spawned, for a fork copies the locks of OpenCV's threads.
    with ProcessPoolExecutor(min(workers, count), mp_context=get_context("spawn")) as pool:
        yield from pool.map(task, range(count))


def _write_patient(output: Path, parameters: Parameters, number: int) -> Rows:
    """Write one patient's series and the bad files that are hers; return their labels.

    Patients to predict are numbered after the others; nothing of theirs is bad, or labelled.
    """
    seeds = np.random.SeedSequence(parameters.seed, spawn_key=(number,))
    slices = parameters.slices_of(number)
    patient = Patient.random(number, slices, seeds)
    if parameters.scans:
        seed = [parameters.seed, *b"artifacts", number]
        patient = with_artifacts(patient, slices, np.random.default_rng(seed))
    is_test = number >= parameters.patients
    hers = [bad for bad in bad_files(parameters) if bad.patient == number]
    faults = {bad.index: bad.fault for bad in hers if bad.fault != "duplicate"}
    rows: Rows = {}
    for index in sorted({*range(slices), *faults}):
        names = _names(parameters, number, index)
        fault = faults.get(index, "")
        content, labels = _slice_file(patient, number, index, names, fault)
        (output / FOLDERS[is_test] / f"{names.image}.dcm").write_bytes(content)
        if fault != "unlabelled" and not is_test:
            rows[names.image] = labels
    return rows


def _slice_file(
    patient: Patient, number: int, index: int, names: Names, fault: str
) -> tuple[bytes, dict[str, bool]]:
    if fault == "not_dicom":
        page = b"<!DOCTYPE html>\n<title>403 Forbidden</title>\n<p>The link has expired.</p>\n"
        return page, dict.fromkeys(LABELS, False)
    encoding = BADLY_ENCODED if fault == "badly_encoded" else ENCODINGS[number % len(ENCODINGS)]
    scan = scan_slice(patient, index)
    hu, position = scan.hu, patient.geometry.position(index)
    labels = scan.labels
    if fault == "constant":
        hu, labels = np.full_like(hu, -1024), dict.fromkeys(LABELS, False)
        encoding = ENCODINGS[1]
    if fault == "cropped":
        hu, position = _crop(patient, hu, position)
    raw = stored_values(hu, encoding)
    content = dicom_bytes(raw, encoding, names, patient.geometry, position)
    if fault == "truncated":
        content = content[: len(content) - raw.nbytes + TRUNCATED_BYTES]
    return content, labels


def _crop(
    patient: Patient, hu: Field, position: tuple[float, float, float]
) -> tuple[Field, tuple[float, float, float]]:
    top, left = ((SIZE - kept) // 2 for kept in CROPPED)
    geometry = patient.geometry
    down = geometry.orientation[3:]
    x, y, z = np.add(position, np.multiply(down, top * geometry.pixel_mm)).tolist()
    return hu[top : top + CROPPED[0], left : left + CROPPED[1]], (
        x + left * geometry.pixel_mm,
        y,
        z,
    )


def _write_duplicate(output: Path, parameters: Parameters) -> None:
    source, copy = _bad_paths(output, parameters)["duplicate"]
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(source.read_bytes())


def _bad_paths(output: Path, parameters: Parameters) -> dict[str, tuple[Path, Path]]:
    """For each fault the path of its slice and that of the bad file (another for a duplicate)."""
    folder = output / FOLDERS[0]
    paths = {}
    for bad in bad_files(parameters):
        name = f"{image_id(parameters, bad.patient, bad.index)}.dcm"
        copy = folder / "duplicate" / name if bad.fault == "duplicate" else folder / name
        paths[bad.fault] = (folder / name, copy)
    return paths


def _write_labels(path: Path, rows: Rows) -> None:
    lines = ["ID,Label"]
    names = sorted(rows)
    for name in [*names, *names[:: max(len(names) // REPEATED_IDS, 1)][:REPEATED_IDS]]:
        lines += [f"{name}_{label},{int(rows[name][label])}" for label in LABELS]
    _write_text(path, "\n".join(lines) + "\n")


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _state(output: Path, parameters: Parameters) -> State:
    """What lies in the folder.

    Raises:
        SampleError: something else than this sample, or an older version of it.
    """
    if not output.exists():
        return "absent"
    if not output.is_dir():
        raise SampleError(f"{output} is not a folder; choose another --output")
    marker = output / MARKER
    if not marker.exists():
        if any(path.name != f"{MARKER}.part" for path in output.iterdir()):
            raise SampleError(f"{output} is not empty and holds no sample; choose another --output")
        return "absent"
    found = _read_marker(marker)
    if found["version"] < VERSION:
        return "older"
    if found != parameters.marker:
        raise SampleError(
            f"{output} holds a sample made with other parameters ({marker.read_text().strip()}); "
            "choose another --output, or remove it"
        )
    complete = (output / LABEL_FILE).exists() and _count_files(output) == _expected(parameters)
    return "whole" if complete else "unfinished"


def _read_marker(marker: Path) -> dict[str, Any]:
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("version"), int):
        raise SampleError(f"{marker} is not a sample's; choose another --output")
    return found


def _remove_slices(output: Path) -> None:
    """Remove what an older version wrote and nothing else; its marker stays until they are gone."""
    for folder in FOLDERS:
        for path in (output / folder).rglob("ID_*.dcm"):
            path.unlink()


def _expected(parameters: Parameters) -> tuple[int, int]:
    extra = sum(bad.fault not in ("badly_encoded", "cropped") for bad in bad_files(parameters))
    everyone = parameters.patients + parameters.test_patients
    sizes = [parameters.slices_of(number) for number in range(everyone)]
    return sum(sizes[: parameters.patients]) + extra, sum(sizes[parameters.patients :])


def _count_files(output: Path) -> tuple[int, int]:
    """How many slices there are with labels, and how many without."""
    labelled, test = (sum(1 for _ in (output / each).rglob("*.dcm")) for each in FOLDERS)
    return labelled, test


def _summarize(
    output: Path, parameters: Parameters, *, reused: bool, replaced: bool = False
) -> SampleSummary:
    with (output / LABEL_FILE).open(encoding="utf-8", newline="") as file:
        table = {row["ID"]: row["Label"] == "1" for row in csv.DictReader(file)}
    counts = {
        label: sum(value for name, value in table.items() if name.endswith(f"_{label}"))
        for label in LABELS
    }
    paths = _bad_paths(output, parameters)
    bad = {fault: str(path.relative_to(output)) for fault, (_, path) in paths.items()}
    files, test_files = _count_files(output)
    return SampleSummary(output, parameters, reused, replaced, files, test_files, counts, bad)

"""Public functions of `import beam_pipeline`."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beam_pipeline.command_line import complete_options
from beam_pipeline.dicom.hounsfield import RepairPolicy, choose_repair, hounsfield_table
from beam_pipeline.dicom.slices import read_slice as parse_slice
from beam_pipeline.inspection.inspection import Inspection as Inspection
from beam_pipeline.inspection.inspection import inspect_input
from beam_pipeline.run import run
from beam_pipeline.runners.choose import LOCAL, ChosenRunner
from headct.stores import open_file
from headct.terminal import Terminal


def preprocess(
    input: str | Path, output: str | Path, *, labels: str | Path | None = None, **options: Any
) -> dict[str, Any]:
    """Convert head-CT DICOM files to a shard directory, on all cores of this machine.

    Like `headct preprocess`, but without output, except for progress and a summary in notebooks:
    equal options give equal bytes. An interrupted run resumes; a complete directory is not written
    again. For clusters use the command.

        manifest = preprocess(
            "slices", "out/shards", labels="labels.csv", windows="brain,subdural", image_size=256
        )
        for name, split in manifest["splits"].items():
            print(name, split["examples"], split["label_counts"])

    Args:
        input: folder, pattern, file or local ZIP archive of DICOM files; a path or URL.
        output: shard directory to make or resume; a path or URL.
        labels: label file, CSV or Parquet; without labels all slices go to the split `test`.
        options: options of docs/options.md by name, without the runner's. Values are strings as on
            the command line or have the option's type: `hu=True`, `folds=5`,
            `windows="brain,bone"` or `windows=["brain", "bone"]`.

    Returns:
        The content of manifest.json: counts, splits with their shards, labels, options, versions.

    Raises:
        headct.errors.UsageError: an option or the input cannot be used; one line says why.
        headct.errors.StorageError: a store or disk failed; the same call resumes.
        headct.errors.HeadctError: the run failed otherwise, for example because of too many
            rejected files; rejects.jsonl in the output has the reasons.
    """
    given = {"input": input, "output": output, "labels": labels, **options}
    handlers = [*logging.root.handlers]
    try:
        manifest = run(complete_options(given, LOCAL), ChosenRunner(LOCAL), _console())
    finally:
        logging.root.handlers[:] = handlers  # Beam's import adds a handler
    assert manifest is not None  # only clusters write templates
    return manifest


def inspect(input: str | Path, *, labels: str | Path | None = None, **options: Any) -> Inspection:
    """Read the headers of head-CT DICOM files, and say what `preprocess` would do with them.

        found = inspect("slices", labels="labels.csv", where="SliceThickness<=5")
        print(found)  # counts, folds, size and time to expect
        found.files.groupby("outcome")["reason"].value_counts()
        Path("inspect.html").write_text(found.page())

    Nothing is written but temporary files.

    Args:
        input: as of `preprocess`.
        labels: label file, as of `preprocess`.
        options: as of `preprocess`.

    Returns:
        The files, one row each, and a summary.

    Raises:
        headct.errors.UsageError: as `preprocess`, but not if too few files can be used.
        headct.errors.StorageError: a store or disk failed.
    """
    given = {"input": input, "output": "", "labels": labels, **options}
    return inspect_input(complete_options(given, LOCAL), _console())


def _console() -> Terminal:
    """Return a console that prints in notebooks alone."""
    console = Terminal()
    console.quiet = not console.is_jupyter
    return console


@dataclass(frozen=True, eq=False)
class CTSlice:
    """A CT slice in Hounsfield units, as `read_slice` returns it.

    Attributes:
        hounsfield: float32 [rows, columns], HU; padding is air.
        pixel_spacing: distance of rows and of columns, mm; NaN if absent.
        position_z: third coordinate of Image Position (Patient), mm; NaN if absent.
        window: center and width of the file's own window, HU; None if absent.
        repair: repair of badly encoded values: none, shift, ...
        patient_id: Patient ID as written in the file; empty if absent.
        study_id: Study Instance UID.
        series_id: Series Instance UID.
        sop_instance_uid: SOP Instance UID; empty if absent.
    """

    hounsfield: NDArray[np.float32]
    pixel_spacing: tuple[float, float]
    position_z: float
    window: tuple[float, float] | None
    repair: str
    patient_id: str
    study_id: str
    series_id: str
    sop_instance_uid: str


def read_slice(path: str | Path, *, hu_repair: str = "auto") -> CTSlice:
    """Read one DICOM file as the pipeline reads it, in Hounsfield units.

    All compressed transfer syntaxes of CT are decoded, and badly encoded values are repaired, as in
    `preprocess`. The file is decoded in this process: a malicious file may crash the process,
    whereas `preprocess` loses one worker.

        slice = read_slice("slices/ID_0123.dcm")
        brain = np.clip((slice.hounsfield - 0) / 80, 0, 1)

    Args:
        path: path or URL of a DICOM file, also in a ZIP archive.
        hu_repair: auto, off, shift or sign_extend, as the option of `preprocess`.

    Returns:
        The slice: pixels in Hounsfield units, and geometry and ids from the header.

    Raises:
        headct.reasons.Rejected: the file is not a usable CT slice; `reason` says why.
        OSError: the file does not exist or cannot be read.
        headct.errors.StorageError: the store of a URL failed.
        ValueError: hu_repair has an unknown value.
    """
    with open_file(str(path)) as file:
        source = parse_slice(file.read())
    header = source.header
    repair = choose_repair(source.pixels, header.encoding, RepairPolicy(hu_repair))
    table = hounsfield_table(header.encoding, repair).astype(np.float32)
    return CTSlice(
        hounsfield=table[source.pixels],
        pixel_spacing=header.pixel_spacing,
        position_z=header.position_z,
        window=header.window,
        repair=str(repair),
        patient_id=header.patient_id,
        study_id=header.study_id,
        series_id=header.series_id,
        sop_instance_uid=header.sop_instance_uid,
    )

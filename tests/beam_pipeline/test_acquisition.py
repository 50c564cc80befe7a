import math
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset

from beam_pipeline.dicom.acquisition import Acquisition, count_values, orientation_of
from beam_pipeline.dicom.dataset import Attributes
from beam_pipeline.options import Options
from beam_pipeline.planning.inventory import inspect_part, list_parts
from beam_pipeline.planning.join_labels import Inventory
from beam_pipeline.shards.unfinished import Unfinished
from beam_pipeline.workers import Watch
from headct.layout import inventory_table
from tests.beam_pipeline.dicom_files import items, make_dicom
from tests.beam_pipeline.test_dicom import header_of


def tilted(degrees: float) -> list[float]:
    """Directions of a slice that is turned about the patient's left-right axis."""
    angle = math.radians(degrees)
    return [1, 0, 0, 0, math.cos(angle), -math.sin(angle)]


def turned(degrees: float) -> list[float]:
    """Directions of a slice that is turned about the patient's front-back axis."""
    angle = math.radians(degrees)
    return [math.cos(angle), 0, math.sin(angle), 0, 1, 0]


@pytest.mark.parametrize(
    ("directions", "expected"),
    [
        ([1, 0, 0, 0, 1, 0], "axial"),
        ([-1, 0, 0, 0, -1, 0], "axial"),  # prone
        ([0, 1, 0, -1, 0, 0], "axial"),  # the normal is (0, 0, 1): a patient on the side
        ([1, 0, 0, 0, 0, -1], "coronal"),  # (0, 1, 0)
        ([0, 1, 0, 0, 0, -1], "sagittal"),  # (-1, 0, 0)
        (tilted(20), "axial"),  # a gantry's tilt
        (tilted(-30), "axial"),
        (tilted(44), "axial"),
        (tilted(45), "axial"),  # of two that are equally near
        (tilted(46), "coronal"),
        (turned(44), "axial"),
        (turned(46), "sagittal"),
        (turned(134), "sagittal"),
        (turned(136), "axial"),
        # The normal (1, 1, 1) is 54.7 degrees off every axis.
        ([1, -1, 0, 1, 1, -2], "oblique"),
        ([250, 0, 0, 0, 0.004, 0], "axial"),  # no unit vectors: (0, 0, 1)
        ([0.001, 0, 0, 0, 0, -1000], "coronal"),
        ([0, 0, 0, 0, 0, 0], "unknown"),
        ([1, 0, 0, 0, 0, 0], "unknown"),
        ([1, 0, 0, 2, 0, 0], "unknown"),  # parallel
        ([1, 0, 0, 1, 0.0001, 0], "unknown"),
        ([math.nan] * 6, "unknown"),
        ([1, 0, 0, 0, math.inf, 0], "unknown"),
        ([1, 0, 0, 0, 1], "unknown"),
        ([1, 0, 0, 0, 1, 0, 0], "unknown"),
        ([], "unknown"),
    ],
)
def test_an_orientation_is_that_of_the_normal(directions: list[float], expected: str) -> None:
    assert orientation_of(directions) == expected


FULL: dict[str, Any] = {
    "BodyPartExamined": "Head",
    "ConvolutionKernel": ["Hr38f", "2"],
    "SliceThickness": "4.800001",
    "Manufacturer": "SIEMENS",
    "ManufacturerModelName": " Sensation  64",
    "ImageOrientationPatient": tilted(12),
}


def read(**attributes: Any) -> Acquisition:
    return header_of(make_dicom(**attributes)).acquisition


def test_an_acquisition_of_a_plain_and_of_an_enhanced_image() -> None:
    expected = Acquisition("axial", "HEAD", "Hr38f\\2", 4.8, "SIEMENS Sensation 64")
    assert read(**FULL) == expected
    enhanced = {name: FULL[name] for name in ("Manufacturer", "ManufacturerModelName")}
    shared = items(
        PlaneOrientationSequence=items(ImageOrientationPatient=tilted(12)),
        PixelMeasuresSequence=items(SliceThickness=4.8, PixelSpacing=[0.5, 0.5]),
        CTReconstructionSequence=items(ConvolutionKernel=["Hr38f", "2"]),
        UnassignedSharedConvertedAttributesSequence=items(BodyPartExamined="HEAD"),
    )
    assert read(SharedFunctionalGroupsSequence=shared, **enhanced) == expected
    assert read() == Acquisition() == Acquisition.decode("")
    assert Acquisition.decode(expected.encode()) == expected


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"SliceThickness": "0"}, Acquisition()),
        ({"SliceThickness": ["1", "2"]}, Acquisition()),
        ({"SliceThickness": "0.62543"}, Acquisition(slice_thickness=0.6254)),
        ({"ConvolutionKernel": "x" * 16}, Acquisition(kernel="x" * 16)),
        ({"BodyPartExamined": "x" * 17}, Acquisition(body_part="OTHER")),
        ({"ConvolutionKernel": "x" * 17}, Acquisition(kernel="other")),
        ({"ConvolutionKernel": ["H30s"] * 14}, Acquisition(kernel="other")),
        ({"ManufacturerModelName": "x" * 64}, Acquisition(scanner="x" * 64)),
        ({"ConvolutionKernel": ["x" * 15] * 4 + ["y"]}, Acquisition(kernel="other")),
        ({"ManufacturerModelName": "x" * 65}, Acquisition(scanner="other")),
        ({"ConvolutionKernel": "H30\x07s"}, Acquisition(kernel="other")),
        ({"Manufacturer": "GE", "ManufacturerModelName": "GE"}, Acquisition(scanner="GE")),
    ],
)
def test_values_that_are_not_fit_to_be_shown(
    attributes: dict[str, Any], expected: Acquisition
) -> None:
    assert read(**attributes) == expected


def test_a_value_of_a_wrong_type_is_no_fault_of_the_slice() -> None:
    data = make_dicom(SliceThickness="4.125", ConvolutionKernel="H30s")
    thin = data.replace(b"4.125", b"thin ")
    assert header_of(thin).acquisition == Acquisition(kernel="H30s")
    dataset = Dataset()
    dataset.add_new("ConvolutionKernel", "OB", b"H3")
    assert Acquisition.read(Attributes(dataset)).kernel == "other"


def test_the_inventory_holds_no_text_with_an_identifier(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    person = {"PatientName": "DOE^JOHNATHAN", "PatientID": "4711-x"}
    for name, more in {
        "a": {},
        "b": {"ManufacturerModelName": "Johnathan's scanner", "BodyPartExamined": "4711 X"},
        "doe_johnathan_scout": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        "doe_johnathan_coronal": {"ImageOrientationPatient": tilted(90)},
        "doe_johnathan_broken": {"RescaleSlope": None},
    }.items():
        data = make_dicom(SOPInstanceUID=name, **person, **FULL | more)
        (tmp_path / "in" / f"{name}.dcm").write_bytes(data)
    options = Options.of(input=str(tmp_path / "in"), output=str(tmp_path / "out"))
    assert [*list_parts(options)] == [5]
    inspect_part(0, Watch(), options=options)
    table = Unfinished(options.files.folder).read(inventory_table(0))
    assert "Johnathan" not in str(table.to_pylist())
    # The paths of files that are not written are in rejects.jsonl.
    assert table["path_identifies"].to_pylist() == [False, False, True, True, True]
    inventory = Inventory.load(1, options)
    plain = Acquisition("axial", "HEAD", "Hr38f\\2", 4.8, "SIEMENS Sensation 64")
    hidden = Acquisition("axial", "other", "Hr38f\\2", 4.8, "other")
    numbers = inventory.files["acquisition"][:2]
    assert [inventory.acquisitions[number] for number in numbers] == [plain, hidden]


def test_counts_of_values() -> None:
    head, other = Acquisition("axial", "HEAD", "", 5.0), Acquisition("coronal", "other")
    kernels = {Acquisition(kernel=f"K{i:02}").encode(): 1 for i in range(60)}
    counted = count_values({head.encode(): 70, other.encode(): 3} | kernels)
    assert counted["orientation"] == {"axial": 70, "unknown": 60, "coronal": 3}
    assert counted["slice_thickness"] == {"5": 70, "absent": 63}
    assert counted["body_part"] == {"HEAD": 70, "absent": 60, "other": 3}
    assert [*counted["kernel"].items()][:2] == [("absent", 73), ("K00", 1)]
    assert (len(counted["kernel"]), counted["kernel"]["others"]) == (51, 11)
    assert {sum(values.values()) for values in counted.values()} == {133}
    named = count_values(kernels | {Acquisition(kernel="others").encode(): 2})["kernel"]
    assert (named["others"], sum(named.values())) == (13, 62)  # the value, and what is not shown

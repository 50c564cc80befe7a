import io
import json
import warnings
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from beam_pipeline.card.card import add_card
from beam_pipeline.dicom.header import FIRST_BYTES, read_header
from beam_pipeline.dicom.selection import Selection, parse_condition
from beam_pipeline.finish import finish_directory
from beam_pipeline.options import Options, Orientation
from beam_pipeline.planning.inventory import inspect_part, list_parts
from beam_pipeline.planning.plan_shards import plan_shards
from beam_pipeline.shards.output import write_refusal
from beam_pipeline.shards.unfinished import Unfinished
from beam_pipeline.verify.verification import verify_directory
from beam_pipeline.workers import Watch
from headct.errors import UsageError
from headct.reasons import Reason, Rejected
from headct.stores import Folder
from tests.beam_pipeline.card_page import Page
from tests.beam_pipeline.dicom_files import items, make_dicom
from tests.beam_pipeline.steps import write_shards
from tests.beam_pipeline.test_acquisition import tilted

FILE: dict[str, Any] = {
    "SliceThickness": "0.625000",
    "BodyPartExamined": "Head ",
    "ConvolutionKernel": ["Hr38f", "2"],
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "KVP": "120",
    "SeriesDescription": "Head [5mm] bone, thin",
    "StudyDate": "20190214",
    "PatientAge": "030M",
    "SeriesNumber": 3,
    "ContrastBolusAgent": "",
    "StationName": "7",
    "PixelPaddingValue": -2000,
    "AcquisitionDateTime": "20190214083000.5+0100",
}


def select(data: bytes, selection: Selection) -> None:
    read_header(io.BytesIO(data), len(data), selection)


def is_selected(data: bytes, *conditions: str) -> bool:
    try:
        select(data, Selection(conditions=tuple(map(parse_condition, conditions))))
    except Rejected as rejected:
        if rejected.reason is Reason.NOT_SELECTED and rejected.detail in conditions:
            return False
        raise
    return True


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("SliceThickness<=5", True),
        ("SliceThickness < 0.625", False),
        ("SliceThickness>=.625", True),
        ("SliceThickness>0.7", False),
        ("SliceThickness=5,0.625", True),
        ("SliceThickness==0.6250", True),
        ("SliceThickness!=0.625", False),
        ("(0018,0050)<=5", True),
        ("0018, 0050 > 5", False),
        ("BodyPartExamined=HEAD,BRAIN", True),
        ("BodyPartExamined=brain", False),
        ("BodyPartExamined!=BRAIN,HEAD", False),
        ("BodyPartExamined=HE", False),
        ("ConvolutionKernel=HR*", True),  # one of several values
        ("ConvolutionKernel=?", True),
        ("ConvolutionKernel!=2", False),  # none of them may match
        ("ConvolutionKernel!=BONE*", True),
        ("ImageType=LOCALIZER,AXIAL", True),
        ("SeriesDescription=*[5mm]*", True),  # no set of letters
        ("SeriesDescription=*[m]*", False),
        ("SeriesDescription=*bone? thin", True),
        ("StudyDate>=20190101", True),
        ("StudyDate=2018*", False),
        ("PatientAge<18", True),  # 30 months
        ("PatientAge=2.5", True),
        ("PatientAge>3", False),
        ("SeriesNumber=3", True),
        ("StationName=7.0", False),  # a text
        ("PixelPaddingValue<=-1000", True),  # US or SS, by Pixel Representation
        ("PixelPaddingValue=-2000.0", True),
        ("AcquisitionDateTime>=20190214083000.5", True),  # its time zone does not count
        ("AcquisitionDateTime<20190101", False),
        ("KVP", True),
        ("!KVP", False),
        ("ContrastBolusAgent", False),  # empty, which is absent
        ("!ContrastBolusAgent", True),
        ("ContrastBolusAgent!=Omnipaque", True),
        ("GantryDetectorTilt", False),
        ("GantryDetectorTilt=0", False),
        ("GantryDetectorTilt!=0", True),
        ("GantryDetectorTilt<100", False),
        ("!GantryDetectorTilt", True),
        ("!PatientName", True),
        ("TransferSyntaxUID=1.2.840.10008.1.2*", True),
        ("TransferSyntaxUID!=1.2.840.10008.1.2*", False),
    ],
)
def test_a_condition_on_an_attribute(syntax: str, condition: str, expected: bool) -> None:
    assert is_selected(make_dicom(syntax=syntax, **FILE), condition) is expected


@pytest.mark.parametrize(
    ("age", "years"),
    [("731D", 2.00137), ("700W", 13.41547), ("030M", 2.5), ("018Y", 18)],  # of 365.25 days
)
def test_ages_are_compared_in_years(age: str, years: float) -> None:
    data = make_dicom(PatientAge=age)
    assert is_selected(data, f"PatientAge>{years - 1e-4}", f"PatientAge<{years + 1e-4}")


def test_conditions_wherever_an_attribute_is() -> None:
    late = make_dicom(AcquisitionProtocolDescription="x" * FIRST_BYTES, ImageComments="Motion")
    assert is_selected(late, "ImageComments=motion", "ImageComments")
    assert not is_selected(late, "ImageComments=motion", "!ImageComments")
    shared = items(CTExposureSequence=items(ExposureTimeInms=500.0))
    enhanced = make_dicom(SharedFunctionalGroupsSequence=shared)
    assert is_selected(enhanced, "ExposureTimeInms>400", "SharedFunctionalGroupsSequence")
    assert not is_selected(enhanced, "ExposureTimeInms<=400")
    assert is_selected(enhanced, "!PerFrameFunctionalGroupsSequence")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_conditions_on_private_attributes(syntax: str, tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(make_dicom(syntax=syntax))
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x00190010, "LO", "SIEMENS CT VA0  COAD")
    dataset.add_new(0x001910B0, "LO", "Feed 12")  # of pydicom's dictionary: an IS
    dataset.add_new(0x001910A7, "UL", 0x01020304)  # known by its creator, in (0019,0010)
    dataset.add_new(0x001910FF, "DS", "12.50")
    dataset.save_as(path)
    data = path.read_bytes()
    assert is_selected(data, "(0019,10ff)=12.5", "(0019,10FF)>12", "(0019,10B0)", "!(0019,10FE)")
    assert not is_selected(data, "(0019,10ff)!=12.5*")
    broken = data.replace(b"\xff\x10DS", b"\xff\x10FD")  # six bytes are no number of this type
    assert is_selected(broken, "(0019,10ff)", "(0019,10ff)!=None")
    assert not is_selected(data, "(0019,10ff)<12")
    assert is_selected(data, f"(0019,10A7)={0x01020304}")


def test_what_is_not_wanted_is_not_searched_for_faults() -> None:
    broken = make_dicom(ImageOrientationPatient=tilted(90), RescaleSlope=None)
    cases: tuple[tuple[bytes, Selection, Reason, str], ...] = (
        (broken, Selection(axial=True), Reason.NOT_AXIAL, "coronal"),
        (broken, Selection(), Reason.MISSING_ATTRIBUTE, "RescaleSlope"),
        (make_dicom(Modality="MR", SOPClassUID="1.2.3"), Selection(axial=True), Reason.NOT_CT, ""),
    )
    for data, selection, reason, detail in cases:
        with pytest.raises(Rejected) as caught:
            select(data, selection)
        assert (caught.value.reason, caught.value.detail) == (reason, detail)
    select(make_dicom(ImageOrientationPatient=[0] * 6), Selection(axial=True))


SYNTAX = "want KEYWORD=VALUE with =, !=, <, <=, > or >=, KEYWORD for a present attribute, or "


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("SliceThicknes<=5", "'SliceThicknes': no DICOM attribute has this keyword (did you mean "),
        ("slicethickness<=5", "(did you mean SliceThickness?)"),
        ("SliceThickness<=thin", "SliceThickness<=: want one number"),
        ("SliceThickness<=1,2", "SliceThickness<=: want one number"),
        ("SliceThickness=1*", "SliceThickness=: want numbers, separated by commas"),
        ("BodyPartExamined<HEAD", "BodyPartExamined<: the attribute is text; want = or !="),
        ("BodyPartExamined=", "BodyPartExamined=: a value is empty; want BodyPartExamined or !"),
        ("BodyPartExamined=A,,B", "BodyPartExamined=: a value is empty"),
        ('BodyPartExamined!="HEAD"', "want values without quotation marks"),
        ("BodyPartExamined=BRAIN,'HEAD'", "want values without quotation marks"),
        ("!KVP=120", SYNTAX),
        ("KVP ~ 120", SYNTAX),
        ("= 5", SYNTAX),
        ("RequestAttributesSequence=1", "is a sequence; want RequestAttributesSequence or !"),
        ("PixelData", "want an attribute of the data set before the pixels"),
        ("(0002,0002)=1.2", "want an attribute of the data set before the pixels"),
        *(
            (f"{name}=SECRET", f"{name}=: a condition is written to the manifest, and this ")
            for name in (
                *("PatientName", "PatientID", "AccessionNumber", "PatientBirthDate", "(0010,0020)"),
                *("OtherPatientIDs", "StudyInstanceUID", "SOPInstanceUID", "StudyID"),
                *("ReferringPhysicianName", "AdmissionID", "PatientComments", "OperatorsName"),
                *("FillerOrderNumberProcedure", "SpecimenAccessionNumber"),
            )
        ),
        ("PatientNam=SECRET", "'PatientNam': no DICOM attribute has this keyword (did you mean P"),
        ("PatientName SECRET", "'PatientName': want KEYWORD=VALUE"),
    ],
)
def test_a_condition_that_is_none(condition: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Options.of(input="in", output="out", where=condition)
    assert str(caught.value).startswith("--where ")
    assert message in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_conditions_as_options() -> None:
    texts = ["KVP>=100", " !ContrastBolusAgent ", ""]
    several = Options.of(input="in", output="out", where=texts)
    assert several.selection.where == ("KVP>=100", "!ContrastBolusAgent")
    assert Options.of(input="in", output="out", where="KVP").selection.where == ("KVP",)
    assert several.recorded()["where"] == ["KVP>=100", "!ContrastBolusAgent"]
    plain = Options.of(input="in", output="out")
    assert plain.selection.where == ()
    assert plain.selection.orientation is Orientation.AXIAL
    earlier = {"input": "in", "image_id": "auto", "leak_check": "join"}
    assert plain.differing(earlier) == several.changed(where=[], orientation="any").differing(
        earlier
    )
    assert plain.differing(earlier | {"orientation": "any"}) == ["orientation"]
    assert several.differing(earlier) == ["where"]
    assert not Options.are_after_headers(["where"])
    assert not Options.are_after_headers(["orientation"])


def test_other_conditions_read_the_headers_again(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(make_dicom(KVP="120"))
    given = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "image_size": 16}
    refused = Options.of(**given, where="KVP<=80")
    with pytest.raises(
        UsageError, match=r"none of 1 files can be used \(not_selected 1\)"
    ) as caught:
        write_shards(refused)
    assert "as for a.dcm (KVP<=80): " in str(caught.value)
    write_refusal(refused.files.folder, 2, "none of 1 files can be used")
    options = Options.of(**given, where="KVP<=120")
    assert write_shards(options) == 1
    assert Unfinished(options.files.folder).read_plan().slices == 1


# Twelve real slices, as a hospital's export would have them

TILT = tilted(20)
HEAD: dict[str, Any] = {
    "BodyPartExamined": "HEAD",
    "ConvolutionKernel": "H31s",
    "SliceThickness": "5",
    "Manufacturer": "SIEMENS",
    "ManufacturerModelName": "Sensation 64",
}
SCOUT = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
DOSE_REPORT = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "CT"}
EXPORT: dict[str, dict[str, Any]] = {
    "head": HEAD,
    "head_ge": HEAD | {"Manufacturer": "GE", "ConvolutionKernel": "SOFT", "SliceThickness": "2.5"},
    "head_tilted": HEAD | {"BodyPartExamined": None, "ImageOrientationPatient": TILT},
    "head_contrast": HEAD | {"ContrastBolusAgent": "Omnipaque"},
    "head_bone_thin": HEAD | {"ConvolutionKernel": "H60s", "SliceThickness": "0.75"},
    "head_coronal": HEAD | {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]},
    "head_sagittal": HEAD | {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
    "head_oblique": HEAD | {"ImageOrientationPatient": tilted(46)},
    "chest_bone_thin": HEAD
    | {"BodyPartExamined": "CHEST", "ConvolutionKernel": "B70f", "SliceThickness": "1"},
    "abdomen": HEAD | {"BodyPartExamined": "ABDOMEN", "ConvolutionKernel": "B30f"},
    "scout": {"ImageType": SCOUT, "ImageOrientationPatient": [1, 0, 0, 0, 0, -1]},
    "dose_report": DOSE_REPORT,
}
ALWAYS = {"scout": "localizer", "dose_report": "secondary_capture"}
NOT_AXIAL = dict.fromkeys(("head_coronal", "head_sagittal", "head_oblique"), "not_axial")
CHOICES: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({}, NOT_AXIAL),
    (
        {"where": ["BodyPartExamined=HEAD,BRAIN"]},
        NOT_AXIAL
        | dict.fromkeys(
            ("head_tilted", "chest_bone_thin", "abdomen"), "BodyPartExamined=HEAD,BRAIN"
        ),
    ),
    (
        {
            "where": [
                "SliceThickness>=2.5",
                "BodyPartExamined!=CHEST,ABD*",
                "ConvolutionKernel!=H6*",
            ]
        },
        NOT_AXIAL
        | dict.fromkeys(("head_bone_thin", "chest_bone_thin"), "SliceThickness>=2.5")
        | {"abdomen": "BodyPartExamined!=CHEST,ABD*"},
    ),
    (
        {"orientation": "any", "where": "!ContrastBolusAgent"},
        {"head_contrast": "!ContrastBolusAgent"},
    ),
]


@pytest.fixture(scope="module")
def export(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    slices = sorted((real_data / "rsna" / "slices").iterdir())[:: 269 // 12]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # UIDs of the data set are none
        for path, (name, attributes) in zip(slices, EXPORT.items(), strict=False):
            dataset = pydicom.dcmread(path)
            for keyword, value in attributes.items():
                if value is not None:
                    setattr(dataset, keyword, value)
            dataset.save_as(folder / f"{name}.dcm")
    return folder


@pytest.mark.parametrize(("options", "excluded"), CHOICES)
def test_what_is_chosen_of_an_export_and_why(
    export: Path, tmp_path: Path, options: dict[str, Any], excluded: dict[str, str]
) -> None:
    chosen = Options.of(input=str(export), output=str(tmp_path), max_reject_fraction=0, **options)
    assert sum(list_parts(chosen)) == 12
    inspected = inspect_part(0, Watch(), options=chosen)
    assert (inspected.rejected, inspected.excluded) == (0, len(excluded) + 2)
    plan = plan_shards(1, chosen)
    assert plan.slices == 12 - inspected.excluded
    rejects = Unfinished(chosen.files.folder).read("rejects").to_pylist()
    conditions = {row["image_id"]: row["detail"] for row in rejects if "where" in options}
    found = {
        row["image_id"]: conditions[row["image_id"]]
        if row["reason"] == "not_selected"
        else row["reason"]
        for row in rejects
    }
    assert found == ALWAYS | excluded


def test_a_card_shows_how_the_written_slices_were_acquired(export: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = Options.of(input=str(export), output=str(output), image_size=16, where="KVP!=80")
    finish_directory(write_shards(options), options)
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["counts"]["excluded_by_reason"] == {
        "localizer": 1,
        "not_axial": 3,
        "secondary_capture": 1,
    }
    assert manifest["acquisition"] == {
        "orientation": {"axial": 7},
        "body_part": {"HEAD": 4, "ABDOMEN": 1, "CHEST": 1, "absent": 1},
        "kernel": {"H31s": 3, "B30f": 1, "B70f": 1, "H60s": 1, "SOFT": 1},
        "slice_thickness": {"5": 4, "0.75": 1, "1": 1, "2.5": 1},
        "scanner": {"SIEMENS Sensation 64": 6, "GE Sensation 64": 1},
    }
    assert verify_directory(str(output)).findings.kept == []
    for _ in range(2):
        tables = Page.read(output / "report.html").tables
        assert tables["Convolution kernels"].rows["H31s"] == ["3", "43 %"]
        assert tables["Slice thicknesses"].rows["0.75 mm"] == ["1", "14 %"]
        assert tables["Body parts"].rows["absent"] == ["1", "14 %"]
        assert tables["Files that were excluded"].rows["not_axial"][0] == "3"
        text = (output / "report.html").read_text()
        assert "--where &#39;KVP!=80&#39;" in text
        (output / "report.html").unlink()
        add_card(Folder(str(output)), 60.0)  # of the directory alone
    manifest["acquisition"]["kernel"]["H31s"] = 4
    (output / "manifest.json").write_text(json.dumps(manifest))
    findings = map(str, verify_directory(str(output)).findings.kept)
    assert any("acquisition.kernel" in finding for finding in findings)

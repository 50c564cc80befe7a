"""What is read of a CT slice's header, and a file for each reason to reject one."""

import io
import logging
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import config, uid

from beam_pipeline.dicom.dataset import MAX_HEADER_BYTES
from beam_pipeline.dicom.header import (
    _CT_CLASSES,
    MAX_PIXELS,
    OTHER_FUNCTION,
    TRANSFER_SYNTAXES,
    Header,
    read_header,
)
from beam_pipeline.dicom.hounsfield import PADDING_HU, Repair, hounsfield_table, stored_values
from beam_pipeline.dicom.slices import read_slice
from headct.reasons import Reason, Rejected
from tests.beam_pipeline.dicom_files import NATIVE, SIGNED_16, items, make_dicom

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def header_of(data: bytes) -> Header:
    """The header, which inspection and reading must agree on."""
    header = read_header(io.BytesIO(data), len(data))
    assert repr(read_slice(data).header) == repr(header)  # repr: NaN is not equal to itself
    return header


def rejections(data: bytes) -> tuple[tuple[Reason, str] | None, tuple[Reason, str] | None]:
    """What inspection of the header and reading of the slice say against a file."""

    def outcome(read: Any) -> tuple[Reason, str] | None:
        try:
            read()
        except Rejected as rejected:
            return rejected.reason, rejected.detail
        return None

    header = outcome(lambda: read_header(io.BytesIO(data), len(data)))
    return header, outcome(lambda: read_slice(data))


def rejection(data: bytes) -> tuple[Reason, str]:
    """What both say."""
    header, full = rejections(data)
    assert header is not None
    assert full == header
    return header


# Headers


def test_a_header() -> None:
    header = header_of(make_dicom(WindowCenter="40", WindowWidth="80"))
    encoding = header.encoding
    assert header == replace(
        header,
        sop_instance_uid="ID_1",
        patient_id="PATIENT",
        study_id="STUDY",
        series_id="SERIES",
        position_z=42.5,
        pixel_spacing=(0.5, 0.25),
        rows=2,
        columns=3,
        transfer_syntax=uid.ExplicitVRLittleEndian,
        window=(40.0, 80.0),
    )
    assert (encoding.bits_allocated, encoding.bits_stored, encoding.high_bit) == (16, 16, 15)
    assert (encoding.signed, encoding.slope, encoding.intercept) == (True, 1.0, -1024.0)
    assert encoding.padding is None
    assert len(bytes.fromhex(header.beginning)) == len(bytes.fromhex(header.identity)) == 12


def test_pixels_last_to_the_end_of_the_image_or_of_the_file() -> None:
    native = header_of(make_dicom())
    assert native.pixel_offset is not None
    assert [native.pixel_bytes(native.pixel_offset + rest) for rest in (5, 12, 13)] == [5, 12, 12]
    compressed = replace(native, transfer_syntax=uid.RLELossless)
    assert compressed.pixel_bytes(native.pixel_offset + 13) == 13


@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian]
)
def test_the_pixels_begin_where_the_header_says(syntax: str) -> None:
    data = make_dicom(syntax=syntax)
    offset = header_of(data).pixel_offset
    assert offset == len(data) - SIGNED_16.nbytes


def test_a_text_of_other_values_is_no_header() -> None:
    text = header_of(make_dicom()).encode()
    assert Header.decode(text).rows == 2
    for other in (text[:-1] + ",0]", text.replace("[16,", "[16,16,")):  # a header's, an encoding's
        assert other != text
        with pytest.raises(ValueError, match="zip"):
            Header.decode(other)


def test_what_may_be_absent() -> None:
    header = header_of(
        make_dicom(
            SOPInstanceUID=None, ImagePositionPatient=None, PixelSpacing=None, SOPClassUID=None
        )
    )
    assert header.sop_instance_uid == ""
    assert math.isnan(header.position_z)
    assert all(map(math.isnan, header.pixel_spacing))
    assert header.window is None
    assert header_of(make_dicom(Modality=None, meta=False)).rows == header.rows


def test_the_class_of_an_image_is_that_of_its_data_set() -> None:
    data = make_dicom(Modality=None, SOPClassUID=uid.MRImageStorage, meta=False)
    assert rejection(data) == (Reason.NOT_CT, "MR Image Storage")


@pytest.mark.parametrize(
    ("preamble", "meta"), [(False, True), (False, False)], ids=["no preamble", "no meta"]
)
@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian]
)
def test_files_without_preamble_or_meta_header(syntax: str, preamble: bool, meta: bool) -> None:
    data = make_dicom(syntax=syntax, preamble=preamble, meta=meta)
    assert header_of(data).transfer_syntax == syntax
    source = read_slice(data)
    assert np.array_equal(stored_values(source.header.encoding)[source.pixels], SIGNED_16)


@pytest.mark.parametrize("intercept", ["-1024", "-1024.000000", " -1.024E3 ", ["-1024", "-1024.0"]])
def test_decimal_strings(intercept: Any) -> None:
    assert header_of(make_dicom(RescaleIntercept=intercept)).encoding.intercept == -1024


@pytest.mark.parametrize(
    ("center", "width", "window"),
    [
        (["00036", "00040"], ["00036", "00100"], (36.0, 36.0)),
        ("35.000000", "80", (35.0, 80.0)),
        ("35", None, None),
        ("", "", None),
        ("40", "0", None),
    ],
)
def test_windows_of_one_value_or_several(center: Any, width: Any, window: Any) -> None:
    assert header_of(make_dicom(WindowCenter=center, WindowWidth=width)).window == window


def test_garbage_for_a_window_is_no_window() -> None:
    data = make_dicom(WindowCenter="999999", WindowWidth="80")
    assert header_of(data.replace(b"999999", b"garbag")).window is None


@pytest.mark.parametrize(
    ("written", "function"),
    [
        (None, ""),
        ("", ""),
        ("LINEAR", "LINEAR"),
        ("LINEAR_EXACT", "LINEAR_EXACT"),
        ("SIGMOID", "SIGMOID"),
        ("LOG", OTHER_FUNCTION),
        (["LINEAR", "SIGMOID"], OTHER_FUNCTION),
    ],
)
def test_the_function_of_the_window(written: Any, function: str) -> None:
    window = {"WindowCenter": "40", "WindowWidth": "80"}
    header = header_of(make_dicom(**window, VOILUTFunction=written))
    assert (header.window, header.voi_function) == ((40.0, 80.0), function)
    assert Header.decode(header.encode()).voi_function == function
    lower = make_dicom(**window, VOILUTFunction="SIGMOID").replace(b"SIGMOID ", b"sigmoid ")
    assert header_of(lower).voi_function == "SIGMOID"
    number = make_dicom(**window, VOILUTFunction="LINEAR").replace(b"\x56\x10CS", b"\x56\x10FD")
    assert header_of(number).voi_function == "OTHER"  # six bytes are no number
    groups = items(FrameVOILUTSequence=items(**window, VOILUTFunction=written))
    enhanced = make_dicom(SharedFunctionalGroupsSequence=groups, VOILUTFunction=None)
    assert header_of(enhanced).voi_function == function


@pytest.mark.parametrize("frames", ["1", "", "0"])
def test_a_number_of_frames_of_one(frames: str) -> None:
    assert header_of(make_dicom(NumberOfFrames=frames)).rows == 2


def test_monochrome1_has_the_same_hounsfield_units() -> None:
    both = [
        read_slice(make_dicom(PhotometricInterpretation=f"MONOCHROME{i}")).pixels for i in (1, 2)
    ]
    assert np.array_equal(*both)


@pytest.mark.parametrize(
    ("value", "limit", "vr", "padding"),
    [
        (-2000, None, "SS", (-2000, -2000)),
        (63536, None, "US", (-2000, -2000)),
        (32768, 63536, "US", (-32768, -2000)),
        (-1999, -2000, "SS", (-2000, -1999)),
    ],
)
def test_padding_of_signed_pixels_in_either_sign(
    value: int, limit: int | None, vr: str, padding: tuple[int, int]
) -> None:
    data = with_padding(make_dicom(), value, limit, vr)
    encoding = header_of(data).encoding
    assert encoding.padding == padding
    first = hounsfield_table(encoding, Repair.NONE)[read_slice(data).pixels][0, 0]
    assert first == PADDING_HU


def with_padding(data: bytes, value: int, limit: int | None, vr: str) -> bytes:
    """Padding attributes in a VR of our choice, whatever pydicom makes of the pixels' sign."""
    elements = b""
    for tag, number in ((b"\x28\x00\x20\x01", value), (b"\x28\x00\x21\x01", limit)):
        if number is not None:
            elements += tag + vr.encode() + b"\x02\x00" + (number % 65536).to_bytes(2, "little")
    place = data.index(b"\x28\x00\x52\x10DS")  # RescaleIntercept comes next
    return data[:place] + elements + data[place:]


def test_padding_of_implicit_vr_files_has_the_pixels_sign() -> None:
    data = make_dicom(syntax=uid.ImplicitVRLittleEndian, PixelPaddingValue=-2000)
    assert header_of(data).encoding.padding == (-2000, -2000)


def test_padding_that_fits_signed_pixels_stays() -> None:
    data = with_padding(make_dicom(), 100, 32767, "US")
    assert header_of(data).encoding.padding == (100, 32767)


def test_signed_padding_of_unsigned_pixels() -> None:
    data = with_padding(make_dicom(SIGNED_16.view(np.uint16)), -2000, None, "SS")
    assert header_of(data).encoding.padding == (63536, 63536)


def test_padding_that_no_pixel_can_have_does_nothing() -> None:
    pixels = np.array([[0, 2096, 4095]], np.uint16)
    data = with_padding(make_dicom(pixels, BitsStored=12, HighBit=11), -2000, None, "SS")
    table = hounsfield_table(header_of(data).encoding, Repair.NONE)
    assert table[pixels].tolist() == [[-1024.0, 1072.0, 3071.0]]


ENHANCED = {
    "SOPClassUID": uid.EnhancedCTImageStorage,
    "NumberOfFrames": "1",
    "RescaleIntercept": None,
    "RescaleSlope": None,
    "PixelSpacing": None,
    "ImagePositionPatient": None,
}
SHARED = {
    "PixelValueTransformationSequence": items(
        RescaleIntercept="-1000", RescaleSlope="2", RescaleType="HU"
    ),
    "PixelMeasuresSequence": items(PixelSpacing=[0.4, 0.3]),
}


@pytest.mark.parametrize("place", ["shared", "frame", "both"])
@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian])
def test_an_enhanced_ct_of_one_frame(place: str, syntax: str) -> None:
    frame = {"PlanePositionSequence": items(ImagePositionPatient=[0.0, 1.0, 2.0])}
    groups: dict[str, Any] = {
        "shared": {"SharedFunctionalGroupsSequence": items(**SHARED, **frame)},
        "frame": {"PerFrameFunctionalGroupsSequence": items(**SHARED, **frame)},
        "both": {
            "SharedFunctionalGroupsSequence": items(**SHARED),
            "PerFrameFunctionalGroupsSequence": items(**frame),
        },
    }[place]
    header = header_of(make_dicom(syntax=syntax, **ENHANCED, **groups))
    assert (header.encoding.slope, header.encoding.intercept) == (2.0, -1000.0)
    assert header.pixel_spacing == (0.4, 0.3)
    assert header.position_z == 2.0


def test_a_header_behind_more_bytes_than_are_read_at_first() -> None:
    data = make_dicom(RedPaletteColorLookupTableData=bytes(200_000))
    assert header_of(data).rows == 2
    reason, _ = rejection(make_dicom(RedPaletteColorLookupTableData=bytes(200_000), Rows=0))
    assert reason is Reason.INVALID_ATTRIBUTE


def test_a_header_without_end_is_not_read_to_its_end() -> None:
    data = make_dicom(RedPaletteColorLookupTableData=bytes(MAX_HEADER_BYTES))
    assert rejection(data) == (Reason.TOO_LARGE, "no pixels begin in the first 2097152 bytes")
    report = {"SOPClassUID": uid.EnhancedSRStorage, "Modality": "SR", "PixelData": None}
    data = make_dicom(**report, RedPaletteColorLookupTableData=bytes(MAX_HEADER_BYTES))
    assert rejection(data) == (Reason.NO_PIXELS, "")


# Reasons


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"Modality": "MR", "SOPClassUID": uid.MRImageStorage}, Reason.NOT_CT),
        ({"Modality": "RTDOSE", "SOPClassUID": uid.RTDoseStorage}, Reason.NOT_CT),
        (
            {"Modality": None, "SOPClassUID": uid.PositronEmissionTomographyImageStorage},
            Reason.NOT_CT,
        ),
        ({"SOPClassUID": uid.SecondaryCaptureImageStorage}, Reason.SECONDARY_CAPTURE),
        (
            {"SOPClassUID": uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage},
            Reason.SECONDARY_CAPTURE,
        ),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, Reason.LOCALIZER),
        ({"NumberOfFrames": "2"}, Reason.MULTI_FRAME),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, Reason.NOT_GRAYSCALE),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, Reason.NOT_GRAYSCALE),
        ({"Rows": 4097, "Columns": 4097}, Reason.TOO_LARGE),
        ({"PixelData": None}, Reason.TRUNCATED_PIXELS),
        ({"PixelData": None, "SOPClassUID": None}, Reason.TRUNCATED_PIXELS),
        ({"PixelData": None, "SOPClassUID": uid.MRImageStorage}, Reason.NOT_CT),
        ({"PixelData": None, "SOPClassUID": uid.EnhancedSRStorage}, Reason.NO_PIXELS),
        ({"PixelData": None, "SOPClassUID": "1.3.12.2.1107.5.9.1"}, Reason.NO_PIXELS),
    ],
)
def test_what_is_no_ct_slice(attributes: dict[str, Any], reason: Reason) -> None:
    assert rejection(make_dicom(**attributes))[0] is reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dicomdirtests/DICOMDIR", Reason.NO_PIXELS),
        ("reportsi.dcm", Reason.NO_PIXELS),
        ("test-SR.dcm", Reason.NO_PIXELS),
        ("rtplan.dcm", Reason.NO_PIXELS),
        ("rtstruct.dcm", Reason.NO_PIXELS),
        ("waveform_ecg.dcm", Reason.NO_PIXELS),
        ("rtdose.dcm", Reason.NOT_CT),
        ("MR_small.dcm", Reason.NOT_CT),
        ("examples_rgb_color.dcm", Reason.NOT_CT),
        ("crayons.icc", Reason.NOT_DICOM),
        ("zipMR.gz", Reason.NOT_DICOM),
    ],
)
def test_files_of_other_kinds(name: str, reason: Reason) -> None:
    assert rejection((TEST_FILES / name).read_bytes())[0] is reason


def test_a_localizer_by_its_frame_type() -> None:
    kind = {"CTImageFrameTypeSequence": items(FrameType=["ORIGINAL", "PRIMARY", "LOCALIZER"])}
    data = make_dicom(**ENHANCED, SharedFunctionalGroupsSequence=items(**SHARED, **kind))
    assert rejection(data)[0] is Reason.LOCALIZER


def test_several_frames_in_the_functional_groups_alone() -> None:
    frames = items(**SHARED) + items(**SHARED)
    data = make_dicom(
        **ENHANCED | {"NumberOfFrames": None}, PerFrameFunctionalGroupsSequence=frames
    )
    assert rejection(data)[0] is Reason.MULTI_FRAME


def test_an_image_of_another_modality_is_that_whatever_its_frames() -> None:
    frames = items(**SHARED) + items(**SHARED)
    kind = {"SOPClassUID": uid.EnhancedMRImageStorage, "Modality": "MR", "NumberOfFrames": "2"}
    data = make_dicom(**kind, PerFrameFunctionalGroupsSequence=frames)
    assert rejection(data)[0] is Reason.NOT_CT


@pytest.mark.parametrize(
    "keyword",
    [
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "PixelRepresentation",
        "RescaleIntercept",
        "RescaleSlope",
    ],
)
def test_a_missing_attribute_is_named(keyword: str) -> None:
    assert rejection(make_dicom(**{keyword: None})) == (Reason.MISSING_ATTRIBUTE, keyword)
    assert rejection(make_dicom(**{keyword: ""})) == (Reason.MISSING_ATTRIBUTE, keyword)


@pytest.mark.parametrize("value", [None, "", " ", "\0\0", " \0", ["", ""], "\t "])
def test_a_patient_id_may_be_empty(value: Any) -> None:
    assert header_of(make_dicom(PatientID=value)).patient_id == ""
    assert rejection(make_dicom(PatientID=value, StudyInstanceUID=value)) == (
        Reason.MISSING_ATTRIBUTE,
        "StudyInstanceUID",
    )


def test_blanks_around_an_id_are_no_part_of_it() -> None:
    header = header_of(make_dicom(PatientID=" A B\0", StudyInstanceUID="1.2 ", SOPInstanceUID="\0"))
    assert (header.patient_id, header.study_id, header.sop_instance_uid) == ("A B", "1.2", "")


# Of type 2 or less in PS3.3, or not needed to convert a slice.
OPTIONAL = ("ImageType", "Modality", "HighBit", "NumberOfFrames", "PixelPaddingValue")
OPTIONAL += ("PixelPaddingRangeLimit", "WindowCenter", "WindowWidth", "VOILUTFunction")
OPTIONAL += ("RescaleType", "PixelSpacing", "ImagePositionPatient", "SOPInstanceUID", "PatientID")


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
@pytest.mark.parametrize("keyword", OPTIONAL)
def test_what_is_optional_may_be_absent_or_empty(keyword: str, syntax: str) -> None:
    absent = header_of(make_dicom(syntax=syntax, **{keyword: None}))
    empty = header_of(make_dicom(syntax=syntax, **{keyword: ""}))
    offset, beginning = absent.pixel_offset, absent.beginning
    assert repr(replace(empty, pixel_offset=offset, beginning=beginning)) == repr(absent)


@pytest.mark.parametrize(
    "keyword", ["SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"]
)
def test_an_id_of_more_than_64_characters_is_invalid(keyword: str) -> None:
    header_of(make_dicom(**{keyword: "1" * 64}))
    detail = f"{keyword} has more than 64 characters"
    for size in (65, 2_000):
        found = rejection(make_dicom(**{keyword: "1" * size}))
        assert found == (Reason.INVALID_ATTRIBUTE, detail)


@pytest.mark.parametrize(
    ("attributes", "detail"),
    [
        ({"RescaleSlope": "0"}, "RescaleSlope is out of range"),
        ({"RescaleSlope": "1e300"}, "RescaleSlope is out of range"),
        ({"RescaleIntercept": "-1e9"}, "RescaleIntercept is out of range"),
        ({"RescaleSlope": ["1", "2"]}, "RescaleSlope is not one number"),
        ({"RescaleSlope": "nan"}, "RescaleSlope is not one number"),
        ({"RescaleIntercept": "inf"}, "RescaleIntercept is not one number"),
        ({"RescaleType": "MGML"}, "RescaleType is not HU"),
        ({"Rows": 0}, "Rows x Columns is 0 x 3"),
        ({"Rows": [2, 3]}, "Rows is not one number"),
        ({"BitsAllocated": 32}, "BitsAllocated is 32, not 8 or 16"),
        ({"BitsStored": 17}, "BitsStored 17 and HighBit 15 do not fit BitsAllocated 16"),
        ({"HighBit": 10}, "BitsStored 16 and HighBit 10 do not fit BitsAllocated 16"),
        ({"PixelRepresentation": 2}, "PixelRepresentation is 2, not 0 or 1"),
        ({"NumberOfFrames": "1.5"}, None),
    ],
)
def test_an_invalid_attribute_is_told_by_name_and_size(
    attributes: dict[str, Any], detail: str | None
) -> None:
    reason, found = rejection(make_dicom(**attributes))
    assert reason is Reason.INVALID_ATTRIBUTE
    assert found == detail or (detail is None and found.startswith(next(iter(attributes))))


@pytest.mark.parametrize("garbage", [b"secret", b"1,5\x00 ", b"1_0   ", b"\xff\xfe\x00\x80"])
def test_garbage_in_a_decimal_string_is_not_quoted(garbage: bytes) -> None:
    data = make_dicom(RescaleSlope="1" * len(garbage))
    data = data.replace(b"1" * len(garbage), garbage)
    reason, detail = rejection(data)
    assert reason is Reason.INVALID_ATTRIBUTE
    assert detail in ("RescaleSlope: ValueError", "RescaleSlope is not one number")


def test_floating_point_pixels() -> None:
    data = make_dicom(PixelData=None, FloatPixelData=SIGNED_16.astype("<f4").tobytes())
    assert rejection(data) == (Reason.INVALID_ATTRIBUTE, "FloatPixelData for PixelData")


@pytest.mark.parametrize(
    ("data", "detail"),
    [(b"", "empty file"), (b"%PDF-1.7", "PDF document"), (bytes(200), "")],
)
def test_what_is_no_dicom(data: bytes, detail: str) -> None:
    assert rejection(data) == (Reason.NOT_DICOM, detail)


def test_a_broken_sequence_is_unreadable() -> None:
    data = make_dicom()
    place = data.index(b"\x28\x00\x02\x00US")
    broken = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    assert rejection(data[:place] + broken)[0] is Reason.UNREADABLE


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        (uid.MPEG2MPML, "MPEG2 Main Profile / Main Level"),
        ("1.2.840.10008.1.2.4.94", "JPIP Referenced"),
        ("1.2.3.4.5.6", ""),
    ],
)
def test_other_transfer_syntaxes_are_told_by_their_registered_name(syntax: str, name: str) -> None:
    data = make_dicom(syntax=syntax, frame=b"\0\0" if name else None)
    assert rejection(data) == (Reason.UNSUPPORTED_TRANSFER_SYNTAX, name)


@pytest.mark.parametrize("syntax", NATIVE)
def test_pixels_cut_short(syntax: str) -> None:
    data = make_dicom(syntax=syntax, Rows=4)
    assert rejection(data) == (Reason.TRUNCATED_PIXELS, "12 of 24 bytes")
    nothing = make_dicom(syntax=syntax, PixelData=b"")
    assert rejection(nothing) == (Reason.TRUNCATED_PIXELS, "0 of 12 bytes")


@pytest.mark.parametrize(
    ("syntax", "meta"),
    [
        (uid.ImplicitVRLittleEndian, True),
        (uid.ImplicitVRLittleEndian, False),
        (uid.ExplicitVRLittleEndian, True),
        (uid.ExplicitVRLittleEndian, False),
        (uid.ExplicitVRBigEndian, True),
        (uid.ExplicitVRBigEndian, False),
        (uid.DeflatedExplicitVRLittleEndian, True),
        (uid.RLELossless, True),
    ],
)
def test_a_ct_file_cut_anywhere_is_incomplete(syntax: str, meta: bool) -> None:
    frame = None
    if syntax == uid.RLELossless:  # two segments, of 6 literal bytes each
        planes = [bytes([5, *SIGNED_16.astype(">i2").tobytes()[plane::2]]) for plane in (0, 1)]
        frame = np.array([2, 64, 72, *[0] * 13], "<u4").tobytes() + b"\x80".join([*planes, b""])
    groups = items(**SHARED, PlanePositionSequence=items(ImagePositionPatient=[0.0, 1.0, 2.0]))
    whole = make_dicom(
        syntax=syntax,
        frame=frame,
        meta=meta,
        preamble=meta,
        SharedFunctionalGroupsSequence=groups,
        RedPaletteColorLookupTableData=bytes(20),
    )
    expected = read_slice(whole).pixels.tobytes()
    for size in range(132 if meta else 2, len(whole)):
        header, full = rejections(whole[:size])
        assert header in (None, full)
        if full is None:  # only what follows the pixels was cut off
            assert read_slice(whole[:size]).pixels.tobytes() == expected
            assert size > len(whole) - 16
        else:
            assert full[0] in (Reason.UNREADABLE, Reason.TRUNCATED_PIXELS), size
            assert "no_pixels" not in full[0]


def test_a_file_without_a_class_and_pixels_is_unreadable() -> None:
    data = make_dicom(PixelData=None, SOPClassUID=None, meta=False)
    assert rejection(data) == (Reason.UNREADABLE, "no SOP class, no pixels")


def test_a_report_cut_anywhere_is_no_ct_file() -> None:
    data = (TEST_FILES / "reportsi.dcm").read_bytes()
    for size in range(132, len(data), 7):
        reason, _ = rejection(data[:size])
        assert reason in (Reason.UNREADABLE, Reason.NO_PIXELS)
    assert rejection(data)[0] is Reason.NO_PIXELS
    assert rejection(data[:170]) == (Reason.UNREADABLE, "the file ends within its header")


def test_a_constant_image_is_seen_by_reading_alone() -> None:
    data = make_dicom(np.full((4, 4), -2000, np.int16))
    assert rejections(data) == (None, (Reason.CONSTANT_IMAGE, ""))


def test_the_largest_matrix_is_read() -> None:
    side = math.isqrt(MAX_PIXELS)
    pixels = np.zeros((side, side), np.uint8)
    pixels[0, 0] = 1
    assert header_of(make_dicom(pixels)).rows == side


@pytest.mark.parametrize(("side", "usable"), [(4096, True), (4097, False)])
def test_a_matrix_of_16_mebipixels_is_the_largest(side: int, usable: bool) -> None:
    pixels = np.zeros((side, 4096), np.uint8)
    pixels[0, 0] = 1
    header, _ = rejections(make_dicom(pixels))
    assert header == (None if usable else (Reason.TOO_LARGE, "4097 x 4096 pixels"))


@pytest.mark.parametrize(
    ("attributes", "usable"),
    [
        ({"RescaleSlope": "1e6"}, True),
        ({"RescaleSlope": "-1000001"}, False),
        ({"RescaleIntercept": "-1e6"}, True),
        ({"RescaleIntercept": "1000001"}, False),
        ({"RescaleIntercept": "0"}, True),
        ({"BitsStored": 1, "HighBit": 0}, True),
        ({"BitsStored": 0, "HighBit": 15}, False),
        ({"BitsStored": 12, "HighBit": 15}, True),
        ({"BitsStored": 12, "HighBit": 16}, False),
        ({"Rows": 1, "Columns": 6}, True),
        ({"Rows": 6, "Columns": 1}, True),
        ({"Rows": 6, "Columns": 0}, False),
    ],
)
def test_the_largest_and_least_that_are_usable(attributes: dict[str, Any], usable: bool) -> None:
    header, full = rejections(make_dicom(**attributes))
    assert header == full
    assert (header is None) is usable
    assert usable or (header is not None and header[0] is Reason.INVALID_ATTRIBUTE)


# A slice whose header is known


def test_a_header_that_has_not_changed_is_not_read_again() -> None:
    data = make_dicom()
    known = replace(header_of(data), patient_id="as it was read before")
    source = read_slice(data, known)
    assert source.header is known
    assert np.array_equal(source.pixels.view(np.int16), SIGNED_16)


@pytest.mark.parametrize("change", ["of the header", "cut", "none that is known"])
def test_a_file_that_has_changed_is_read_again(change: str) -> None:
    data = make_dicom()
    known = replace(header_of(data), patient_id="as it was read before")
    if change == "cut":
        with pytest.raises(Rejected, match="truncated_pixels"):
            read_slice(data[:-1], known)
    elif change == "of the header":
        assert (
            read_slice(data.replace(b"PATIENT", b"ANOTHER"), known).header.patient_id == "ANOTHER"
        )
    else:
        assert read_slice(data, replace(known, beginning="")).header.patient_id == "PATIENT"


@pytest.mark.parametrize(
    ("syntax", "bits", "remembered"),
    [
        (uid.ImplicitVRLittleEndian, np.int16, True),
        (uid.ExplicitVRLittleEndian, np.int16, True),
        (uid.ExplicitVRLittleEndian, np.uint8, False),
        (uid.ExplicitVRBigEndian, np.int16, False),  # its words are in another order
        (uid.DeflatedExplicitVRLittleEndian, np.int16, False),
    ],
)
def test_headers_are_remembered_where_pixels_are_words_of_this_machine(
    syntax: str, bits: Any, remembered: bool
) -> None:
    data = make_dicom(np.array([[1, 2], [3, 4]], bits), syntax=syntax)
    assert bool(header_of(data).beginning) is remembered


@pytest.mark.parametrize("place", [0, 255, 256, 257, 511, 512, 1023])
def test_one_other_pixel_makes_an_image_not_constant(place: int) -> None:
    pixels = np.zeros((32, 32), np.int16)
    pixels.reshape(-1)[place] = 1
    assert read_slice(make_dicom(pixels)).pixels.sum() == 1


# Nothing of a header leaves but what was asked for


def test_nothing_is_warned_or_logged(
    recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "Secret^Name"
    read_slice(make_dicom(PatientID=secret * 5, StudyInstanceUID=secret))
    rejections(make_dicom(PatientID=secret * 10))
    for name in ("badVR.dcm", "no_meta.dcm", "rtplan_truncated.dcm", "UN_sequence.dcm"):
        rejections((TEST_FILES / name).read_bytes())
    assert not recwarn.list
    assert not caplog.records


def test_pydicom_and_warnings_are_left_as_they_were() -> None:
    logger = logging.getLogger("pydicom")
    before = list(warnings.filters), logger.propagate, config.settings.reading_validation_mode
    read_slice(make_dicom())
    rejections(make_dicom(Rows=0))
    rejections(b"")
    after = list(warnings.filters), logger.propagate, config.settings.reading_validation_mode
    assert after == before


SECRETS = {
    "PatientID": "4711-SECRET",
    "PatientName": "Secret^Name",
    "PatientBirthDate": "19701224",
    "StudyInstanceUID": "1.2.666.1",
}


@pytest.mark.parametrize(
    "broken",
    [
        {"RescaleSlope": "999999"},
        {"WindowCenter": "999999", "Rows": 0},
        {"Modality": "SECRET", "SOPClassUID": "1.2.666.2"},
        {"PhotometricInterpretation": "SECRET"},
        {"RescaleType": "SECRET"},
        {"NumberOfFrames": "999999"},
        {"ImageType": "LOCALIZER"},
        {"PixelData": None},
    ],
)
def test_a_rejection_quotes_nothing_of_the_header(broken: dict[str, Any]) -> None:
    with pytest.raises(Rejected) as caught:
        read_slice(make_dicom(**SECRETS | broken).replace(b"999999", b"SECRET"))
    told = repr(caught.value)
    assert not any(secret in told for secret in ("SECRET", "Secret", "1970", "666", "4711"))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_uids_have_the_names_of_the_standard() -> None:
    names = {syntax: name for syntax, (name, _) in TRANSFER_SYNTAXES.items()}
    assert names == {syntax: uid.UID(syntax).name for syntax in names}
    assert all(uid.UID(syntax).is_transfer_syntax for syntax in names)
    assert all(uid.UID(each).name.endswith("CT Image Storage") for each in _CT_CLASSES)

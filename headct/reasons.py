"""Reasons for rejecting or excluding a file, as in rejects.jsonl, and errors with a reason."""

import errno
from enum import StrEnum
from typing import Self


class Reason(StrEnum):
    """Reason for not writing a file: a closed list, written to rejects.jsonl.

    Attributes:
        advice: remedy, a sentence.
        is_exclusion: whether the file is sound but not wanted: it is excluded, not rejected.
    """

    advice: str
    is_exclusion: bool

    def __new__(cls, value: str, advice: str, is_exclusion: bool = False) -> Self:
        """Require advice with every reason."""
        reason = str.__new__(cls, value)
        reason._value_, reason.advice, reason.is_exclusion = value, advice, is_exclusion
        return reason

    VANISHED = (
        "vanished",
        "It was listed and was gone when it was to be read: see what moves files during a run, "
        "or fix a broken link.",
    )
    READ_ERROR = (
        "read_error",
        "The disk or the permissions do not allow it to be read: copy it again, or grant access.",
    )
    OBJECT_UNAVAILABLE = (
        "object_unavailable",
        "The store has it and keeps it back, while others can be read: restore it from its "
        "archive, grant access to it and to its encryption key, or store it again.",
    )
    UNUSABLE_KEY = (
        "unusable_key",
        "No path leads to an object of this name: rename it without '//', '.', '..', control "
        "characters, and slashes at its ends.",
    )
    CHANGED = (
        "changed",
        "It became another slice (patient, study, series, UID, position or size) after its header "
        "was read: the same command reads it again.",
    )
    NOT_DICOM = (
        "not_dicom",
        "Not a DICOM file: unpack it where it is an archive; others may stay, or narrow the input "
        "down with a pattern.",
    )
    UNREADABLE = (
        "unreadable",
        "Its header is damaged: export it from the archive again.",
    )
    MISSING_ATTRIBUTE = (
        "missing_attribute",
        "The header lacks what the detail names: export it again without removing that attribute.",
    )
    INVALID_ATTRIBUTE = (
        "invalid_attribute",
        "The header contradicts itself or the standard in what the detail names: export it again, "
        "or correct the attribute.",
    )
    UNSUPPORTED_TRANSFER_SYNTAX = (
        "unsupported_transfer_syntax",
        "Its compression is not supported: convert it to Explicit VR Little Endian.",
    )
    TRUNCATED_PIXELS = (
        "truncated_pixels",
        "The file ends before its pixels do: copy it again and compare sizes with the origin.",
    )
    CORRUPT_PIXELS = (
        "corrupt_pixels",
        "The compressed pixels are damaged, or are another image than the header describes: "
        "export it again.",
    )
    NOT_CT = ("not_ct", "An image of another modality: nothing to do.", True)
    NO_PIXELS = (
        "no_pixels",
        "A report, a plan or a directory without an image: nothing to do.",
        True,
    )
    SECONDARY_CAPTURE = (
        "secondary_capture",
        "A picture of a screen, a report or a 3D view, without Hounsfield units: nothing to do.",
        True,
    )
    LOCALIZER = ("localizer", "A scout view, not a slice: nothing to do.", True)
    NOT_AXIAL = (
        "not_axial",
        "Its normal is more than 45 degrees off the scanner's axis: nothing to do, unless "
        "--orientation any should use it.",
        True,
    )
    NOT_SELECTED = (
        "not_selected",
        "It does not meet the condition that the detail names: nothing to do, unless --where "
        "should select it.",
        True,
    )
    TOO_FEW_SLICES = (
        "too_few_slices",
        "Its series has fewer usable slices than --min_slices: nothing to do.",
        True,
    )
    OTHER_SERIES = (
        "other_series",
        "--one_series_per_study took another series of its study: nothing to do.",
        True,
    )
    MULTI_FRAME = (
        "multi_frame",
        "Several slices in one file: convert it to single-frame files first.",
    )
    NOT_GRAYSCALE = (
        "not_grayscale",
        "A color image: nothing to do, unless it was exported with an overlay burned in.",
    )
    TOO_LARGE = (
        "too_large",
        "Larger than any CT matrix: see whether it is a slice at all.",
    )
    CONSTANT_IMAGE = (
        "constant_image",
        "All pixels have one value: nothing to learn from; export it again if it should have more.",
    )
    DECODER_CRASHED = (
        "decoder_crashed",
        "Its pixels end the decoder's process twice, or memory runs out at it four times: run with "
        "fewer --workers, or export it again uncompressed.",
    )
    DECODER_TIMED_OUT = (
        "decoder_timed_out",
        "Its pixels keep the decoder busy beyond --decode_timeout: raise that on a slow machine, "
        "or export the file again uncompressed.",
    )
    DUPLICATE_ID = (
        "duplicate_id",
        "Another file has the same image id and is used: remove one of two copies, or take "
        "--image_id file_name out where files of different slices share a name.",
    )
    LABEL_MISSING = (
        "label_missing",
        "The label file has no row for it: add one, leave such files out by --unlabeled skip, "
        "allow more of them by --max_reject_fraction, or see that --id_column is right.",
    )
    LABEL_INVALID = (
        "label_invalid",
        "A label of it is not 0 or 1, or a class is missing: correct its rows of the label file.",
    )
    LABEL_CONFLICT = (
        "label_conflict",
        "Its rows of the label file contradict each other: keep the right ones.",
    )


def advice_for(reason: str) -> str:
    """Return the advice for a reason; empty for reasons of other versions."""
    return next((known.advice for known in Reason if known.value == reason), "")


EXCLUSIONS = frozenset(reason for reason in Reason if reason.is_exclusion)
# Transient reasons: files are read again when a run resumes.
TRANSIENT = frozenset(
    {
        Reason.VANISHED,
        Reason.READ_ERROR,
        Reason.OBJECT_UNAVAILABLE,
        Reason.CHANGED,
        Reason.DECODER_CRASHED,
        Reason.DECODER_TIMED_OUT,
    }
)


class Rejected(Exception):
    """A file is not usable, or not wanted.

    Attributes:
        reason: the reason.
        detail: never holds a value from the file's header.
        identifiers: those of the header, if it was read, to search for in the file's path; neither
            written nor shown.
    """

    identifiers: tuple[str, ...] = ()

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    @classmethod
    def unread(cls, error: OSError) -> "Rejected":
        """Return the rejection of an unreadable file."""
        if isinstance(error, FileNotFoundError):
            return cls(Reason.VANISHED)
        if isinstance(error, ObjectFault):
            return cls(error.reason, error.what)
        return cls(Reason.READ_ERROR, error.strerror or type(error).__name__)


class ObjectFault(OSError):
    """A store has an object but does not return it; other objects are not affected.

    Args:
        reason: of the rejection.
        what: the cause; never a value from a header.
    """

    def __init__(self, reason: Reason, what: str) -> None:
        super().__init__(errno.EACCES, what)
        self.reason = reason
        self.what = what

    def __str__(self) -> str:
        return self.what

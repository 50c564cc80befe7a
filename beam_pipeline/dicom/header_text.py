"""A header as text, so that a file whose header was read need not be parsed again."""

import json
from dataclasses import fields
from typing import Any

from beam_pipeline.dicom.hounsfield import PixelEncoding
from beam_pipeline.dicom.slices import Header

_CARRIED = (
    "position_z",
    "pixel_spacing",
    "rows",
    "columns",
    "transfer_syntax",
    "window",
    "voi_function",
    "pixel_offset",
    "beginning",
    "identity",
)
_ENCODING = tuple(field.name for field in fields(PixelEncoding))


def encode_header(header: Header) -> str:
    """What conversion needs of a header, without ids; empty if it cannot be recognized."""
    if not header.beginning and not header.identity:
        return ""
    known = [getattr(header, name) for name in _CARRIED]
    encoding = [getattr(header.encoding, name) for name in _ENCODING]
    return json.dumps([*known, encoding], separators=(",", ":"))


def decode_header(text: str) -> Header | None:
    """The header that was encoded, with empty ids."""
    if not text:
        return None
    *known, encoding = json.loads(text)
    values: dict[str, Any] = dict(zip(_CARRIED, known, strict=True))
    values["pixel_spacing"] = tuple(values["pixel_spacing"])
    values["window"] = _pair(values["window"])
    described: dict[str, Any] = dict(zip(_ENCODING, encoding, strict=True))
    described["padding"] = _pair(described["padding"])
    values["encoding"] = PixelEncoding(**described)
    return Header(sop_instance_uid="", patient_id="", study_id="", series_id="", **values)


def _pair(values: list[Any] | None) -> tuple[Any, Any] | None:
    return (values[0], values[1]) if values else None

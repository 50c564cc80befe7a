"""What a file is that is no DICOM file, told by its first bytes."""

import zlib

BEGINNING = 1 << 10  # bytes that tell it

_SIGNATURES = (
    (0, b"PK\3\4", "ZIP archive"),
    (257, b"ustar", "tar archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (0, b"Rar!\x1a\x07", "RAR archive"),
    (0, b"BZh", "bzip2 archive"),
    (0, b"\xfd7zXZ\0", "xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "Zstandard archive"),
    (344, b"n+1\0", "NIfTI image"),
    (344, b"ni1\0", "NIfTI header"),
    (4, b"n+2\0\r\n\x1a\n", "NIfTI image"),
    (0, b"\x5c\x01\0\0", "Analyze header"),  # 348, the size of the header; NIfTI begins so, too
    (0, b"NRRD000", "NRRD image"),
    (0, b"ObjectType = ", "MetaImage"),
    (0, b"NDims = ", "MetaImage"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG image"),
    (0, b"\xff\xd8\xff", "JPEG image"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000 image"),
    (0, b"GIF8", "GIF image"),
    (0, b"BM", "BMP image"),
    (0, b"II*\0", "TIFF image"),
    (0, b"MM\0*", "TIFF image"),
    (8, b"WEBP", "WebP image"),
    (0, b"\x93NUMPY", "NumPy array"),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5 file"),
    (0, b"MATLAB 5.0", "MATLAB file"),
    (0, b"PAR1", "Parquet table"),
    (0, b"%PDF-", "PDF document"),
)
_PAGES = (b"<!doctype html", b"<html")
_GZIP = b"\x1f\x8b"


def name_kind(beginning: bytes) -> str:
    """What a file is, in words; empty for DICOM, or if its beginning does not tell.

    Args:
        beginning: the first `BEGINNING` bytes, or all.
    """
    if beginning[128:132] == b"DICM":  # behind 128 bytes that may be another format's (PS3.10 7.1)
        return ""
    for offset, signature, kind in _SIGNATURES:
        if beginning[offset : offset + len(signature)] == signature:
            return kind
    if beginning.lstrip()[:20].lower().startswith(_PAGES):
        return "web page"
    return _gzip_kind(beginning) if beginning.startswith(_GZIP) else ""


def _gzip_kind(beginning: bytes) -> str:
    try:
        inside = zlib.decompressobj(wbits=31).decompress(beginning, BEGINNING)
    except zlib.error:
        return "gzip archive"
    if inside[128:132] == b"DICM":
        return "compressed DICOM file"
    kind = "" if inside.startswith(_GZIP) else name_kind(inside)
    return f"compressed {kind}" if kind else "gzip archive"

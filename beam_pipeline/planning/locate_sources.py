"""Lookup of the input files of an index with numbered or escaped sources."""

from collections.abc import Sequence

from headct.layout import ordinal
from headct.stores import InputFiles, encode_source, show_source


def locate_sources(
    files: InputFiles, sources: Sequence[str], *, numbered: bool, count: int
) -> list[bytes | None]:
    """Return the paths of an index's sources, by `encode_source`; None for an unknown source.

    Args:
        files: the input, which may have changed or moved.
        sources: values of the index's column.
        numbered: whether sources are file numbers (`--image_id ordinal`).
        count: number of input files when the index was made.

    Raises:
        ValueError: sources are numbers, and the input has more or fewer files now.
        StoreError: the input's store fails.
    """
    if numbered:
        paths = [info.path for info in files.list()]
        if len(paths) != count:
            raise ValueError(f"the input has {len(paths)} files, not {count} as it had")
        known = {ordinal("file", number): path for number, path in enumerate(paths)}
    elif any("\\" in source for source in sources):  # perhaps a name that is not UTF-8
        known = {show_source(info.path): info.path for info in files.list()}
    else:
        known = {source: source for source in sources}
    return [encode_source(known[source]) if source in known else None for source in sources]

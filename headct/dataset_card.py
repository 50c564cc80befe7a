"""Descriptions for hubs: README.md, Hugging Face's data set card, and croissant.json of MLCommons.

Both follow from the manifest alone, and have no path or name of the run's input.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from headct.layout import (
    CROISSANT,
    DATASET,
    DATASET_VERSION,
    INDEX,
    INDEX_COLUMNS,
    ORDINAL,
    README,
    index_columns,
    shard_pattern,
)
from headct.manifest import Manifest, Window

UNKNOWN_LICENSE = "unknown"  # as Hugging Face calls it

_IDS = {
    ORDINAL: "ordinal numbers without meaning",
    "hash": "keyed hashes",
    "keep": "those of the DICOM files",
    "file_name": "names of the DICOM files",
    "sop_instance_uid": "SOP Instance UIDs",
}
_SHARDS = """\
The shards are TFRecord files, `index.parquet` has a row per slice:

```python
import headct

shards = headct.open("FOLDER", split="{split}")  # reads TFRecord without TensorFlow
shards[0]["image"], shards.rows
```

TensorFlow Datasets reads them by `tfds.builder_from_directory("FOLDER")`; machines read
`croissant.json`.

<!-- Before you publish: fill in `license` above, and license, creator, url and datePublished in
croissant.json. The other files beside the shards contain paths of the DICOM files, which may name
patients; `headct convert` copies no paths. -->"""


def describe_directory(manifest: Manifest, columns: Iterable[str]) -> dict[str, bytes]:
    """Return the contents of README.md and croissant.json of a shard directory.

    Args:
        manifest: of the directory.
        columns: of its index; earlier versions wrote fewer.
    """
    readme = fill_in_card(
        manifest,
        config="index",
        data_files=[("slices", INDEX)],
        reading=_SHARDS.format(split=next(iter(manifest.splits))),
    )
    croissant = json.dumps(_croissant(manifest, {*columns}), indent=2) + "\n"
    return {README: readme, CROISSANT: croissant.encode()}


def fill_in_card(
    manifest: Manifest,
    *,
    config: str,
    data_files: Sequence[tuple[str, str]],
    reading: str,
    license: str = UNKNOWN_LICENSE,
    image_ids: str = "",
) -> bytes:
    """Return a README.md.

    Args:
        manifest: of the shard directory.
        config: name of the data set's only configuration.
        data_files: name and pattern of the files, per split.
        reading: a section on how to read the data.
        license: of the data, by Hugging Face's name.
        image_ids: their kind, as in a manifest; by default that of the manifest.
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["markdown"] = _escape_markdown
    examples = sum(split.examples for split in manifest.splits.values())
    text = templates.get_template("dataset_card.md.jinja").render(
        license=json.dumps(license),
        size=_size_category(examples),
        config=config,
        data_files=data_files,
        examples=examples,
        group="study" if manifest.options.get("group_by") == "study" else "patient",
        image=manifest.image,
        windows=[_escape_markdown(_describe_window(window)) for window in manifest.windows],
        splits=manifest.splits,
        labels=_count_labels(manifest),
        label_level=manifest.label_level,
        patient_ids=describe_ids(manifest.patient_ids),
        image_ids=describe_ids(image_ids or manifest.image_ids),
        reading=reading,
    )
    return re.sub(r"\n{3,}", "\n\n", text).encode()


def describe_ids(kind: str) -> str:
    """Describe a kind of ids, as a `Manifest` names it."""
    return _IDS.get(kind.partition(" ")[0], "of an unknown kind")


def _describe_window(window: Window) -> str:
    if window.center is None or window.width is None:
        return f"{window.name} (of each file)"
    return f"{window.name} (center {window.center:g}, width {window.width:g})"


def _count_labels(manifest: Manifest) -> dict[str, int | None]:
    """Return the positives per label; None where an earlier version did not count them."""
    counts = [split.label_counts for split in manifest.splits.values()]
    total = Counter[str]()
    for count in counts:
        total.update(count or {})
    is_known = all(count is not None for count in counts)
    return {label: total[label] if is_known else None for label in manifest.labels}


def _escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, also in a cell of a table."""
    return re.sub(r"([\\`*_{}\[\]<>|#$&~])", r"\\\1", text)


def _size_category(examples: int) -> str:
    """Return Hugging Face's category of a data set's size."""
    steps = ("1K", "10K", "100K", "1M", "10M", "100M", "1B")
    if examples < 1000:
        return "n<1K"
    step = len(str(examples)) - 4
    return f"{steps[step]}<n<{steps[step + 1]}"


# Croissant 1.0: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.0.html

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{
        name: f"cr:{name}"
        for name in (
            *("citeAs", "column", "equivalentProperty", "extract", "field", "fileObject"),
            *("fileProperty", "fileSet", "format", "includes", "isLiveDataset", "jsonPath", "key"),
            *("md5", "parentField", "path", "recordSet", "references", "regex", "repeated"),
            *("replace", "samplingRate", "separator", "source", "subField", "transform"),
        )
    },
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "sc": "https://schema.org/",
}
_DATA_TYPES = {"string": "sc:Text", "int": "sc:Integer", "double": "sc:Float", "bool": "sc:Boolean"}
_RECORDS = "slices"


def _croissant(manifest: Manifest, columns: set[str]) -> dict[str, Any]:
    """Return the content of croissant.json, without license, creator, url and dates."""
    index = manifest.files.get(INDEX)
    meanings = {column.name: column.meaning for column in INDEX_COLUMNS}
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"{_RECORDS}/{quote(name, safe='')}",
            "name": name,
            "description": meanings.get(name, "1 or 0"),  # a label has a column of its own
            "dataType": _DATA_TYPES[dtype.rstrip("0123456789")],
            "source": {"fileObject": {"@id": INDEX}, "extract": {"column": name}},
        }
        for name, dtype in index_columns(manifest.labels)
        if name in columns
    ]
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": DATASET,
        "description": "CT slices of the head as PNG images in TFRecord shards, with an index.",
        "version": DATASET_VERSION,
        "keywords": ["medical", "radiology", "CT", "head"],
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": INDEX,
                "name": INDEX,
                "description": "One row per slice: ids, labels, geometry, place of its record.",
                "contentUrl": INDEX,
                "encodingFormat": "application/x-parquet",
                **({} if index is None else {"sha256": index.sha256}),
            },
            *(
                {
                    "@type": "cr:FileSet",
                    "@id": f"{split}-shards",
                    "name": f"{split}-shards",
                    "description": f"TFRecord files of {split}: {entry.examples} examples.",
                    "encodingFormat": "application/x-tfrecord",
                    "includes": shard_pattern(split),
                }
                for split, entry in manifest.splits.items()
            ),
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": _RECORDS,
                "name": _RECORDS,
                "description": f"The rows of {INDEX}.",
                "key": {"@id": f"{_RECORDS}/image_id"},
                "field": fields,
            }
        ],
    }

"""`headct convert SHARDS --to FORMAT`: shards as Parquet files or WebDataset's tar files, for hubs.

One file per shard, which appears when it is complete: the same command continues an interrupted
conversion. PNGs are copied as they are: each is checked when it is read, and again in the file that
was written.
"""

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from isal import isal_zlib
from pydantic import Field
from rich.console import Console
from rich.progress import track

import headct
from headct.commands import run_program
from headct.dataset_card import UNKNOWN_LICENSE, describe_ids, fill_in_card
from headct.declarations import Declared, Location, parse_flags, with_flags
from headct.errors import OutputError, UsageError
from headct.layout import (
    CONVERSION,
    CONVERTED_DATA,
    IMAGE,
    IMAGE_ID,
    INDEX,
    LABEL_PREFIX,
    LOCAL_COLUMNS,
    ORDINAL,
    README,
    ShardFile,
    index_columns,
    ordinal,
)
from headct.manifest import Manifest
from headct.png import check_png
from headct.printable import hide_secrets, show_line
from headct.reader import Shards
from headct.stores import Folder
from headct.stores.local import partial_target

_PNG = ".png"
_IMAGE_BYTES = 1 << 26  # decoded size of the images in memory at once
_MOST_IMAGES = 100  # in a row group, as of Hugging Face's library for images


class ConvertOptions(Declared):
    """Write shards as Parquet files or WebDataset's tar files: convert SHARDS --to FORMAT.

    The output folder can be uploaded to the Hugging Face Hub, whose viewer shows images and labels.
    """

    shards: Location
    """shard directory; local or a URL"""
    to: Literal["parquet", "webdataset"]
    """format of the files"""
    output: Location
    """output folder; local or a URL"""
    image_id: Literal["keep", "ordinal"] = "keep"
    """image ids: keep the ids of the shards, or number the images"""
    yes_identifiers: bool = False
    """write ids that are not ordinals: hashes, names of files, or the ids of the DICOM files"""
    license: Annotated[str, Field(min_length=1)] = UNKNOWN_LICENSE
    """license of the data for README.md, by Hugging Face's name"""
    overwrite: bool = False
    """replace an earlier conversion in --output"""


def main(argv: Sequence[str], program: str = "python -m headct.convert") -> int:
    """Convert shards; return the exit code: 0 done, 2 unusable shards or output, 5 storage."""
    return run_program("convert", lambda: _run(argv, program))


def options_of(_command: str) -> list[type[Declared]]:
    """Return the classes of the command's options."""
    return [ConvertOptions]


def _run(argv: Sequence[str], program: str) -> None:
    given = parse_flags(ConvertOptions, with_flags(argv, "--shards"), program)
    print(show_line(convert(given)))


class _Batch(NamedTuple):
    """Some slices of a shard: their PNGs, and their rows of the other columns."""

    pngs: Sequence[bytes]
    rows: pa.Table


class _Format(NamedTuple):
    """A format of files: how to write batches, and to yield the PNGs of a file in order."""

    suffix: str
    write: Callable[[BinaryIO, Iterator[_Batch], pa.Schema], None]
    read_pngs: Callable[[BinaryIO], Iterator[bytes]]
    reading: str  # section of README.md


def convert(options: ConvertOptions) -> str:
    """Convert a shard directory, or continue; return a message.

    Raises:
        UsageError: the shards are damaged or have identifiers, or the output holds something else.
        StorageError: a store fails, or the output cannot be written.
    """
    shards = headct.open(options.shards)
    _check_identifiers(shards.manifest, options)
    folder = Folder(options.output.rstrip("/") or "/")
    _prepare(folder, shards.manifest, options)
    where = hide_secrets(folder.url)
    if folder.exists(README):
        return f"{where} is complete; --overwrite makes it again"
    kind = _FORMATS[options.to]
    places = shards.columns("shard", "record").sort_values("record").groupby("shard")
    rows = {str(shard): group.index.to_numpy() for shard, group in places}
    data = Folder(f"{folder.url}/{CONVERTED_DATA}")
    data.remove_partial()
    done = {f"{CONVERTED_DATA}/{name}" for name in data.names()}
    tasks = {
        ShardFile(split, number, len(entry.shards)).converted(kind.suffix): shard
        for split, entry in shards.manifest.splits.items()
        for number, shard in enumerate(entry.shards)
    }
    console = Console(stderr=True)
    hidden = not console.is_terminal
    for name, shard in track(
        tasks.items(), "Convert shards", console=console, transient=True, disable=hidden
    ):
        if name not in done:
            own = rows.get(shard.file, np.empty(0, np.int64))
            if len(own) != shard.examples:
                raise UsageError(f"{shard.file}: {INDEX} has {len(own)} of {shard.examples} slices")
            batches = _read_batches(shards, own, numbered=options.image_id == ORDINAL)
            _write_checked(folder, name, batches, _schema(shards), kind)
    folder.write(README, _card(shards.manifest, options))
    return f"{len(shards)} slices in {len(tasks)} files written to {where}"


def _check_identifiers(manifest: Manifest, options: ConvertOptions) -> None:
    """Raise a UsageError if ids are not ordinals, and the user does not want to publish them."""
    if options.yes_identifiers:
        return
    kinds = {
        "patient, study and series ids": (manifest.patient_ids, "preprocess with --identifiers"),
        "image ids": (manifest.image_ids, "number the images with --image_id"),
    }
    if options.image_id == ORDINAL:
        del kinds["image ids"]
    for ids, (kind, remedy) in kinds.items():
        if kind != ORDINAL:
            raise UsageError(
                f"{ids} of the shards are {describe_ids(kind)}: {remedy} {ORDINAL}, or write them "
                "as they are with --yes_identifiers"
            )


def _prepare(folder: Folder, manifest: Manifest, options: ConvertOptions) -> None:
    """Begin a conversion, or continue the one that the output's record names.

    Raises:
        UsageError: the output holds something else.
        OutputError: the output cannot be read or written.
    """
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    listing = "".join(f"{shard.sha256} {shard.file}\n" for shard in shards)
    record = {
        "shards": hashlib.sha256(listing.encode()).hexdigest(),
        **{name: getattr(options, name) for name in ("to", "image_id", "license")},
        "headct": headct.__version__,
    }
    names = {name for name in folder.names() if partial_target(name) is None}
    where = f"output {hide_secrets(folder.url)}"
    if names and CONVERSION not in names:
        raise UsageError(f"{where} holds something else ({min(names)}); choose another folder")
    if options.overwrite:
        for name in (README, CONVERTED_DATA, CONVERSION):  # if killed, the rest stays ours
            folder.remove(name)
    elif names:
        try:
            begun = folder.read(CONVERSION)
        except OSError as error:
            raise OutputError(f"{where}: cannot read {CONVERSION}: {error.strerror}") from None
        if begun != json.dumps(record).encode():
            raise UsageError(
                f"{where} was begun from other shards or with other options; choose another "
                "folder, or --overwrite it"
            )
    folder.remove_partial()
    if options.overwrite or not names:
        folder.write(CONVERSION, json.dumps(record).encode())


def _schema(shards: Shards) -> pa.Schema:
    """Return the columns to write besides the image, in the order of the index."""
    there = {*shards[:0].rows.columns} - {*LOCAL_COLUMNS}  # earlier versions wrote fewer
    columns = index_columns(shards.labels)
    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns if name in there])


def _read_batches(shards: Shards, positions: Any, *, numbered: bool) -> Iterator[_Batch]:
    """Yield the slices at some positions; replace image ids by numbers if `numbered`.

    Raises:
        UsageError: an image is damaged.
    """
    schema, places = _schema(shards), shards.select(positions).columns("shard", "record")
    size = int(np.prod(shards.image_shape)) * shards.dtype.itemsize
    step = min(max(_IMAGE_BYTES // size, 1), _MOST_IMAGES)
    for begin in range(0, len(positions), step):
        batch = shards.select(positions[begin : begin + step])
        pngs = batch.pngs(range(len(batch)))
        for number, png in enumerate(pngs, start=begin):
            try:
                check_png(png)
            except ValueError as error:
                where = f"{places['shard'][number]}: record {places['record'][number]}"
                raise UsageError(f"{where}: {error}; `headct verify` says more") from None
        rows = batch.columns(*schema.names)
        if numbered:
            rows[IMAGE_ID] = [ordinal(IMAGE, row) for row in positions[begin : begin + step]]
        yield _Batch(pngs, pa.Table.from_pandas(rows, schema, preserve_index=False))


def _write_checked(
    folder: Folder, name: str, batches: Iterator[_Batch], schema: pa.Schema, kind: _Format
) -> None:
    """Write a file, and compare the checksums of its PNGs with those that were read."""
    checksums: list[int] = []

    def noted() -> Iterator[_Batch]:
        for batch in batches:
            checksums.extend(map(isal_zlib.crc32, batch.pngs))
            yield batch

    with folder.create(name) as file:
        kind.write(file, noted(), schema)
        file.seek(0)
        if [*map(isal_zlib.crc32, kind.read_pngs(file))] != checksums:
            raise OutputError(f"{name} in {folder.url}: other images than were written")


def _write_parquet(file: BinaryIO, batches: Iterator[_Batch], schema: pa.Schema) -> None:
    """Write a row group per batch, with the types of Hugging Face's `datasets` as metadata."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features: dict[str, Any] = {IMAGE: {"_type": "Image"}}
    for field in schema:
        dtype = "float64" if pa.types.is_float64(field.type) else str(field.type)
        features[field.name] = {"dtype": dtype, "_type": "Value"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    whole = pa.schema([pa.field(IMAGE, image), *schema], metadata)
    columns = {field.name: "zstd" for field in schema}
    with pq.ParquetWriter(
        file,
        whole,
        compression=columns | {f"{IMAGE}.bytes": "none", f"{IMAGE}.path": "zstd"},
        use_dictionary=[*columns],
        write_statistics=[*columns],
    ) as writer:
        for pngs, rows in batches:
            paths = [f"{_key(image_id)}{_PNG}" for image_id in rows[IMAGE_ID].to_pylist()]
            images = pa.StructArray.from_arrays(
                [pa.array(pngs, pa.binary()), pa.array(paths)], fields=[*image]
            )
            writer.write_table(pa.table([images, *rows.columns], schema=whole))


def _read_parquet(file: BinaryIO) -> Iterator[bytes]:
    parquet = pq.ParquetFile(file)
    for group in range(parquet.num_row_groups):
        for chunk in parquet.read_row_group(group, [f"{IMAGE}.bytes"])[IMAGE].chunks:
            yield from (png.as_buffer() for png in chunk.field("bytes"))


def _write_tar(file: BinaryIO, batches: Iterator[_Batch], schema: pa.Schema) -> None:
    """Write KEY.png and KEY.json per slice; without dates, so the same bytes again."""
    labels = [name for name in schema.names if name.startswith(LABEL_PREFIX)]
    with tarfile.open(fileobj=file, mode="w") as tar:
        for pngs, rows in batches:
            for png, row in zip(pngs, rows.to_pylist(), strict=True):
                key = _key(row[IMAGE_ID])
                values = {name.removeprefix(LABEL_PREFIX): row.pop(name) for name in labels}
                text = json.dumps(row | {"labels": values}).encode()
                for suffix, data in ((_PNG, png), (".json", text)):
                    member = tarfile.TarInfo(f"{key}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def _read_tar(file: BinaryIO) -> Iterator[bytes]:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.name.endswith(_PNG):
                yield tar.extractfile(member).read()  # type: ignore[union-attr] # a file


def _key(image_id: str) -> str:
    """Return an image id as a file name without dots, which end the key in WebDataset."""
    return quote(image_id.encode("utf-8", "surrogateescape"), safe="").replace(".", "%2E")


_FORMATS = {
    "parquet": _Format(
        "parquet",
        _write_parquet,
        _read_parquet,
        """\
```python
import datasets

slices = datasets.load_dataset("FOLDER", split="{split}")
slices[0]["image"], slices[0]["image_id"]
```""",
    ),
    "webdataset": _Format(
        "tar",
        _write_tar,
        _read_tar,
        """\
Each slice is `KEY.png` and `KEY.json`, which has ids and labels.

```python
import webdataset

slices = webdataset.WebDataset("FOLDER/{file}").decode("pil")
```""",
    ),
}


def _card(manifest: Manifest, options: ConvertOptions) -> bytes:
    """Return README.md, which names the files of each split.

    A split is empty if all its images are faulty. The hub's library loads no data set that has one.
    """
    kind = _FORMATS[options.to]
    filled = {name: entry for name, entry in manifest.splits.items() if entry.examples}
    split, entry = next(iter((filled or manifest.splits).items()))
    first = ShardFile(split, 0, len(entry.shards)).converted(kind.suffix)
    return fill_in_card(
        manifest,
        config="default",
        data_files=[(name, f"{CONVERTED_DATA}/{name}-*.{kind.suffix}") for name in filled],
        reading=kind.reading.format(split=split, file=first),
        license=options.license,
        image_ids=ORDINAL if options.image_id == ORDINAL else "",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Reader for shards of head-CT slices, and code that the pipeline and the trainer share.

    import headct

    shards = headct.open("out/shards", split="fold0")
    example = shards[0]

See `help(headct.open)`. Importing this package imports no submodules.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    from headct.reader import Shards

__version__ = "0.1.0"


def open(location: "str | os.PathLike[str]", split: str | None = None) -> "Shards":
    """Open a shard directory: a folder, or a URL (`s3://`, `gs://`, `az://`, `https://`).

    Reads the manifest and the index; reads images on access. Needs neither TensorFlow nor Beam.

        shards = headct.open("out/shards")
        len(shards), shards.labels, shards.splits
        shards[0]["image"]                    # uint8 [H, W, C]; uint16 of shards with --hu
        shards["ID_0123"]["label"]            # int64 [L]
        shards.split("fold1", "fold2")        # the same class, fewer examples
        shards.patient("7").images()          # [slices, H, W, C], in the order of the slices
        shards.rows                           # pandas.DataFrame: the index, one row per example

    The result is a map-style dataset of PyTorch, a data source of Grain and of TensorFlow Datasets.

    Args:
        location: path or URL of the directory.
        split: `fold0` and so on, `holdout` or `test`; all splits if None.

    Raises:
        headct.errors.UsageError: there is no such directory or split, or the directory is damaged.
        headct.errors.StorageError: a store fails or refuses access.
    """
    from headct.reader import Shards

    shards = Shards.read(location)
    return shards if split is None else shards.split(split)


def __getattr__(name: str) -> Any:
    """Import `Shards` on first access."""
    if name == "Shards":
        from headct.reader import Shards

        return Shards
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What manifest.json says of a shard directory, as far as it can be read."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ShardClaim:
    """What the manifest says of one shard file.

    Attributes:
        split: it belongs to.
        file: its name.
        stated: of `examples`, `bytes`, `sha256` and `label_counts` those that can be read.
    """

    split: str
    file: str
    stated: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claims:
    """What the manifest says; None or empty where it cannot be read.

    Attributes:
        values: the manifest, without what its schema does not allow.
        complete: whether that is all of it.
    """

    values: dict[str, Any] = field(default_factory=dict)
    complete: bool = False

    def at(self, *keys: str | int) -> Any:
        """The value at a path through objects and lists, or None."""
        value: Any = self.values
        try:
            for key in keys:
                value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
        return value

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes."""
        labels = self.at("labels")
        return None if labels is None else tuple(labels)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width, channels."""
        image = self.at("image") or {}
        if not image.keys() >= {"height", "width", "channels"}:
            return None
        return image["height"], image["width"], image["channels"]

    @property
    def options(self) -> dict[str, Any]:
        """That the shards were written with, as JSON values."""
        return self.at("options") or {}

    @property
    def splits(self) -> dict[str, Any]:
        """By name."""
        return self.at("splits") or {}

    @property
    def shards(self) -> tuple[ShardClaim, ...]:
        """Of all splits."""
        return tuple(
            ShardClaim(name, shard["file"], shard)
            for name, split in self.splits.items()
            for shard in split.get("shards", ())
            if "file" in shard
        )

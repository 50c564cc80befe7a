"""A split of shards as WebDataset's tar files: a PNG, its labels and ids for each slice.

    python examples/webdataset_tars.py out/shards fold0 out/webdataset

Needs `pip install webdataset`. The PNGs are copied as they are.
"""

import sys
from pathlib import Path

import webdataset

import headct


def convert(shards: headct.Shards, output: Path) -> None:
    """Write `000000.tar` and so on."""
    output.mkdir(parents=True, exist_ok=True)
    labels, patients = shards.label_values, shards.rows["patient_id"]
    with webdataset.ShardWriter(f"{output}/%06d.tar", maxcount=1000, verbose=0) as tars:
        for position, image_id in enumerate(labels.index):
            tars.write(
                {
                    "__key__": image_id.replace(".", "_"),
                    "png": shards.png(position),
                    "json": {
                        "labels": labels.iloc[position].to_dict(),
                        "patient_id": patients[position],
                    },
                }
            )


if __name__ == "__main__":
    source, split, target = sys.argv[1:]
    shards = headct.open(source, split)
    convert(shards, Path(target))
    print(f"{len(shards)} slices are in {target}")

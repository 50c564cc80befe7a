"""A split of shards as WebDataset's tar files: a PNG, its labels and ids for each slice.

    python examples/webdataset_tars.py out/shards fold0 out/webdataset

Needs `pip install webdataset pandas pyarrow`. The PNGs are copied as they are.
"""

import sys
from pathlib import Path

import pandas as pd
import webdataset


def convert(folder: Path, split: str, output: Path) -> int:
    """Write `<split>-000000.tar` and so on; returns how many slices they hold."""
    index = pd.read_parquet(folder / "index.parquet")
    index = index[index["split"] == split]
    columns = [name for name in index.columns if name.startswith("label_")]
    names = [name.removeprefix("label_") for name in columns]
    output.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(f"{output}/{split}-%06d.tar", maxcount=1000, verbose=0) as tars:
        for shard, rows in index.groupby("shard", sort=True):
            data = (folder / shard).read_bytes()
            for _, row in rows.sort_values("record").iterrows():
                begin = row["image_offset"]
                tars.write(
                    {
                        "__key__": row["image_id"].replace(".", "_"),
                        "png": data[begin : begin + row["image_bytes"]],
                        "json": {
                            "labels": dict(zip(names, map(int, row[columns]), strict=True)),
                            "patient_id": row["patient_id"],
                        },
                    }
                )
    return len(index)


if __name__ == "__main__":
    source, split, target = sys.argv[1:]
    print(f"{convert(Path(source), split, Path(target))} slices are in {target}")

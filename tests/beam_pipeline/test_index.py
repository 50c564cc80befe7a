import pandas as pd

from beam_pipeline.index import decode_index, encode_index, index_schema, join_indexes


def rows(shard: str, count: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": [f"{shard}{number}" for number in range(count)],
            "split": "fold0",
            "shard": shard,
            "record": range(count),
            "offset": range(count),
            "bytes": 1,
            "label_any": 1,
            "patient_id": "p",
            "study_id": "s",
            "series_id": "e",
            "position_z": [float("nan")] * count,
            "rows": 2,
            "columns": 2,
            "transfer_syntax": "1.2",
            "repair": "none",
            "resized": False,
            "source": "x",
        }
    )


def test_rows_come_back_in_order_and_type() -> None:
    frame = decode_index(encode_index(rows("a", 3)[::-1], ["any"]))
    assert frame["image_id"].tolist() == ["a0", "a1", "a2"]
    assert frame["label_any"].dtype == "int8"
    assert frame["position_z"].isna().all()
    assert list(frame.columns) == index_schema(["any"]).names


def test_parts_joined_are_the_whole() -> None:
    parts = [encode_index(rows(shard, 40_000), ["any"]) for shard in "abc"]
    joined = join_indexes(parts, ["any"])
    whole = pd.concat([rows(shard, 40_000) for shard in "abc"], ignore_index=True)
    pd.testing.assert_frame_equal(decode_index(joined), whole, check_dtype=False)
    assert joined == join_indexes(iter(parts), ["any"])


def test_an_index_may_be_empty() -> None:
    assert decode_index(encode_index(rows("a", 0), ["any"])).empty
    assert decode_index(join_indexes([], ["any"])).empty

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipeline.planning.image_ids import image_keys


@given(st.lists(st.text(max_size=8)))
def test_image_ids_are_equal_where_their_keys_are(image_ids: list[str]) -> None:
    keys = image_keys(pa.array(image_ids, pa.string()))
    assert keys.dtype == np.uint64
    same = [[one == other for other in image_ids] for one in image_ids]
    assert (keys[:, None] == keys[None]).tolist() == same


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_key_is_the_same_wherever_the_image_id_stands(kind: pa.DataType) -> None:
    one, other = image_keys(pa.array(["ID_1", "ID_2"], pa.string())).tolist()
    chunks = pa.chunked_array([["x", "ID_2"], [], ["ID_1"]], kind)
    assert image_keys(chunks)[1:].tolist() == [other, one]
    assert image_keys(pa.array(["x", "ID_1", "y"], kind).slice(1, 1)).tolist() == [one]


def test_a_hundred_thousand_image_ids_have_as_many_keys() -> None:
    keys = image_keys(pa.array([f"ID_{number:09x}" for number in range(100_000)]))
    assert len(np.unique(keys)) == 100_000
    high, low = keys >> np.uint64(32), keys & np.uint64(0xFFFFFFFF)
    # 2 to the 32nd values: n (n - 1) / 2 / 2^32 = 1.2 of them are hit twice, by chance.
    assert min(len(np.unique(high)), len(np.unique(low))) > 99_980

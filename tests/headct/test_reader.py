"""`headct.open`, against a sequential read by TensorFlow's definition of the formats."""

import functools
import http.server
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import headct
from beam_pipeline.shards.formats import decode_example
from headct.errors import UsageError
from headct.layout import EXAMPLE_FEATURES, INDEX
from headct.reader import Shards
from headct.tfrecord import read_records
from tests.headct.ports import serving
from tests.processes import run_python

pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning:apache_beam.*"),
    pytest.mark.filterwarnings("ignore:Invalid value for VR UI:UserWarning"),
]


@pytest.fixture
def folder(sample_shards: Path) -> Path:
    return sample_shards


def decoded(png: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    return np.atleast_3d(image)[..., ::-1]


def in_sequence(folder: Path) -> dict[str, dict[str, Any]]:
    """All examples by image id."""
    examples = {}
    for path in folder.glob("*.tfrecord-*"):
        with path.open("rb") as file:
            for example in map(decode_example, read_records(file)):
                examples[example["image_id"][0].decode()] = example
    return examples


@pytest.mark.parametrize("kind", ["windows", "hu", "unlabeled"])
def test_an_example_is_what_the_shard_holds(folder: Path, kind: str) -> None:
    shards, expected = headct.open(str(folder / kind)), in_sequence(folder / kind)
    assert len(shards) == len(expected) > 8
    for example in shards:
        assert list(example) == [feature.name for feature in EXAMPLE_FEATURES]
        stored = expected[example["image_id"]]
        image = example.pop("image")
        assert (image.dtype, image.shape) == (shards.dtype, shards.image_shape)
        assert image.flags.writeable
        np.testing.assert_array_equal(image, decoded(stored["image"][0]))
        for name, value in example.items():
            text = isinstance(value, str)
            np.testing.assert_array_equal(
                [value] if text else np.ravel(value),
                [each.decode() if text else each for each in stored[name]],
            )
        np.testing.assert_array_equal(shards[example["image_id"]]["image"], image)


def test_the_manifest_is_at_hand(folder: Path) -> None:
    windows, hu = headct.open(str(folder / "windows")), headct.open(str(folder / "hu"))
    assert [window.name for window in windows.windows] == ["brain", "subdural", "bone"]
    assert windows.labels[-1] == "any"
    assert (windows.image_shape, windows.dtype) == ((64, 64, 3), np.uint8)
    assert (hu.image_shape, hu.dtype, hu.hu_offset) == ((64, 64, 1), np.uint16, -1024)
    assert repr(windows).startswith(f"<headct.Shards {folder}/windows: {len(windows)} examples (f")


def test_selections(folder: Path) -> None:
    shards = headct.open(str(folder / "windows"))
    ids = [example["image_id"] for example in shards]
    assert shards.rows["image_id"].tolist() == shards.label_values.index.tolist() == ids
    assert [example["image_id"] for example in shards[2:5]] == ids[2:5]
    assert shards[-1]["image_id"] == ids[-1]
    fold = headct.open(str(folder / "windows"), split="fold1")
    assert {*fold.rows["split"]} == {"fold1"}
    assert fold.splits == {"fold1": shards.splits["fold1"]} == {"fold1": len(fold)}
    assert len(fold.split("fold0")) == 0
    assert len(shards.split("fold0", "fold1")) == len(shards)
    positive = shards.select(shards.rows["label_any"] == 1)
    assert [int(example["label"][-1]) for example in positive] == [1] * len(positive) != []
    assert (positive.label_values["any"] == 1).all()
    assert [example["image_id"] for example in shards.select([3, 0])] == [ids[3], ids[0]]


def test_a_patient_and_a_series_are_in_the_order_of_slices(folder: Path) -> None:
    shards = headct.open(str(folder / "windows"))
    row = shards.rows.iloc[0]
    rows = shards.rows[shards.rows["patient_id"] == row["patient_id"]]
    rows = rows.sort_values(["series_id", "position_z"])
    patient = shards.patient(row["patient_id"])
    assert patient.rows["image_id"].tolist() == rows["image_id"].tolist()
    series = shards.series(row["series_id"])
    assert series.rows["position_z"].is_monotonic_increasing
    volume = series.images()
    assert volume.shape == (len(series), 64, 64, 3)
    for image, example in zip(volume, series, strict=True):
        np.testing.assert_array_equal(image, example["image"])


def test_what_there_is_not(folder: Path, tmp_path: Path) -> None:
    shards = headct.open(str(folder / "windows"))
    with pytest.raises(IndexError, match=f"no example {len(shards)}: there are"):
        shards[len(shards)]
    with pytest.raises(UsageError, match="no image 'nope' among"):
        shards["nope"]
    with pytest.raises(UsageError, match="no split 'fold7'; there are fold0, fold1"):
        shards.split("fold0", "fold7")
    with pytest.raises(UsageError, match="no patient_id 'nope' among"):
        shards.patient("nope")
    with pytest.raises(UsageError, match=r"no manifest\.json, so no finished shard directory"):
        headct.open(str(tmp_path))


def test_damage_is_one_line_that_names_the_record(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (folder / "windows").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    shards = headct.open(str(copy))
    row = shards.rows.iloc[3]
    shard = copy / row["shard"]
    data = bytearray(shard.read_bytes())
    data[row["image_offset"] + 60] ^= 255
    shard.write_bytes(data)
    with pytest.raises(UsageError) as raised:
        shards[3]
    assert str(raised.value).startswith(
        f"{row['shard']}: record {row['record']}: its PNG is damaged"
    )
    shard.unlink()
    with pytest.raises(UsageError, match=r"record \d+: cannot be read \(No such file"):
        shards[3]
    of_shard = [*shards.rows.index[shards.rows["shard"] == row["shard"]]]
    with pytest.raises(UsageError, match=f"^{row['shard']}: cannot be read \\(No such file"):
        shards.pngs(of_shard[:2])
    (copy / INDEX).write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"index\.parquet: cannot be read"):
        headct.open(str(copy))


def test_the_protocols_of_other_libraries(folder: Path) -> None:
    shards = headct.open(str(folder / "windows"))
    first, second = shards.__getitems__([1, 0])
    np.testing.assert_equal(first, shards[1])
    np.testing.assert_equal(second, shards[0])
    again = pickle.loads(pickle.dumps(shards.split("fold0")))
    assert isinstance(again, Shards)
    np.testing.assert_equal(again[0], shards.split("fold0")[0])


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    """Of a web server on this machine, which answers ranges."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = Path(self.translate_path(self.path))
            if not path.is_file():
                self.send_error(404)
                return
            data, asked = path.read_bytes(), self.headers.get("Range")
            self.send_response(206 if asked else 200)
            if asked:
                first, last = map(int, asked.removeprefix("bytes=").split("-"))
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
                data = data[first : last + 1]
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    handler = functools.partial(Handler, directory=str(folder / "windows"))
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as address:
        yield address


def test_a_url_gives_the_same(folder: Path, url: str) -> None:
    shards, expected = headct.open(url), headct.open(str(folder / "windows"))
    for example, other in zip(shards.__getitems__(range(len(shards))), expected, strict=True):
        np.testing.assert_equal(example, other)


IN_PROCESSES = """if True:
    import multiprocessing, sys
    import numpy as np
    import headct

    if __name__ == "__main__":
        shards = headct.open(sys.argv[1])
        rows = [*range(len(shards))] * 2
        expected = [shards[row] for row in rows]
        for method in ("fork", "spawn"):
            with multiprocessing.get_context(method).Pool(2) as pool:
                found = pool.map(shards.__getitem__, rows, chunksize=1)
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_equal(one, other)
            print(method, len(found))
        heavy = {"tensorflow", "apache_beam", "google.protobuf", "trainer", "beam_pipeline"}
        assert not heavy & {*sys.modules}, heavy & {*sys.modules}
"""


@pytest.mark.parametrize("where", ["folder", "url"])
def test_several_processes_read_at_once(folder: Path, url: str, where: str) -> None:
    """Forked ones, as PyTorch's are, and spawned ones, also after this process has read."""
    location = str(folder / "windows") if where == "folder" else url
    done = run_python("-c", IN_PROCESSES, location)
    count = 2 * len(headct.open(location))
    assert done.stdout == f"fork {count}\nspawn {count}\n"


def test_importing_headct_loads_nothing_else() -> None:
    code = "import sys, headct; print([name for name in sys.modules if name.startswith('headct')])"
    done = run_python("-c", f"{code}; assert 'numpy' not in sys.modules")
    assert done.stdout.strip() == "['headct']"

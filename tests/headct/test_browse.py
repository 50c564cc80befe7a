"""The server of `headct browse`: pages, images and what it refuses; and a browser that uses it."""

import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from markupsafe import Markup

import headct
from headct.browse import Pages, Server, bind, main
from headct.errors import UsageError
from headct.filters import Slices
from headct.windows import PRESETS, Window, apply_windows
from tests.browser import DARK_PHONE, LIGHT_PHONE, VIEWS, chromium, faults_of_address
from tests.headct.ports import serving
from tests.headct.small_shards import HOSTILE, IDS, LABELS, pixels, predictions, write_small_shards

ROOT = Path(__file__).parents[2]
ANY, OTHER = LABELS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browse")
    write_small_shards(folder / "windows")
    write_small_shards(folder / "hu", hu=True)
    (folder / "run").mkdir()
    predictions().to_parquet(folder / "run" / "predictions-fold0.parquet")
    return folder


def make_pages(folder: Path, kind: str = "windows", with_run: bool = True) -> Pages:
    shards = headct.open(folder / kind)
    tables = [predictions()] if with_run else None
    return Pages(shards, Slices(shards, tables), folder / "run" if with_run else None)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    server = bind(make_pages(folder))
    with serving(server):
        yield server


def text_of(pages: Pages, name: str = "", **query: object) -> str:
    answer = pages.answer(name, {key: str(value) for key, value in query.items()})
    assert answer is not None
    return answer[1].decode()


def listed(page: str) -> list[int]:
    """The rows of the slices of a list, in order."""
    return [int(row) for row in re.findall(r'<img src="image\?row=(\d+)', page)]


def test_a_list_has_the_chosen_slices_in_order(folder: Path) -> None:
    pages = make_pages(folder)
    assert listed(text_of(pages)) == [2, 4, 1, 3, 0, 5]
    page = text_of(pages, label=ANY, finding="false_negative")
    assert listed(page) == [0]
    assert "<h1>1 slice</h1>" in page
    assert "any 0.200" in page
    assert listed(text_of(pages, order="largest_loss"))[:2] == [1, 0]
    assert "No slice matches these filters" in text_of(pages, id="nobody")
    without = text_of(make_pages(folder, with_run=False))
    assert 'name="order"' not in without
    assert "false negative" not in without


def test_a_list_goes_over_pages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headct.browse._PER_PAGE", 4)
    pages = make_pages(folder)
    assert listed(text_of(pages, page=1)) == [2, 4, 1, 3]
    page = text_of(pages, page=2)
    assert listed(page) == [0, 5]
    assert "5 to 6 of 6, page 2 of 2" in page
    assert '<a href=".?page=1" data-key="ArrowLeft"' in page
    assert 'data-key="ArrowRight"' not in page
    assert '<a href=".?page=2" data-key="Escape"' in text_of(pages, "slice", row=5)


def test_a_slice_leads_to_its_neighbors(folder: Path) -> None:
    page = text_of(make_pages(folder), "slice", row=4, order="largest_loss", split="fold1")
    links = dict(
        re.findall(r'<a href="slice\?(\S*?)" data-key="(\w+)"', page.replace("&amp;", "&"))
    )
    same = "split=fold1&order=largest_loss&row="
    assert {key: link for link, key in links.items()} == {
        "ArrowLeft": f"{same}2",
        "ArrowRight": f"{same}1",
        "k": f"{same}3",
    }
    assert "2 of 3 in the series" in page
    assert "<span>2 of 2</span>" in page
    assert "not in the list" in text_of(make_pages(folder), "slice", row=4, split="fold0")


@pytest.mark.parametrize("kind", ["windows", "hu"])
def test_images_are_the_channels(folder: Path, kind: str) -> None:
    pages = make_pages(folder, kind)
    presets = [Window(name, *PRESETS[name]) for name in PRESETS]
    assert pages.channels == (["brain", "<s>", "bone"] if kind == "windows" else [*PRESETS])
    page = text_of(pages, "slice", row=3)
    assert re.findall(r'<img src="image\?row=3&amp;channel=(\d)"', page) == ["0", "1", "2"]
    for row in (0, 3, 5):
        stored = pixels(row, kind == "hu")
        if kind == "hu":
            stored = apply_windows(stored[..., 0].astype(float) - 1024, presets)
        for channel in range(stored.shape[-1]):
            answer = pages.answer("image", {"row": str(row), "channel": str(channel)})
            assert answer is not None
            assert answer[0] == "image/png"
            image = cv2.imdecode(np.frombuffer(answer[1], np.uint8), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(image, stored[..., channel])


def test_odd_ids_and_labels_are_text(folder: Path) -> None:
    pages = make_pages(folder)
    for page in (text_of(pages), text_of(pages, "slice", row=1), text_of(pages, id=HOSTILE)):
        assert page.count("<script") == 1  # keys.js
        assert Markup.escape(HOSTILE) in page
    for row, image_id in enumerate(IDS):
        assert listed(text_of(pages, id=image_id)) == [row]
        assert f"<h1>{Markup.escape(image_id)}</h1>" in text_of(pages, "slice", row=row)
    assert "<b>" not in text_of(pages)
    assert "patient_id" in text_of(pages, "slice", row=0)


@pytest.mark.parametrize(
    ("name", "query", "message"),
    [
        ("", {"split": "fold9"}, "split='fold9': want one of fold0, fold1, test"),
        ("", {"label": "../x"}, f"label='../x': want one of {ANY}, {OTHER}"),
        ("", {"order": "random"}, "order='random': want one of largest_loss, highest, lowest"),
        ("", {"page": "2"}, "page='2': want a number from 1 to 1"),
        ("", {"threshold": "nan"}, "threshold='nan': want a number from 0 to 1"),
        ("slice", {}, "row='': want a number from 0 to 5"),
        ("slice", {"row": "-1"}, "row='-1': want a number from 0 to 5"),
        ("image", {"row": "6"}, "row='6': want a number from 0 to 5"),
        ("image", {"row": "0", "channel": "1.5"}, "channel='1.5': want a number from 0 to 2"),
    ],
)
def test_a_wrong_query_is_one_line(
    name: str, query: dict[str, str], message: str, folder: Path
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        make_pages(folder).answer(name, query)


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers={"Connection": "close", **headers})
    response = connection.getresponse()
    response.content = response.read()  # type: ignore[attr-defined]
    connection.close()
    return response


def test_what_the_server_answers(server: Server, folder: Path) -> None:
    assert server.server_address[0] == "127.0.0.1"
    start = urlsplit(server.url).path
    (folder / "secret.txt").write_text("of the file system")
    for path, status in {
        start: 200,
        f"{start}keys.js": 200,
        f"{start}slice?row=0": 200,
        f"{start}slice?row=x": 400,
        f"{start}?{'a=1&' * 30}": 400,
        f"{start}../secret.txt": 404,
        f"{start}%2e%2e/secret.txt": 404,
        f"{start}/etc/passwd": 404,
        "/": 404,
        "/image?row=0": 404,
        f"/{'x' * 22}/": 404,
        "/gr%C3%B6%C3%9Fe/": 404,
    }.items():
        response = ask(server, path)
        assert response.status == status, path
        assert b"of the file system" not in response.content  # type: ignore[attr-defined]
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe-inline" not in policy.partition("script-src")[2]
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert response.headers["Cache-Control"] == "no-store"
        assert "Python" not in response.headers["Server"]
    for host, status in {
        "localhost:9000": 200,
        "127.0.0.1": 200,
        "evil.example": 421,
        f"evil.example:{server.server_port}": 421,
        "127.0.0.1.evil.example": 421,
        "": 421,
    }.items():
        assert ask(server, start, Host=host).status == status, host
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, start, method).status == 501


def test_a_damaged_image_is_a_page(folder: Path, tmp_path: Path) -> None:
    shards = write_small_shards(tmp_path / "shards")
    (shards / "ich-test.tfrecord-00000-of-00001").unlink()
    with bind(make_pages(tmp_path, "shards", with_run=False)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        path = urlsplit(server.url).path
        assert ask(server, f"{path}slice?row=5").status == 200
        broken = ask(server, f"{path}image?row=5")
        assert broken.status == 400
        assert b"cannot be read" in broken.content  # type: ignore[attr-defined]
        assert ask(server, f"{path}image?row=0").status == 200
        server.shutdown()


def test_a_port_that_is_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main([str(folder / "windows"), "--port", port]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"browse: error: --port {port}: Address already in use; without --port")
    pages = make_pages(folder)
    with bind(pages) as first, bind(pages) as second:
        assert first.server_port != second.server_port
        assert first.secret != second.secret


def test_what_cannot_be_browsed_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, message in {
        (): "--shards is missing: shard directory; local or a URL",
        (str(tmp_path),): f"{tmp_path}: no manifest.json, so no finished shard directory",
        (str(folder / "hu"), "--run", str(tmp_path)): f"--run {tmp_path}: has no predictions-",
        (str(folder / "hu"), "--port", "0"): "--port 0: want a whole number from 1 to 65535",
    }.items():
        assert main(argv) == 2
        assert capsys.readouterr().err.startswith(f"browse: error: {message}")


def test_the_command_serves_until_ctrl_c(folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "headct.browse",
        str(folder / "hu"),
        "--run",
        str(folder / "run"),
    ]
    started = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    lines = [started.stdout.readline() for _ in range(2)]
    assert lines[0] == f"6 slices of {folder}/hu; probabilities of 4 by {folder}/run\n"
    (url,) = re.findall(r"browse: (http://127\.0\.0\.1:\d+/\S+/) \(Ctrl\+C ends it\)", lines[1])
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.request("GET", urlsplit(url).path)
    assert connection.getresponse().status == 200  # and stays open
    started.send_signal(signal.SIGINT)
    assert started.communicate(timeout=20) == ("browse: ended\n", "")
    assert started.returncode == 0
    connection.close()


@pytest.mark.system
def test_a_browser_finds_a_mistake(server: Server, full: bool) -> None:
    with chromium() as browser:
        page = browser.new_page()
        page.goto(server.url)
        assert page.locator(".results li").count() == 6
        page.locator("[name=label]").select_option(OTHER)
        page.locator("[name=finding]").select_option(label="present")
        page.get_by_role("button", name="Show").click()
        assert page.locator("h1").inner_text() == "2 slices"
        page.goto(server.url)
        page.locator("[name=order]").select_option(label="largest loss first")
        page.get_by_role("button", name="Show").click()
        first = page.locator(".results a").first
        assert first.inner_text() == HOSTILE
        first.click()
        assert page.locator("h1").inner_text() == HOSTILE
        assert page.evaluate("[...document.images].every(each => each.naturalWidth == 16)")
        for key, row in {"ArrowLeft": 4, "ArrowRight": 1, "j": 0, "k": 1}.items():
            page.keyboard.press(key)
            page.wait_for_url(f"**row={row}")
        page.keyboard.press("Escape")
        page.wait_for_url("**page=1")
        page.close()
        for address, views in {
            f"{server.url}?order=largest_loss": VIEWS if full else LIGHT_PHONE,
            f"{server.url}slice?row=1": VIEWS if full else DARK_PHONE,
        }.items():
            faults = faults_of_address(browser, address, views=views, origin=server.url)
            assert faults == []

"""`headct browse SHARDS`: a local web server to look through slices, and a model's mistakes."""

import errno
import math
import secrets
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from hmac import compare_digest
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

import headct
from headct.commands import run_program
from headct.declarations import (
    Declared,
    DefaultText,
    LocalPath,
    Location,
    parse_flags,
    with_flags,
)
from headct.errors import HeadctError, UsageError
from headct.filters import (
    ABSENT,
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    HIGHEST,
    LARGEST_LOSS,
    LOWEST,
    PRESENT,
    Choice,
    Slices,
    read_predictions,
)
from headct.layout import ID_COLUMNS, IMAGE_ID, LABEL_PREFIX, POSITION
from headct.page import page_templates
from headct.printable import hide_secrets, quoted, show_line
from headct.reader import Shards
from headct.windows import PRESETS, Window, apply_windows

_HOST = "127.0.0.1"
_LOOPBACK = {_HOST, "localhost", "[::1]"}  # names in URLs, also at the end of an SSH tunnel
_PORTS = range(8470, 8490)
_PER_PAGE = 24
_HU_CHANNELS = ("brain", "subdural", "bone")  # side by side
_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'self'; "
    "form-action 'self'; base-uri 'none'"
)
_HEADERS = {
    "Content-Security-Policy": f"{_POLICY}; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",  # images of patients
}
_ABOUT = ("split", *ID_COLUMNS, POSITION, "row_spacing", "source")  # columns to see first
_FINDINGS = {
    PRESENT: "present",
    ABSENT: "absent",
    FALSE_NEGATIVE: "false negative",
    FALSE_POSITIVE: "false positive",
}
_ORDERS = {
    LARGEST_LOSS: "largest loss first",
    HIGHEST: "highest probability first",
    LOWEST: "lowest probability first",
}
_KEYS = b"""\
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.closest("input, select, .scroll")) return;
  const link = [...document.querySelectorAll("a[data-key]")].find(a => a.dataset.key === event.key);
  if (link) { event.preventDefault(); link.click(); }
});
"""

Answer = tuple[str, bytes]  # content type and content


class BrowseOptions(Declared):
    """Look through the slices of a shard directory in a web browser: browse SHARDS.

    The server answers this machine alone. Its pages filter by label, split, patient and series, and
    with a run by the mistakes of its model. Ctrl+C ends it.
    """

    shards: Location
    """shard directory; local or a URL"""
    run: Annotated[LocalPath | None, DefaultText("none")] = None
    """run or cross-validation with predictions for these slices, or a .parquet table of them"""
    port: Annotated[
        int | None, Field(ge=1, le=65535), DefaultText(f"{_PORTS[0]}, or the next free one")
    ] = None
    """port of the server"""
    open: bool = False
    """open the page in a web browser"""


def main(argv: Sequence[str], program: str = "python -m headct.browse") -> int:
    """Serve until Ctrl+C; return the exit code: 0 ended, 2 wrong option, 5 storage failed."""
    return run_program("browse", lambda: _browse(argv, program), resumes=False)


def options_of(_command: str) -> list[type[Declared]]:
    """Return the classes of the command's options."""
    return [BrowseOptions]


def _browse(argv: Sequence[str], program: str) -> None:
    given = parse_flags(BrowseOptions, with_flags(argv, "--shards"), program)
    predictions = None if given.run is None else read_predictions(given.run)
    shards = headct.open(given.shards)
    pages = Pages(shards, Slices(shards, predictions), given.run)
    with bind(pages, given.port) as server:
        print(f"{pages.summary}\nbrowse: {server.url} (Ctrl+C ends it)", flush=True)
        if given.open:
            webbrowser.open(server.url)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
        print("browse: ended")


# ---- Pages


class Pages:
    """The pages about a shard directory, and its images, by queries.

    Args:
        shards: all examples of the directory.
        slices: the same slices, with probabilities.
        run: source of the probabilities, for the heading.
    """

    def __init__(self, shards: Shards, slices: Slices, run: Path | None = None) -> None:
        self._shards = shards
        self._slices = slices
        self._run = run
        self._splits = shards.splits
        hounsfield = shards.manifest.image.is_hounsfield
        self._windows = [Window(name, *PRESETS[name]) for name in PRESETS] if hounsfield else []
        self.channels = [each.name for each in self._windows or shards.windows]
        if not self.channels:  # shards of other software
            self.channels = [str(number) for number in range(shards.image_shape[-1])]
        self._side_by_side = [*range(len(self.channels))]
        if hounsfield:
            self._side_by_side = [self.channels.index(name) for name in _HU_CHANNELS]
        self._findings, self._orders = _FINDINGS, _ORDERS
        if not slices.predicted:
            known = (PRESENT, ABSENT) if slices.names else ()
            self._findings = {name: _FINDINGS[name] for name in known}
            self._orders = {}
        template = page_templates(Path(__file__).parent).get_template("browse.html.jinja")
        self._render = template.render
        # The last results, so that paging does not filter again; the last images, for all channels.
        self._rows = lru_cache(16)(slices.rows)
        self._image = lru_cache(64)(self._read_image)

    @property
    def summary(self) -> str:
        """One line about the slices."""
        text = f"{len(self._shards):,} slices of {hide_secrets(self._shards.location)}"
        if self._run:
            text += f"; probabilities of {self._slices.predicted:,} by {self._run}"
        return show_line(text)

    def answer(self, name: str, query: Mapping[str, str]) -> Answer | None:
        """Return a page or an image; None if there is none of this name.

        Raises:
            UsageError: a value of the query is invalid, or a shard is damaged.
            StorageError: the store of the shards fails.
        """
        if name == "keys.js":
            return "text/javascript; charset=utf-8", _KEYS
        if name == "image":
            return "image/png", self._png(self._row(query), self._channel(query) or 0)
        if name == "slice":
            return self._page(**self._slice(query))
        return None if name else self._page(**self._results(query))

    def problem(self, text: str) -> Answer:
        """Return a page with an error."""
        return self._page(problem=text, title="Not shown")

    def _page(self, **values: Any) -> Answer:
        """Fill the template; a page has a list of results, one slice or a problem."""
        empty: dict[str, Any] = {"results": None, "images": None, "problem": "", "ids": {}}
        common = {"policy": _POLICY, "summary": self.summary, "channels": self.channels}
        page = self._render(**empty | common | values)
        return "text/html; charset=utf-8", page.encode()

    # ---- Queries

    def _choice(self, query: Mapping[str, str]) -> Choice:
        """Return the filters and the order of a query."""
        known: dict[str, Sequence[str]] = {
            "split": [*self._splits],
            "label": self._slices.names,
            "finding": [*self._findings],
            "order": [*self._orders],
        }
        for name, values in known.items():
            if (given := query.get(name, "")) and given not in values:
                raise UsageError(f"{name}={quoted(given)}: want one of {', '.join(values)}")
        threshold = _number(query, "threshold", 0, 1, Choice.threshold)
        texts = {name: query.get(name, "") for name in (*known, "id")}
        return Choice(**texts, threshold=threshold)

    def _row(self, query: Mapping[str, str]) -> int:
        return int(_number(query, "row", 0, len(self._shards) - 1, -1))

    def _channel(self, query: Mapping[str, str]) -> int | None:
        """Return a channel's number; None for several side by side."""
        if not query.get("channel"):
            return None
        return int(_number(query, "channel", 0, len(self.channels) - 1, 0))

    def _link(self, name: str, choice: Choice, **values: object) -> str:
        """Return a relative link that keeps the choice; without its defaults."""
        defaults = asdict(Choice())
        chosen = {key: value for key, value in asdict(choice).items() if value != defaults[key]}
        given = {key: value for key, value in values.items() if value is not None}
        return f"{name or '.'}?{urlencode(chosen | given)}"

    # ---- Contents of the template

    def _results(self, query: Mapping[str, str]) -> dict[str, Any]:
        choice, channel = self._choice(query), self._channel(query)
        rows = self._rows(choice)
        pages = max(math.ceil(len(rows) / _PER_PAGE), 1)
        page = int(_number(query, "page", 1, pages, 1))
        first = (page - 1) * _PER_PAGE

        def to_page(number: int) -> str | None:
            is_there = 1 <= number <= pages
            return self._link("", choice, channel=channel, page=number) if is_there else None

        on_page = [*map(int, rows[first:][:_PER_PAGE])]
        shown = [
            self._result(row, record, choice, channel)
            for row, record in zip(on_page, self._records(on_page), strict=True)
        ]
        return {
            "title": f"{len(rows):,} slice{'s' if len(rows) != 1 else ''}",
            "results": shown,
            "choice": choice,
            "channel": channel,
            "splits": self._splits,
            "labels": self._slices.names,
            "findings": self._findings,
            "orders": self._orders,
            "range": f"{first + 1:,} to {first + len(shown):,} of {len(rows):,}",
            "page": (page, pages),
            "previous": to_page(page - 1),
            "next": to_page(page + 1),
        }

    def _result(
        self, row: int, record: Mapping[str, Any], choice: Choice, channel: int | None
    ) -> dict[str, Any]:
        """Return a slice of the list."""
        names = [choice.label] if choice.label else self._slices.names
        values = [each for each in self._labels(row) if each["name"] in names]
        return {
            "id": record[IMAGE_ID],
            "split": record["split"],
            "link": self._link("slice", choice, row=row, channel=channel),
            "image": f"image?row={row}&channel={channel or 0}",
            "labels": values,
            "present": [each["name"] for each in self._labels(row) if each["label"] == 1],
        }

    def _slice(self, query: Mapping[str, str]) -> dict[str, Any]:
        choice, channel, row = self._choice(query), self._channel(query), self._row(query)
        results, series = self._rows(choice), self._slices.series(row)
        (record,) = self._records([row])

        def beside(rows: npt.NDArray[np.int64]) -> tuple[str | None, str | None, int, int]:
            """Return links to the previous and next slice, the slice's number and the count."""
            number = int(np.argmax(rows == row)) + 1 if row in rows else 0  # from 1
            before, after = (
                self._link("slice", choice, row=int(rows[at]), channel=channel)
                if number and 0 <= at < len(rows)
                else None
                for at in (number - 2, number)
            )
            return before, after, number, len(rows)

        numbers = self._side_by_side if channel is None else [channel]
        in_results = beside(results)
        page = max(in_results[2] - 1, 0) // _PER_PAGE + 1
        return {
            "title": record[IMAGE_ID],
            "about": {name: record[name] for name in _ABOUT if name in record},
            "more": {
                name: value
                for name, value in record.items()
                if name not in _ABOUT and not name.startswith(LABEL_PREFIX)
            },
            "images": [(self.channels[n], f"image?row={row}&channel={n}") for n in numbers],
            "shape": self._shards.image_shape,
            "labels": self._labels(row),
            "has_probabilities": bool(self._slices.predicted),
            "in_series": beside(series),
            "in_results": in_results,
            "back": self._link("", choice, channel=channel, page=page),
            "ids": {
                name: self._link("", Choice(id=record[name]), channel=channel)
                for name in ID_COLUMNS
            },
            "channel": channel,
            "channel_links": [
                (name, self._link("slice", choice, row=row, channel=number), number)
                for name, number in [
                    ("side by side", None),
                    *((name, number) for number, name in enumerate(self.channels)),
                ]
            ],
        }

    def _records(self, rows: Sequence[int]) -> list[dict[Any, Any]]:
        """Return rows of the index."""
        records: list[dict[Any, Any]] = self._shards.select(rows).rows.to_dict("records")
        return records

    def _labels(self, row: int) -> list[dict[str, Any]]:
        """Return name, label, probability and loss of each label of a slice."""
        slices = self._slices
        values = (slices.labels[row], slices.probabilities[row], slices.losses[row])
        return [
            dict(zip(("name", "label", "probability", "loss"), each, strict=True))
            for each in zip(slices.names, *(column.tolist() for column in values), strict=True)
        ]

    # ---- Images

    def _read_image(self, row: int) -> npt.NDArray[Any]:
        return np.asarray(self._shards[row]["image"])

    def _png(self, row: int, channel: int) -> bytes:
        """Return a channel as PNG; Hounsfield units by a window."""
        image = self._image(row)
        if self._windows:
            hounsfield = image[..., 0].astype(np.float64) + self._shards.hu_offset
            image, channel = apply_windows(hounsfield, [self._windows[channel]]), 0
        return bytes(cv2.imencode(".png", np.ascontiguousarray(image[..., channel]))[1])


def _number(
    query: Mapping[str, str], name: str, least: float, most: float, default: float
) -> float:
    """Return a number of a query."""
    text = query.get(name, "")
    with suppress(ValueError):
        value = float(text) if text else default
        if least <= value <= most and (name == "threshold" or value == int(value)):
            return value
    raise UsageError(f"{name}={quoted(text)}: want a number from {least:g} to {most:,}")


# ---- Server


class Server(ThreadingHTTPServer):
    """A server that only this machine reaches, and only who knows its URL.

    Other users of the machine reach its loopback address, too: the URL begins with a secret.
    """

    daemon_threads = True

    def __init__(self, port: int, pages: Pages) -> None:
        self.pages = pages
        self.secret = secrets.token_urlsafe(16)
        super().__init__((_HOST, port), _Handler)

    @property
    def url(self) -> str:
        """Address of the first page."""
        return f"http://{_HOST}:{self.server_port}/{self.secret}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that the browser closed."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def bind(pages: Pages, port: int | None = None) -> Server:
    """Return a server at a port, by default the first free one of a range.

    Raises:
        UsageError: the port is taken, or may not be used.
    """
    for candidate in [port] if port else [*_PORTS, 0]:
        try:
            return Server(candidate, pages)
        except OSError as error:
            if port or error.errno != errno.EADDRINUSE:
                what = f"--port {candidate}: {error.strerror}"
                raise UsageError(f"{what}; without --port a free one is chosen") from None
    raise AssertionError  # port 0 is any free one


class _Handler(BaseHTTPRequestHandler):
    """Answers GET requests; a URL's path is compared with names and never reaches a file system."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # of an idle connection, seconds

    def do_GET(self) -> None:
        """Answer one request."""
        host = self.headers.get("Host", "").rpartition(":")
        if (host[0] or host[2]) not in _LOOPBACK:  # another name leads here: DNS rebinding
            return self._send(HTTPStatus.MISDIRECTED_REQUEST, ("text/plain", b"unknown host\n"))
        url = urlsplit(self.path)
        secret, _, name = url.path.removeprefix("/").partition("/")
        if not compare_digest(secret.encode(), self.server.secret.encode()):
            return self._send(HTTPStatus.NOT_FOUND, ("text/plain", b"see the printed URL\n"))
        pages = self.server.pages
        try:
            query = dict(parse_qsl(url.query, max_num_fields=20))
            answer = pages.answer(name, query)
        except (UsageError, ValueError) as error:
            return self._send(HTTPStatus.BAD_REQUEST, pages.problem(show_line(error)))
        except HeadctError as error:
            return self._send(HTTPStatus.BAD_GATEWAY, pages.problem(show_line(error)))
        if answer is None:
            return self._send(HTTPStatus.NOT_FOUND, pages.problem("There is no such page."))
        return self._send(HTTPStatus.OK, answer)

    def _send(self, status: HTTPStatus, answer: Answer) -> None:
        kind, content = answer
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def version_string(self) -> str:
        """Return the Server header, without the versions of Python and libraries."""
        return "headct"

    def log_message(self, *_: Any) -> None:
        """Log nothing: URLs contain ids."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

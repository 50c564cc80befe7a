"""A server of S3's protocol that answers as a test says, also in ways that emulators do not."""

import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from xml.sax.saxutils import escape

import pytest

from headct.stores.buckets import find_bucket
from headct.stores.urls import find_input_store, find_store
from tests.headct.object_stores import S3_BUCKET, S3_CREDENTIALS
from tests.headct.ports import serving

LISTING = "the listing"  # in place of a key
_FIELDS = (
    "<LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>&quot;e&quot;</ETag><Size>{}</Size>"
)


@dataclass(frozen=True)
class Answer:
    """What a request is answered with."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def refusal(status: int, code: str, message: str = "") -> Answer:
    """An answer of S3 that is no success."""
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, text.encode())


@dataclass
class ScriptedStore:
    """The bucket `data`.

    Attributes:
        objects: by their keys, which may be any text.
        answers: to requests for some keys, whatever the objects are.
        page: objects that a listing's answer holds.
        headers: of each request, in the order of their arrival.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    page: int = 1000
    headers: list[Any] = field(default_factory=list)

    def answer(self, target: str, span: str | None) -> Answer:
        """The answer to a request for a path with a range."""
        path, _, query = target.partition("?")
        asked = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        key = LISTING if "list-type" in asked else urllib.parse.unquote(path)[len("/data/") :]
        if key in self.answers:
            return self.answers[key]
        if key == LISTING:
            return self._listing(asked)
        if key not in self.objects:
            return refusal(404, "NoSuchKey")
        body = self.objects[key]
        if span is None:
            return Answer(200, body)
        first, last = map(int, span.removeprefix("bytes=").split("-"))
        where = f"bytes {first}-{min(last, len(body) - 1)}/{len(body)}"
        return Answer(206, body[first : last + 1], {"Content-Range": where})

    def _listing(self, asked: dict[str, str]) -> Answer:
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter")
        behind = asked.get("continuation-token") or asked.get("start-after", "")
        found = [key for key in self.objects if key.startswith(prefix) and key > behind]
        found.sort(key=str.encode)
        text = "<ListBucketResult>"
        show = escape
        if asked.get("encoding-type") == "url":
            show = urllib.parse.quote
            text += "<EncodingType>url</EncodingType>"
        if len(found) > self.page:
            text += f"<NextContinuationToken>{escape(found[self.page - 1])}</NextContinuationToken>"
        text += f"<IsTruncated>{str(len(found) > self.page).lower()}</IsTruncated>"
        folders = set()
        for key in found[: self.page]:
            name, slash, _ = key.removeprefix(prefix).partition(delimiter or "\0")
            if slash:
                folders.add(f"{prefix}{name}{slash}")
            else:
                size = len(self.objects[key])
                text += f"<Contents><Key>{show(key)}</Key>{_FIELDS.format(size)}</Contents>"
        for folder in sorted(folders):
            text += f"<CommonPrefixes><Prefix>{show(folder)}</Prefix></CommonPrefixes>"
        return Answer(200, f"{text}</ListBucketResult>".encode())


@contextmanager
def serve(store: ScriptedStore) -> Iterator[str]:
    """Serves a bucket as `s3://data` to this process while the block lasts; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # one packet an answer

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            store.headers.append(self.headers)
            answer = store.answer(self.path, self.headers.get("Range"))
            self.send_response(answer.status)
            dated = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT", "ETag": '"e"'}
            length = {"Content-Length": str(len(answer.body))}
            for name, value in (dated | length | answer.headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(answer.body)

        do_HEAD = do_GET  # noqa: N815 # http.server's name

        def do_PUT(self) -> None:
            key = urllib.parse.unquote(self.path.partition("?")[0])[len("/data/") :]
            store.objects[key] = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("ETag", '"e"')
            self.send_header("Content-Length", "0")
            self.end_headers()

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as address, s3_at(address):
        yield address


@contextmanager
def s3_at(address: str) -> Iterator[None]:
    """Have this process find S3 at an address while the block lasts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (S3_CREDENTIALS | {"AWS_ENDPOINT_URL": address}).items():
            patch.setenv(name, value)
        forget_stores()
        try:
            yield
        finally:
            forget_stores()


def forget_stores() -> None:
    """Have this process look at its environment again."""
    for find in (find_input_store, find_store, find_bucket):
        find.cache_clear()


assert S3_BUCKET == "data"

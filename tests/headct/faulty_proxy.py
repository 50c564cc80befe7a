"""A proxy between the pipeline and an object store: it counts requests, and fails some of them."""

import asyncio
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: nothing that is still to be sent is sent
_ERROR = "<Error><Code>{code}</Code><Message>made by a test</Message></Error>"


class Fault(StrEnum):
    """What becomes of a request.

    Attributes:
        UNAVAILABLE: answered with 503, as a store does that is asked too much.
        DENIED: answered with 403.
        STALL: done; half of the answer is sent, then nothing more.
        CUT: done; half of the answer is sent, then the connection is closed.
        RESET: not done; the connection is reset.
    """

    UNAVAILABLE = "503"
    DENIED = "403"
    STALL = "stall"
    CUT = "cut"
    RESET = "reset"


_ANSWERED = {
    Fault.UNAVAILABLE: ("503 Service Unavailable", "SlowDown"),
    Fault.DENIED: ("403 Forbidden", "AccessDenied"),
}


@dataclass(frozen=True)
class Request:
    """A request, as far as rules look at it.

    Attributes:
        method: in capitals.
        path: of the object, decoded, with the bucket.
        query: as it was sent.
        start: first byte of the range asked for, or None for a whole object.
        end: last byte of it.
    """

    method: str
    path: str
    query: str
    start: int | None
    end: int | None

    @classmethod
    def parse(cls, head: str) -> Self:
        """From the request line and the header lines."""
        method, target, _ = head.partition("\r\n")[0].split(" ")
        path, _, query = target.partition("?")
        span = re.search(r"^range: *bytes=(\d+)-(\d+)\r$", head, re.MULTILINE | re.IGNORECASE)
        start, end = (int(span[1]), int(span[2])) if span else (None, None)
        return cls(method, urllib.parse.unquote(path), query, start, end)


Stage = Callable[[Request], bool]


@dataclass
class Rule:
    """Which requests fail, and how.

    Attributes:
        stage: tells the requests that may fail.
        fault: what becomes of them.
        first: how many of the same request fail before one is answered; None for all.
        seconds: since the first that failed, after which all are answered; None for never.
        every: 5 for one in five of them, the first of all among them.
        after: a stage before whose first request none fails; None for the first of all.
        struck: how many have failed.
    """

    stage: Stage
    fault: Fault
    first: int | None = None
    seconds: float | None = None
    every: int = 1
    after: Stage | None = None
    struck: int = 0
    _count: int = 0
    _seen: Counter[Request] = field(default_factory=Counter)
    _rests: set[tuple[str, int]] = field(default_factory=set)
    _began: float | None = None

    def strikes(self, request: Request) -> bool:
        """Whether a request is to fail; counts it."""
        if self.after is not None:
            if self.after(request):
                self.after = None
            return False
        if not self._may_fail(request):
            return False
        self._count += 1
        strikes = self._count % self.every == 1 % self.every
        self.struck += strikes
        return strikes

    def _may_fail(self, request: Request) -> bool:
        if not self.stage(request) and (request.path, request.start) not in self._rests:
            return False
        self._began = self._began or time.monotonic()
        self._seen[request] += 1
        if self.first is not None and self._seen[request] > self.first:
            return False
        return self.seconds is None or time.monotonic() - self._began <= self.seconds

    def expect_rest(self, request: Request, sent: int) -> None:
        """Fail the request for the rest of an answer, too, unless only the first are to fail."""
        if self.first is None:
            self._rests.add((request.path, (request.start or 0) + sent))


@dataclass
class Traffic:
    """What went through the proxy.

    Attributes:
        requests: in the order of their arrival.
        sent: bytes of the answers' bodies, by request.
        peak: how many requests were in flight at once, at most.
    """

    requests: list[Request] = field(default_factory=list)
    sent: Counter[Request] = field(default_factory=Counter)
    peak: int = 0

    def of(self, stage: Stage) -> tuple[int, int]:
        """The requests of a stage, and the bytes of their answers."""
        requests = [request for request in self.requests if stage(request)]
        return len(requests), sum(self.sent[request] for request in set(requests))


def no_latency(request: Request) -> float:
    return 0.0


class FaultyProxy:
    """Passes requests on to a server, from a thread of its own, while a `with` block lasts.

    Attributes:
        port: it listens at, on 127.0.0.1; always the same.
        latency: seconds that a request is held back.
        traffic: since it was last set.
    """

    def __init__(self) -> None:
        self.port = 0
        self.latency: Callable[[Request], float] = no_latency
        self.traffic = Traffic()
        self._upstream = 0
        self._change_request: Callable[[str], str] = lambda head: head
        self._change_answer: Callable[[str, bytes], bytes] = lambda head, answer: answer
        self._rule: Rule | None = None
        self._action: tuple[Stage, Callable[[], None]] | None = None
        self._in_flight = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def address(self) -> str:
        """What clients are told."""
        return f"http://127.0.0.1:{self.port}"

    def pass_on_to(
        self,
        port: int,
        change_request: Callable[[str], str] | None = None,
        change_answer: Callable[[str, bytes], bytes] | None = None,
    ) -> None:
        """Set the server.

        Args:
            port: it listens at, on 127.0.0.1.
            change_request: makes of the head of a request one that the server understands.
            change_answer: makes of the head of a request and the answer one that clients do.
        """
        self._upstream = port
        self._change_request = change_request or self._change_request
        self._change_answer = change_answer or self._change_answer

    def __enter__(self) -> Self:
        self._thread.start()
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @contextmanager
    def failing(self, rule: Rule) -> Iterator[Rule]:
        """Fail requests while the block lasts."""
        self._rule = rule
        try:
            yield rule
        finally:
            self._rule = None

    @contextmanager
    def before(self, stage: Stage, action: Callable[[], None]) -> Iterator[None]:
        """Do something before the first request of a stage is passed on; no other is meanwhile."""
        self._action = stage, action
        try:
            yield
        finally:
            assert self._action is None, "no request of the stage came"

    def listen(self) -> None:
        """Accept connections."""
        self._run(self._listen())

    def refuse(self) -> None:
        """Break all connections and accept no more."""
        self._run(self._refuse())

    def go_down(self, seconds: float | None = None) -> None:
        """Refuse connections for a while, or until `listen`; to be called as an action."""

        async def go_down() -> None:
            await self._refuse()
            if seconds is not None:
                await asyncio.sleep(seconds)
                await self._listen()

        self._down = self._loop.create_task(go_down())

    def _run(self, coroutine: "asyncio.coroutines.Coroutine[object, object, None]") -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._serve(reader, writer):
                    pass
        except asyncio.CancelledError:
            _reset(writer)
        finally:
            self._connections.discard(connection)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer the next request; whether the connection is still of use."""
        head, body = await _read_message(reader)
        request = Request.parse(head)
        self._in_flight += 1
        self.traffic.peak = max(self.traffic.peak, self._in_flight)
        self.traffic.requests.append(request)
        try:
            self._act(request)
            await asyncio.sleep(self.latency(request))
            rule = self._rule
            if rule is None or not rule.strikes(request):
                await self._send(request, await self._ask(head, body), writer)
                return True
            if rule.fault in _ANSWERED:
                await self._send(request, _error(request, *_ANSWERED[rule.fault]), writer)
                return True
            if rule.fault is Fault.RESET:
                _reset(writer)
                return False
            sent = await self._send(request, _half(await self._ask(head, body)), writer)
            rule.expect_rest(request, sent)
            if rule.fault is Fault.STALL:
                await reader.read()  # until the client gives up
            return False
        finally:
            self._in_flight -= 1

    def _act(self, request: Request) -> None:
        if self._action and self._action[0](request):
            action = self._action[1]
            self._action = None
            action()

    async def _send(self, request: Request, answer: bytes, writer: asyncio.StreamWriter) -> int:
        """Send all or part of an answer; returns how many bytes of its body."""
        writer.write(answer)
        await writer.drain()
        sent = len(answer.partition(b"\r\n\r\n")[2])
        self.traffic.sent[request] += sent
        return sent

    async def _ask(self, head: str, body: bytes) -> bytes:
        """The server's whole answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        try:
            writer.write(_set_connection(self._change_request(head), "close").encode() + body)
            answer = await reader.read()
        finally:
            writer.close()
        head_of_answer, _, content = self._change_answer(head, answer).partition(b"\r\n\r\n")
        return (
            _set_connection(head_of_answer.decode() + "\r\n\r\n", "keep-alive").encode() + content
        )


async def _read_message(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = re.search(r"^content-length: *(\d+)\r$", head, re.MULTILINE | re.IGNORECASE)
    return head, await reader.readexactly(int(length[1]) if length else 0)


def _set_connection(head: str, value: str) -> str:
    lines = [line for line in head.split("\r\n") if not line.lower().startswith("connection:")]
    return "\r\n".join([*lines[:-2], f"Connection: {value}", "", ""])


def _error(request: Request, status: str, code: str) -> bytes:
    content = "" if request.method == "HEAD" else _ERROR.format(code=code)
    length = f"Content-Length: {len(content)}\r\n" if content else ""
    return f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\n{length}\r\n{content}".encode()


def _half(answer: bytes) -> bytes:
    """An answer with half of its body; of one without, half of its head."""
    head, _, content = answer.partition(b"\r\n\r\n")
    return answer[: len(answer) - (len(content) + 1) // 2] if content else head[: len(head) // 2]


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()

import logging
import time
from collections.abc import Callable

import pytest

from headct.errors import StoreError
from headct.stores.protocol import (
    DEFAULT_PATIENCE,
    Patience,
    Transient,
    decode_source,
    encode_source,
    show_source,
    why_unusable,
)


class Clock:
    """Time that passes only while somebody sleeps.

    Attributes:
        now: seconds.
        waits: how long each sleep was.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


def failing(times: float, error: Exception) -> Callable[[], int]:
    """Fails some times, and then tells how often it was called."""
    calls = [0]

    def attempt() -> int:
        calls[0] += 1
        if calls[0] <= times:
            raise error
        return calls[0]

    return attempt


def test_a_request_that_succeeds_is_made_once(clock: Clock) -> None:
    assert Patience("store", 600.0).request(failing(0, Transient("fails"))) == 1
    assert clock.waits == []


def test_a_failure_that_passes_is_waited_for(clock: Clock) -> None:
    assert Patience("store", 600.0).request(failing(2, Transient("500 Oops"))) == 3
    assert len(clock.waits) == 1  # the second attempt follows the first at once


def test_a_failure_that_lasts_is_given_up_in_time(clock: Clock) -> None:
    with pytest.raises(StoreError) as given_up:
        Patience("s3://bucket", DEFAULT_PATIENCE).request(failing(1e9, Transient("500 Oops")))
    assert (
        str(given_up.value)
        == "s3://bucket: no answer for 600 s (500 Oops); the same command resumes"
    )
    assert sum(clock.waits) == pytest.approx(DEFAULT_PATIENCE, abs=15)


def test_waits_grow_up_to_a_quarter_of_a_minute(clock: Clock) -> None:
    patience = Patience("store", DEFAULT_PATIENCE)
    for _ in range(20):
        with pytest.raises(StoreError):
            patience.request(failing(1e9, Transient("fails")))
    assert 14 < max(clock.waits) <= 15
    assert len(clock.waits) < 20 * 200
    assert len(set(clock.waits)) > len(clock.waits) / 2  # many workers do not come back at once


def test_the_first_waits_are_of_a_quarter_second_and_its_doubles_at_most(clock: Clock) -> None:
    longest = [0.0] * 3
    for _ in range(200):
        clock.waits.clear()
        Patience("store", 600.0).request(failing(4, Transient("fails")))
        longest = [max(both) for both in zip(longest, clock.waits, strict=True)]
    assert 0.2 < longest[0] <= 0.25
    assert 0.4 < longest[1] <= 0.5
    assert 0.8 < longest[2] <= 1.0


@pytest.mark.parametrize("transient", [0, 1, 3])
def test_any_other_failure_is_raised_as_it_is(clock: Clock, transient: int) -> None:
    calls = [0]

    def attempt() -> None:
        calls[0] += 1
        raise Transient("") if calls[0] <= transient else FileNotFoundError(2, "No such object")

    with pytest.raises(FileNotFoundError, match="No such object"):
        Patience("store", 600.0).request(attempt)
    assert calls == [transient + 1]


def test_a_store_that_fails_is_named_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    patience = Patience("gs://bucket", 600.0)
    for _ in range(5):
        patience.request(failing(2, Transient("503 Slow down")))
    assert clock.now < 1000 + 30
    assert caplog.messages == ["gs://bucket: 503 Slow down; trying again for up to 600 s."]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_store_is_named_again_after_half_a_minute(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    patience = Patience("gs://bucket", 600.0)
    for now, told in [(1000, 1), (1029, 1), (1030, 2), (1059, 2), (1060, 3)]:
        clock.now = now
        patience.request(failing(1, Transient("503 Slow down")))
        assert len(caplog.messages) == told


def test_a_store_that_goes_on_failing_is_named_again(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StoreError):
        Patience("gs://bucket", 600.0).request(failing(1e9, Transient("503 Slow down")))
    assert 10 <= len(caplog.messages) <= 21


def test_a_second_of_patience_is_a_second() -> None:
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"^store: no answer for 1 s"):
        Patience("store", 1.0).request(failing(1e9, Transient("time-out")))
    assert 1 <= time.monotonic() - began < 10


@pytest.mark.parametrize(("remedy", "seconds"), [("", 600.0), ("check the endpoint", 20.0)])
@pytest.mark.parametrize("early", [0.0, 0.5])
def test_patience_ends_to_the_second(
    clock: Clock, remedy: str, seconds: float, early: float
) -> None:
    lasting = iter([0, seconds - early, 600])  # of each attempt
    asked = []

    def attempt() -> None:
        clock.now += next(lasting)
        asked.append(clock.now)
        raise Transient("", remedy)

    with pytest.raises(StoreError):
        Patience("store", 600.0).request(attempt)
    assert len(asked) == (3 if early else 2)


def test_an_answer_of_another_service_is_given_up_soon(clock: Clock) -> None:
    with pytest.raises(StoreError) as given_up:
        Patience("s3://bucket", DEFAULT_PATIENCE).request(
            failing(1e9, Transient("a web page", "check the endpoint"))
        )
    assert str(given_up.value) == "s3://bucket: a web page; check the endpoint"
    assert sum(clock.waits) < 20 + 15


def test_paths_that_are_no_utf_8_are_stored_and_shown() -> None:
    assert encode_source("ä\udcff") == b"\xc3\xa4\xff"
    assert decode_source(b"\xc3\xa4\xff") == "ä\udcff"
    assert show_source("ä\udcff\n") == "ä\\xff\\n"


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("a/b.dcm", ""),
        ("a/..b/.c/d.", ""),
        ("a\x1fb", "its key has a control character"),
        ("a\x7fb", "its key has a control character"),
        ("/a", "its key begins with a slash"),
        ("a/", "its key ends with a slash"),
        ("a//b", "its key has '//'"),
        ("a/./b", "its key has the part '.' or '..'"),
        ("..", "its key has the part '.' or '..'"),
    ],
)
def test_keys_that_obstore_cannot_request(key: str, why: str) -> None:
    assert why_unusable(key) == why

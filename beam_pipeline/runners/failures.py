"""Errors of runners: the cause on one line, and detection of lost workers and services."""

import re
from typing import Any

_LENGTH = 300
_PYTHON_TRACEBACK = "Traceback (most recent call last):"
_BEAM_PREFIX = re.compile(r"Pipeline \S+ failed in state [A-Z]+: ")
# A stack frame of Java or Scala; Spark prints frames without `at`.
_FRAME = re.compile(
    r"(at )?[\w.$<>/@-]+\(([\w$]+\.\w+:\d+|Native Method|Unknown Source|.*\.java)\)"
)
_NOISE = re.compile(r"Driver stacktrace:|\.\.\. \d+ more|The currently active SparkContext.*")
_CAUSED_BY = "Caused by: "
# Messages of Beam's runners, Flink and Spark about a lost worker.
_LOST_WORKER = re.compile(
    r"StatusRuntimeException|client cancelled|Multiplexer hanging up|Socket closed|Stream removed"
    r"|Connection (refused|reset|unexpectedly closed)|Broken pipe|TaskManager .*(lost|timed out)"
    r"|ExecutorLostFailure|executor .* (lost|exited)|disassociated|Worker .*(lost|exited|died)"
)


def cause(error: BaseException) -> str:
    """Return the line with the cause, from a worker's traceback or Java's exceptions."""
    text = _BEAM_PREFIX.sub("", _text(error), count=1)
    if _PYTHON_TRACEBACK in text:
        line = _python_cause(text.rpartition(_PYTHON_TRACEBACK)[2])
    else:
        line = _java_cause(text)
    if line == "unknown error":  # Beam's message for a job without an error message
        line = "it gives no reason: look at the cluster's logs"
    line = line or type(error).__name__
    return line if len(line) <= _LENGTH else f"{line[:_LENGTH]}..."


def lost_worker(error: BaseException) -> bool:
    """Return whether an error reports a lost worker, rather than a failed step."""
    text = _text(error)
    return _PYTHON_TRACEBACK not in text and bool(_LOST_WORKER.search(text))


def lost_service(error: BaseException) -> bool:
    """Return whether the job service was lost; the service reports a job's state."""
    import grpc

    if not isinstance(error, grpc.RpcError):
        return False
    gone = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    return error.code() in gone or bool(_LOST_WORKER.search(_text(error)))


def _text(error: BaseException) -> str:
    details: Any = getattr(error, "details", None)  # gRPC's errors have details
    return (details() if callable(details) else None) or str(error)


def _python_cause(traceback: str) -> str:
    """Return the first line after the indented stack frames."""
    lines = [line for line in traceback.splitlines() if line.strip()]
    return next((line.strip() for line in lines if not line[0].isspace()), lines[-1].strip())


def _java_cause(text: str) -> str:
    """Return the message of an exception, and of its last cause."""
    lines = [line.strip() for line in text.splitlines()]
    messages = [
        line for line in lines if line and not (_FRAME.fullmatch(line) or _NOISE.fullmatch(line))
    ]
    if not messages:
        return ""
    causes = [line.removeprefix(_CAUSED_BY) for line in messages if line.startswith(_CAUSED_BY)]
    first = messages[0].removeprefix(_CAUSED_BY)
    return first if not causes or causes[-1] in first else f"{first}; caused by {causes[-1]}"

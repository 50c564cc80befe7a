"""What a runner's error says, in one line, and whether starting again helps."""

import re
from typing import Any

_LENGTH = 300
_PYTHON_TRACEBACK = "Traceback (most recent call last):"
_BEAM_PREFIX = re.compile(r"Pipeline \S+ failed in state [A-Z]+: ")
# A frame of Java or Scala; Spark prints them without `at`.
_FRAME = re.compile(
    r"(at )?[\w.$<>/@-]+\(([\w$]+\.\w+:\d+|Native Method|Unknown Source|.*\.java)\)"
)
_NOISE = re.compile(r"Driver stacktrace:|\.\.\. \d+ more|The currently active SparkContext.*")
_CAUSED_BY = "Caused by: "
# A worker that went away, in the words of Beam's runners, of Flink and of Spark.
_LOST_WORKER = re.compile(
    r"StatusRuntimeException|client cancelled|Multiplexer hanging up|Socket closed|Stream removed"
    r"|Connection (refused|reset|unexpectedly closed)|Broken pipe|TaskManager .*(lost|timed out)"
    r"|ExecutorLostFailure|executor .* (lost|exited)|disassociated|Worker .*(lost|exited|died)"
)


def cause(error: BaseException) -> str:
    """The line that says what went wrong: of a worker's traceback, else of Java's exceptions."""
    text = _BEAM_PREFIX.sub("", _text(error), count=1)
    if _PYTHON_TRACEBACK in text:
        found = _python_cause(text.rpartition(_PYTHON_TRACEBACK)[2])
    else:
        found = _java_cause(text)
    if found == "unknown error":  # Beam's word for a job that failed without a message
        found = "it gives no reason: look at the cluster's logs"
    found = found or type(error).__name__
    return found if len(found) <= _LENGTH else f"{found[:_LENGTH]}..."


def lost_worker(error: BaseException) -> bool:
    """Whether an error says that a worker went away, and not that a step failed."""
    text = _text(error)
    return _PYTHON_TRACEBACK not in text and bool(_LOST_WORKER.search(text))


def lost_service(error: BaseException) -> bool:
    """Whether the job service, which passes on what becomes of a job, went away."""
    import grpc

    if not isinstance(error, grpc.RpcError):
        return False
    gone = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    return error.code() in gone or bool(_LOST_WORKER.search(_text(error)))


def _text(error: BaseException) -> str:
    details: Any = getattr(error, "details", None)  # of gRPC's errors
    return (details() if callable(details) else None) or str(error)


def _python_cause(traceback: str) -> str:
    """The first line behind the frames, which are indented."""
    lines = [line for line in traceback.splitlines() if line.strip()]
    return next((line.strip() for line in lines if not line[0].isspace()), lines[-1].strip())


def _java_cause(text: str) -> str:
    """The message of an exception, and of its last cause."""
    lines = [line.strip() for line in text.splitlines()]
    said = [
        line for line in lines if line and not (_FRAME.fullmatch(line) or _NOISE.fullmatch(line))
    ]
    if not said:
        return ""
    causes = [line.removeprefix(_CAUSED_BY) for line in said if line.startswith(_CAUSED_BY)]
    first = said[0].removeprefix(_CAUSED_BY)
    return first if not causes or causes[-1] in first else f"{first}; caused by {causes[-1]}"

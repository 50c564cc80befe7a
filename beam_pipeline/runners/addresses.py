"""Addresses of clusters and job services: which forms an option takes, and whether one answers."""

import re
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from beam_pipeline.errors import RunnerError
from headct.errors import UsageError

_CONNECT_SECONDS = 5.0
_PORTS = {"http://": 80, "https://": 443}


@dataclass(frozen=True)
class _Form:
    """What an option takes.

    Attributes:
        here: values that stand for an engine on this machine.
        elsewhere: values that name no host.
        scheme: what an address begins with.
        several: whether an address may name several hosts, of which one leads.
        wanted: examples for a message.
    """

    scheme: str
    wanted: str
    here: str = r"(?!)"
    elsewhere: str = r"(?!)"
    several: bool = False


_HTTP = r"(?:https?://)?"
# https://spark.apache.org/docs/3.5.9/submitting-applications.html#master-urls
_SPARK_HERE = r"local(\[(\d+|\*)(\s*,\s*\d+)?\])?|local-cluster\[\s*\d+\s*,\s*\d+\s*,\s*\d+\s*\]"
_FORMS = {
    "job_endpoint": _Form("", "an address such as host:8099", here="embed"),
    "flink_master": _Form(
        _HTTP, "an address such as http://jobmanager:8081, or [local]", here=r"\[(auto|local)\]"
    ),
    "spark_master_url": _Form(
        r"spark://|k8s://(?:https?://)?",
        "spark://host:7077, k8s://https://host:443, yarn, local[4] or local-cluster[2,1,1024]",
        here=_SPARK_HERE,
        elsewhere="yarn",
        several=True,
    ),
    "spark_rest_url": _Form(_HTTP, "an address such as http://master:6066"),
}
ADDRESS_OPTIONS = tuple(_FORMS)


def is_here(option: str, value: str) -> bool:
    """Whether a value asks for an engine on this machine, such as `local[4]` of Spark."""
    return bool(re.fullmatch(_FORMS[option].here, value))


def check_address(option: str, value: str) -> None:
    """Raise if a value is not an address, or nothing answers there.

    Raises:
        UsageError: the option takes no such value.
        RunnerError: no host that it names can be reached.
    """
    form = _FORMS[option]
    if is_here(option, value) or re.fullmatch(form.elsewhere, value):
        return
    failures = []
    for host, port in _hosts(option, value):
        try:
            socket.create_connection((host, port), _CONNECT_SECONDS).close()
        except OSError as error:
            no_answer = isinstance(error, TimeoutError)
            failures.append("no answer" if no_answer else error.strerror or str(error))
        else:
            return
    raise RunnerError(f"--{option} {value} cannot be reached: {failures[0]}")


def _hosts(option: str, value: str) -> list[tuple[str, int]]:
    """The hosts and ports that an address names, one at least."""
    form = _FORMS[option]
    scheme = re.match(form.scheme, value)
    found = []
    if scheme:
        rest = value[scheme.end() :]
        default = next((port for name, port in _PORTS.items() if scheme[0].endswith(name)), None)
        for part in rest.split(",") if form.several else [rest]:
            try:
                parts = urlsplit(f"//{part}")
                found.append((parts.hostname, parts.port or default))
            except ValueError:  # a port that is no number
                found.append((None, None))
    usable = [(host, port) for host, port in found if host and port]
    if not usable or len(usable) < len(found):
        raise UsageError(f"--{option} {value}: want {form.wanted}")
    return usable

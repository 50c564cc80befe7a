"""Addresses of clusters and job services: checks of their form, and of a host that answers."""

import re
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from beam_pipeline.errors import RunnerError
from headct.errors import UsageError

_CONNECT_SECONDS = 5.0
_PORTS = {"http://": 80, "https://": 443}
_NEVER = r"(?!)"


@dataclass(frozen=True)
class _Form:
    """Valid values of an option.

    Attributes:
        scheme: regular expression of an address's beginning.
        wanted: examples for an error message.
        here: regular expression of values for an engine on this machine.
        elsewhere: regular expression of values without a host.
        several: whether an address may name several hosts, with one leader among them.
    """

    scheme: str
    wanted: str
    here: str = _NEVER
    elsewhere: str = _NEVER
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
    """Return whether a value requests an engine on this machine, such as Spark's `local[4]`."""
    return bool(re.fullmatch(_FORMS[option].here, value))


def check_address(option: str, value: str) -> None:
    """Raise if a value is not an address, or no host answers at the address.

    Raises:
        UsageError: the value is invalid for the option.
        RunnerError: no host of the address can be reached.
    """
    if is_here(option, value) or re.fullmatch(_FORMS[option].elsewhere, value):
        return
    failures = []
    for address in _hosts(option, value):
        try:
            socket.create_connection(address, _CONNECT_SECONDS).close()
        except TimeoutError:
            failures.append("no answer")
        except OSError as error:
            failures.append(error.strerror or str(error))
        else:
            return
    raise RunnerError(f"--{option} {value} cannot be reached: {failures[0]}")


def _hosts(option: str, value: str) -> list[tuple[str, int]]:
    """Return the hosts and ports of an address, at least one."""
    form = _FORMS[option]
    wrong = UsageError(f"--{option} {value}: want {form.wanted}")
    scheme = re.match(form.scheme, value)
    if scheme is None:
        raise wrong
    default = next((port for name, port in _PORTS.items() if scheme[0].endswith(name)), None)
    rest = value[scheme.end() :]
    hosts = []
    for host in rest.split(",") if form.several else [rest]:
        try:
            parts = urlsplit(f"//{host}")
            name, port = parts.hostname, parts.port or default
        except ValueError:  # the port is not a number
            raise wrong from None
        if not name or not port:
            raise wrong
        hosts.append((name, port))
    return hosts

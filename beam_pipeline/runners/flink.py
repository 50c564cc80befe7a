"""What a Flink cluster's REST interface tells of jobs, and of settings that matter for long ones.

https://nightlies.apache.org/flink/flink-docs-release-1.19/docs/ops/rest_api/
"""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

_ANSWER_SECONDS = 10.0
# Its states, as Beam names them.
_STATES = {"FINISHED": "DONE", "CANCELED": "CANCELLED", "FAILED": "FAILED"}
UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class FlinkCluster:
    """A cluster.

    Attributes:
        url: of its REST interface, with its scheme.
    """

    url: str

    def state(self, name: str) -> str:
        """The state of the newest job of a name, as Beam names it; UNKNOWN if there is none.

        Raises:
            OSError: the cluster gives no answer.
        """
        job = self._newest(name)
        return _STATES.get(job["state"], "RUNNING") if job else UNKNOWN

    def cancel(self, name: str) -> None:
        """Cancel the newest job of a name, if there is one; raises as `state` does."""
        job = self._newest(name)
        if job:
            self._ask(f"/jobs/{job['jid']}?mode=cancel", "PATCH")

    def version(self) -> str:
        """Its version as Beam names it, such as 1.19; raises as `state` does."""
        return ".".join(self._ask("/config")["flink-version"].split(".")[:2])

    def advice(self) -> list[str]:
        """Settings that a job of hours should not be without; raises as `state` does."""
        settings = {entry["key"]: entry["value"] for entry in self._ask("/jobmanager/config")}
        found = []
        # Flink 1.19 renamed it.
        strategy = settings.get("restart-strategy.type") or settings.get("restart-strategy")
        if strategy in (None, "none", "off", "disable"):
            found.append(
                "Flink's restart-strategy is not set: a worker that is lost ends the job, and the "
                "same command resumes. With 'restart-strategy: fixed-delay' the job continues."
            )
        if settings.get("cluster.evenly-spread-out-slots") != "true":
            found.append(
                "Flink's cluster.evenly-spread-out-slots is not set: all tasks may run on one task "
                "manager while others are idle."
            )
        return found

    def _newest(self, name: str) -> dict[str, Any] | None:
        jobs = [job for job in self._ask("/jobs/overview")["jobs"] if job["name"] == name]
        return max(jobs, key=lambda job: job["start-time"], default=None)

    def _ask(self, path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(self.url.rstrip("/") + path, method=method)
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
            return json.loads(answer.read() or b"null")

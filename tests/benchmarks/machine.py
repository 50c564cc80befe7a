"""The machine that a figure was measured on, in one line a fact."""

import os
import platform
from pathlib import Path

from trainer.runs.run import package_versions


def describe_machine(packages: list[str]) -> dict[str, str]:
    """Facts to print beside figures, the load included: others may be using the machine."""
    versions = ", ".join(" ".join(pair) for pair in package_versions(packages).items())
    return {
        "CPU": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{_memory_bytes() / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": versions,
        "load": "{:.1f} (1 min), {:.1f} (15 min)".format(*os.getloadavg()[::2]),
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

"""What a run was computed on, for its report: no name of the machine or of its user."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from typing import Any

import keras
import psutil
import tensorflow as tf

from trainer.networks.hardware import jax_devices


def describe_machine() -> dict[str, Any]:
    """Time (UTC), backend, devices, processor cores, memory (GiB) and system."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "backend": keras.backend.backend(),
        "devices": name_devices(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def name_devices() -> list[str]:
    """The kinds of the devices that Keras computes with, one name a device."""
    if keras.backend.backend() == "jax":
        return [str(each.device_kind) for each in jax_devices()]
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(each) for each in gpus[:1]]
    return [str(each.get("device_name", "GPU")) for each in details] or ["cpu"]

"""The environment of a run: versions, machine, command."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from typing import Any

PACKAGES = ("bertcli", "torch", "transformers", "datasets", "accelerate", "evaluate", "tokenizers", "numpy")

HUB_TOKEN = re.compile(r"hf_\w+")


def num_cores() -> int:
    """Number of CPU cores available to this process; all cores where the system has no affinity (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_environment() -> dict[str, Any]:
    """Command, versions and hardware as JSON data, without environment variables or hub tokens."""
    import torch

    return {
        "command": HUB_TOKEN.sub("hf_…", " ".join(sys.argv)),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "cpus": num_cores(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }

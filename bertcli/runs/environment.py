"""What a run was made with: versions, machine, command."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from typing import Any

PACKAGES = ("bertcli", "torch", "transformers", "datasets", "accelerate", "evaluate", "tokenizers", "numpy")

TOKEN = re.compile(r"hf_\w+")  # of the hub


def num_cores() -> int:
    """The cores that this process may use, as far as the system tells (macOS does not)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_environment() -> dict[str, Any]:
    """Versions and machine as plain data; no environment variable's value and no secret is in it."""
    import torch

    return {
        "command": TOKEN.sub("hf_…", " ".join(sys.argv)),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "cpus": num_cores(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }

"""`bertcli env`: describe the machine and installed versions, to include in a bug report."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bertcli.cache import cache_folder, find_entries, max_cache_gb
from bertcli.recipe.schema import HardwareSection
from bertcli.runs.environment import describe_environment
from bertcli.training.devices import choose_precision, native_precisions


def env(mirror: Path | None) -> tuple[dict[str, Any], str]:
    """Describe versions, devices, precision, threads, mirror, caches and free disk space, as JSON data and as text."""
    from huggingface_hub import constants

    facts = describe_environment()
    del facts["command"]
    facts["gpus"] = list(_gpus())
    facts |= {
        "precision": choose_precision(HardwareSection()),
        "precisions": native_precisions(HardwareSection()),
        "gpu_driver": _nvidia_driver_version() if facts["gpus"] else None,
        "mirror": None if mirror is None else _folder_status(mirror),
        "cache": _folder_status(cache_folder()),
        "cache_gb": round(sum(find_entries(cache_folder()).values()) / 1e9, 1),
        "cache_max_gb": max_cache_gb() if math.isfinite(max_cache_gb()) else None,
        "hub_cache": _folder_status(Path(constants.HF_HUB_CACHE)),
        "hub_offline": constants.is_offline_mode(),
        "free_disk_gb": round(shutil.disk_usage(Path()).free / 1e9, 1),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
    }
    return facts, "\n".join(_lines(facts))


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    for name, value in facts.items():
        if name == "packages":
            yield from (f"{package:<15}{version}" for package, version in value.items())
        elif isinstance(value, dict):
            yield f"{name:<15}{value['folder']}{'' if value['exists'] else ' (does not exist)'}"
        elif isinstance(value, list):
            items = (f"{item['name']} ({item['memory_gb']} GB)" if isinstance(item, dict) else item for item in value)
            yield f"{name:<15}{', '.join(items) or 'none'}"
        else:
            yield f"{name:<15}{'none' if value is None else str(value).lower() if isinstance(value, bool) else value}"


def _gpus() -> Iterator[dict[str, Any]]:
    """Yield the name and memory of each GPU."""
    import torch

    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield {"name": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1)}


def _nvidia_driver_version() -> str | None:
    """Return the version of the NVIDIA driver, as nvidia-smi reports it."""
    from torch.utils import collect_env

    return collect_env.get_nvidia_driver_version(collect_env.run)


def _folder_status(folder: Path) -> dict[str, Any]:
    return {"folder": str(folder), "exists": folder.is_dir()}

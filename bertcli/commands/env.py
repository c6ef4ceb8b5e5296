"""`bertcli env`: what this machine has, as one pastes it into a bug report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertcli.data.cache import cache_folder
from bertcli.recipe.schema import HardwareSection
from bertcli.runs.environment import describe_environment
from bertcli.training.devices import choose_precision, native_precisions


def look_around(mirror: Path | None) -> dict[str, Any]:
    """Versions, devices and precision, threads, mirror, caches and free disk as plain data."""
    from huggingface_hub import constants

    found = describe_environment()
    del found["command"]
    found["gpus"] = list(_gpus())
    return found | {
        "precision": choose_precision(HardwareSection()),
        "precisions": native_precisions(HardwareSection()),
        "gpu_driver": _driver() if found["gpus"] else None,
        "mirror": None if mirror is None else _place(mirror),
        "corpus_cache": _place(cache_folder()),
        "hub_cache": _place(Path(constants.HF_HUB_CACHE)),
        "hub_offline": constants.is_offline_mode(),
        "free_disk_gb": round(shutil.disk_usage(Path()).free / 1e9, 1),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
    }


def environment_lines(found: dict[str, Any]) -> Iterator[str]:
    """What `look_around` found, a line for each thing."""
    for name, value in found.items():
        if name == "packages":
            yield from (f"{package:<15}{version}" for package, version in value.items())
        elif isinstance(value, dict):
            yield f"{name:<15}{value['folder']}{'' if value['exists'] else ' (not there)'}"
        elif isinstance(value, list):
            words = (f"{one['name']} ({one['memory_gb']} GB)" if isinstance(one, dict) else one for one in value)
            yield f"{name:<15}{', '.join(words) or 'none'}"
        else:
            yield f"{name:<15}{'none' if value is None else str(value).lower() if isinstance(value, bool) else value}"


def _gpus() -> Iterator[dict[str, Any]]:
    """Name and memory of each GPU."""
    import torch

    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        yield {"name": card.name, "memory_gb": round(card.total_memory / 1e9, 1)}


def _driver() -> str | None:
    """The version of NVIDIA's driver, as its own program says it."""
    from torch.utils import collect_env

    return collect_env.get_nvidia_driver_version(collect_env.run)


def _place(folder: Path) -> dict[str, Any]:
    return {"folder": str(folder), "exists": folder.is_dir()}

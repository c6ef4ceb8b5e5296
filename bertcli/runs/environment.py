"""The environment of a run: versions, machine, command."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("bertcli", "torch", "transformers", "datasets", "accelerate", "evaluate", "tokenizers", "numpy")

MASK = "…"
SECRET_NAMES = (
    r"(?:\w*token|\w*api_?key|wandb_?key|\w*secret(?:_?key)?|\w*pass(?:word|wd|phrase)|\w*access_?key"
    r"|auth(?:orization)?)"
)
SECRET_NAME = re.compile(rf"(?i)(?:^|[._-]){SECRET_NAMES}$")
NAMED_SECRET = re.compile(  # inside a text: `export=HF_TOKEN=…`, `{password: …}`, `?sig=…`
    rf"(?i)((?:(?<![^\W_]){SECRET_NAMES}|(?<=[?&])(?:sig|[\w-]*signature|[\w-]*credential|key))['\"]?\s*[=:]\s*['\"]?)"
    r"(?:(?:bearer|basic)\s+)?[^\s,;&'\"{}\[\]]+"
)
SECRET = re.compile(
    r"hf_(?=[a-z]*[A-Z\d]|[a-z]{12})[A-Za-z\d]{8,}|sk-[\w-]{16,}|gh[opsur]_\w{16,}|github_pat_\w+|glpat-[\w-]+|npm_\w{30,}|pypi-[\w-]{16,}"
    r"|xox[a-z]-[\w-]+|AKIA[0-9A-Z]{16}|AIza[\w-]{35}"
    r"|eyJ[\w-]{10,}\.[\w-]+\.[\w-]+"  # JSON web tokens
)
RANDOM_KEY = re.compile(  # an entire value; AWS keys have 40 characters, possibly with slashes
    r"[0-9a-fA-F]{32,}|(?=.*\d)(?=.*[a-z])(?=.*[A-Z])(?:[A-Za-z0-9+]{32,}={0,2}|[A-Za-z0-9+/]{40})"
)
URL_PASSWORD = re.compile(r"(\w://[^/@:\s]*:)[^/\s]+@")
URL_TOKEN = re.compile(r"(\bhttps?://)[^/@:\s]+@")


def num_cores() -> int:
    """Return the number of CPU cores available to this process, by its affinity and the limit of its container."""
    from joblib import cpu_count

    return int(cpu_count())


def cpu_name() -> str:
    """Return the name of the CPU, such as `AMD EPYC 9R14`; its architecture if the system does not name it."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:  # not Linux
        text = ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()


def mask_secrets(arguments: Sequence[str]) -> list[str]:
    """Mask everything in command-line arguments that looks like a token, key or password.

    This masks what `mask_text` masks, the values of options or keys named like a secret, and long random values.
    """
    masked, is_secret = [], False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            name, value = "", argument
        if is_secret or SECRET_NAME.search(name.replace("-", "_")) or RANDOM_KEY.fullmatch(value):
            value = MASK
        masked.append(mask_text(f"{name}{equals}{value}"))
        is_secret = not equals and argument.startswith("--") and bool(SECRET_NAME.search(argument.replace("-", "_")))
    return masked


def mask_text(text: str) -> str:
    """Mask everything in a text, such as a recipe, that looks like a token, key or password.

    This masks values after the name of a secret, tokens in the format of a well-known service, and passwords or tokens
    in URLs.
    """
    text = NAMED_SECRET.sub(rf"\1{MASK}", SECRET.sub(MASK, text))
    return URL_TOKEN.sub(rf"\1{MASK}@", URL_PASSWORD.sub(rf"\1{MASK}@", text))


def describe_environment() -> dict[str, Any]:
    """Return command, versions and hardware as JSON data, without environment variables or secrets."""
    import torch

    return {
        "command": " ".join(mask_secrets(sys.argv)),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "cpus": num_cores(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "packages": package_versions(),
    }


@cache
def package_versions() -> dict[str, str]:
    """Return the versions of bertcli and the libraries that determine what a run computes, by name."""
    return {name: metadata.version(name) for name in PACKAGES}

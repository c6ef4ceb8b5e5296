"""What was in a folder when it was made: size and hash of each file, so that damage is seen before it is used."""

from __future__ import annotations

import hashlib
import json
from itertools import islice
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
MEGABYTE = 1 << 20


def write_manifest(folder: Path, first_megabytes: int | None = None) -> None:
    """Write down in `folder` which files it holds.

    Args:
        first_megabytes: how much of each file to hash, from its beginning; None: all.
    """
    files = sorted(folder.iterdir())
    described = {path.name: _described(path, first_megabytes) for path in files}
    (folder / MANIFEST).write_text(json.dumps(described, indent=2) + "\n", "utf-8")


def damage_of(folder: Path, first_megabytes: int | None = None) -> str | None:
    """What in `folder` is not as its manifest (written with the same `first_megabytes`) says; None if all is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        if not manifest:
            return f"{MANIFEST} names no file"
        for name, written in manifest.items():
            size = (folder / name).stat().st_size
            if size != written["bytes"]:
                return f"{name} has {size} bytes where {written['bytes']} were written"
            if _described(folder / name, first_megabytes) != written:
                return f"{name} has other contents than were written"
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return None


def _described(path: Path, first_megabytes: int | None) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        for part in islice(iter(lambda: file.read(MEGABYTE), b""), first_megabytes):
            digest.update(part)
    return {"bytes": path.stat().st_size, "blake2b": digest.hexdigest()}

"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from bertcli.errors import UsageError

MANIFEST = "manifest.json"
MEGABYTE = 1 << 20


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that the file is there whole or not at all."""
    write_parts(path, (text,))


def write_parts(path: Path, parts: Iterable[str]) -> None:
    """Write texts one after the other to `path`, as they come, so that the file is there whole or not at all."""
    descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def flush(*paths: Path) -> None:
    """Wait until files (and the names in folders) are on the disk, so that they outlast a loss of power."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path` as readable JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def made_whole(path: Path) -> Iterator[Path]:
    """A folder to fill: it is at `path` once the block has ended well, and nowhere otherwise.

    Raises:
        UsageError: something is at `path` already, or it cannot be made.
    """
    if path.exists():
        raise UsageError(f"{path} exists already; name another --output or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield aside
        aside.chmod(0o755)  # as any folder, no longer for its maker alone
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def replace_folder(made: Path, target: Path) -> None:
    """Put the finished folder `made` where `target` is; the earlier `target` goes away only then."""
    old = _old(target)
    restore_folder(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    made.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(target: Path) -> None:
    """If a replacing of `target` was cut off in the middle, put back what was there before."""
    if not target.exists() and _old(target).is_dir():
        _old(target).rename(target)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def open_new(path: Path) -> IO[str]:
    """A file that was not there before, for UTF-8 text.

    Raises:
        UsageError: it is there, or cannot be made.
    """
    try:
        return path.open("x", encoding="utf-8", newline="")
    except FileExistsError as error:
        raise UsageError(f"{path} exists already; name another --output or remove it") from error
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


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

"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bertcli.errors import UsageError


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

"""What is made once and kept on disk: folders that are whole or not there, and made anew where they are damaged.

A folder is made aside and named into place, so that an interrupted or parallel making harms nobody.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bertcli.files import damage_of, write_manifest

# Sizes, JSON and the headers of arrays are checked at each opening; gigabytes of tokens are not read again for it.
CHECKED_MEGABYTES = 16
SECONDS_UNTIL_LEFT = 24 * 3600


def cache_folder() -> Path:
    """Where what is made once is kept: `BERTCLI_CACHE`, else `bertcli` under the user's cache folder."""
    given = os.environ.get("BERTCLI_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bertcli"


def made_once(folder: Path, make: Callable[[Path], None], warn: Callable[[str], None]) -> Path:
    """`folder`; if it is not there, or damaged, `make` makes it first.

    Args:
        warn: told of damage.
    """
    if not is_whole(folder, warn):
        make_aside(folder, make)
    return folder


def is_whole(folder: Path, warn: Callable[[str], None]) -> bool:
    """Whether `folder` is there as it was made; `warn` is told if it is there and damaged."""
    if not folder.is_dir():
        return False
    problem = damage_of(folder, CHECKED_MEGABYTES)
    if problem is not None:
        warn(f"{folder} in the cache is damaged ({problem}); it is made anew, and the damaged one is kept beside it")
    return problem is None


def _remove_left(folder: Path) -> None:
    """Remove what processes that were killed while they made this folder have left, a day after they last wrote."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        with suppress(FileNotFoundError):  # it was finished, or another process removes it
            written = max(path.stat().st_mtime for path in (left, *left.rglob("*")))
            if time.time() - written > SECONDS_UNTIL_LEFT:
                shutil.rmtree(left, ignore_errors=True)


def make_aside(folder: Path, make: Callable[[Path], None]) -> None:
    """Let `make` fill a folder that gets its name when it is whole, so that it is never there by half."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(folder)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        make(aside)
        write_manifest(aside, CHECKED_MEGABYTES)
        aside.chmod(0o755)  # others may share the cache
        if folder.is_dir() and damage_of(folder, CHECKED_MEGABYTES) is not None:
            with suppress(FileNotFoundError):  # another process was faster
                folder.rename(folder.with_name(f"{folder.name}.damaged{aside.suffix}"))
        try:
            aside.rename(folder)
        except OSError:  # again, and what it made is the same
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)

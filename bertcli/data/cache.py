"""On-disk cache of folders that are expensive to create: each is complete or absent, and corrupt ones are rebuilt.

A folder is filled under a temporary name and then renamed, so interrupted or concurrent processes do no harm.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bertcli.files import manifest_problem, write_manifest

# On every access, sizes and the first megabytes are verified: all of JSON files and array headers, but not gigabytes
# of tokens.
VERIFIED_MEGABYTES = 16
STALE_AFTER_SECONDS = 24 * 3600


def cache_folder() -> Path:
    """The cache's root: `BERTCLI_CACHE`, or `bertcli` in the user's cache folder."""
    given = os.environ.get("BERTCLI_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bertcli"


def get_or_create(folder: Path, create: Callable[[Path], None], warn: Callable[[str], None]) -> Path:
    """Return `folder`, created first if it is missing or damaged.

    Args:
        create: fills the folder whose path it gets.
        warn: called with a message if the folder is damaged.
    """
    if not is_valid_entry(folder, warn):
        create_atomically(folder, create)
    return folder


def is_valid_entry(folder: Path, warn: Callable[[str], None]) -> bool:
    """Check that `folder` exists and matches its manifest; warn if it exists and does not."""
    if not folder.is_dir():
        return False
    problem = manifest_problem(folder, VERIFIED_MEGABYTES)
    if problem is not None:
        warn(f"{folder} in the cache is damaged ({problem}); rebuilding it and keeping the damaged copy next to it")
    return problem is None


def _remove_stale(folder: Path) -> None:
    """Remove temporary folders of killed processes that were last written to more than a day ago."""
    for tmp in folder.parent.glob(f".{folder.name}.*"):
        with suppress(FileNotFoundError):  # its process has finished, or another process removes it
            last_write = max(path.stat().st_mtime for path in (tmp, *tmp.rglob("*")))
            if time.time() - last_write > STALE_AFTER_SECONDS:
                shutil.rmtree(tmp, ignore_errors=True)


def create_atomically(folder: Path, create: Callable[[Path], None]) -> None:
    """Have `create` fill a temporary folder, then rename it to `folder`, so that `folder` is never incomplete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    tmp = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        create(tmp)
        write_manifest(tmp, VERIFIED_MEGABYTES)
        tmp.chmod(0o755)  # other users may share the cache
        if folder.is_dir() and manifest_problem(folder, VERIFIED_MEGABYTES) is not None:
            with suppress(FileNotFoundError):  # another process was faster
                folder.rename(folder.with_name(f"{folder.name}.damaged{tmp.suffix}"))
        try:
            tmp.rename(folder)
        except OSError:  # another process was faster, and its result is the same
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(tmp, ignore_errors=True)

"""On-disk cache of folders that are expensive to create. An entry is complete or absent; a corrupt one is rebuilt.

A folder is filled under a temporary name and then renamed, so an interrupted process leaves no partial entry. An entry
has a lock file: one process creates or repairs it while the others wait.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bertcli.files import file_lock, manifest_problem, named_in_errors, temporary_path, write_manifest

# Each access verifies the sizes and, by default, first megabytes of the files. This covers JSON files and array headers
# completely, without reading gigabytes of tokens.
VERIFIED_MEGABYTES = 16
STALE_AFTER_SECONDS = 24 * 3600


def cache_folder() -> Path:
    """Return the cache's root: `BERTCLI_CACHE`, or `bertcli` in the user's cache folder."""
    given = os.environ.get("BERTCLI_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bertcli"


def get_or_create(
    folder: Path,
    create: Callable[[Path], None],
    warn: Callable[[str], None],
    *,
    verify_all: bool = False,
) -> Path:
    """Return `folder`; if it is missing or damaged, create it first, in one process at a time.

    Args:
        create: called with the path of a folder to fill.
        warn: called with a message if the folder is damaged, or if another process is creating it.
        verify_all: verify the whole files, not only their beginning.
    """
    if manifest_problem(folder, _verified_megabytes(verify_all)) is not None:
        with _entry_lock(folder, warn):
            # Another process may have created it in the meantime.
            if not is_valid_entry(folder, warn, verify_all=verify_all):
                with _filled_folder(folder, create, verify_all=verify_all) as tmp:
                    _move_into_place(tmp, folder)
    return folder


@contextmanager
def _entry_lock(folder: Path, warn: Callable[[str], None]) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f".{folder.name}.lock")
    with file_lock(lock, lambda owner: warn(f"waiting for {owner}, which is creating {folder} in the cache")):
        yield


def _verified_megabytes(verify_all: bool) -> int | None:
    return None if verify_all else VERIFIED_MEGABYTES


def is_valid_entry(folder: Path, warn: Callable[[str], None], *, verify_all: bool = False) -> bool:
    """Return whether `folder` exists and matches its manifest; warn if it exists but does not match."""
    if not folder.is_dir():
        return False
    problem = manifest_problem(folder, _verified_megabytes(verify_all))
    if problem is not None:
        warn(f"{folder} in the cache is damaged ({problem}); rebuilding it and keeping the damaged copy next to it")
    return problem is None


def _remove_stale(folder: Path) -> None:
    """Remove temporary folders left by killed processes, if last written to more than a day ago."""
    for tmp in [path for path in folder.parent.glob(f".{folder.name}.*") if path.is_dir()]:
        with suppress(FileNotFoundError):  # its process has finished, or another process removes it
            last_write = max(path.stat().st_mtime for path in (tmp, *tmp.rglob("*")))
            if time.time() - last_write > STALE_AFTER_SECONDS:
                shutil.rmtree(tmp, ignore_errors=True)


def create_atomically(folder: Path, create: Callable[[Path], None]) -> None:
    """Have `create` fill a temporary folder, then rename it to `folder`, so that `folder` is never incomplete.

    Several processes may create the same folder at once and wait for each other in `create`; the first result is kept.
    """
    with _filled_folder(folder, create) as tmp, _entry_lock(folder, lambda message: None):
        if manifest_problem(folder, VERIFIED_MEGABYTES) is not None:
            _move_into_place(tmp, folder)


@contextmanager
def _filled_folder(folder: Path, create: Callable[[Path], None], *, verify_all: bool = False) -> Iterator[Path]:
    """Yield a temporary folder next to `folder`, filled and with a manifest; remove it at the end if still there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    tmp = temporary_path(folder)
    tmp.mkdir()
    try:
        with named_in_errors(folder):
            create(tmp)
            write_manifest(tmp, _verified_megabytes(verify_all))
        yield tmp
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def _move_into_place(tmp: Path, folder: Path) -> None:
    """Rename `tmp` to `folder`, which is missing or damaged; the caller holds its lock."""
    if folder.is_dir():
        folder.rename(folder.with_name(f"{folder.name}.damaged{tmp.suffix}"))
    try:
        tmp.rename(folder)
    except OSError:  # without file locks, another process may have been faster; its result is the same
        if not folder.is_dir():
            raise

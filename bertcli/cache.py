"""On-disk cache of folders that are expensive to create. An entry is complete or absent; a corrupt one is rebuilt.

A folder is filled under a temporary name and then renamed, so an interrupted process leaves no partial entry. An entry
has a lock file: one process creates or repairs it while the others wait. When the cache grows beyond
`BERTCLI_CACHE_MAX_GB`, the entries that have not been used for longest are removed; those in use are kept.

<cache>/<kind>/<key>/…                 an entry; the time of change of its manifest is that of its last use, and a
                                       process that uses it holds a shared lock on the manifest
<cache>/<kind>/<key>.damaged.<suffix>  the damaged copy of an entry that was rebuilt
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

from bertcli.errors import UsageError, quoted
from bertcli.files import (
    MANIFEST,
    file_lock,
    manifest_problem,
    named_in_errors,
    temporary_path,
    write_manifest,
)

STALE_AFTER_SECONDS = 24 * 3600
DEFAULT_MAX_GB = 50.0
DAMAGED = ".damaged."
ENTRY = re.compile(r"[0-9a-f]{32}(?:\.damaged\.[0-9a-f]{8})?")  # other folders in the cache are not ours to remove
TEMPORARY = re.compile(rf"\.{ENTRY.pattern}\.[0-9a-f]{{8}}")  # names of `temporary_path`
_in_use: dict[Path, BinaryIO] = {}  # locked manifests of the entries that this process uses


def cache_folder() -> Path:
    """Return the cache's root: `BERTCLI_CACHE`, or `bertcli` in the user's cache folder."""
    given = os.environ.get("BERTCLI_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bertcli"


def max_cache_gb() -> float:
    """Return the size in gigabytes beyond which unused entries are removed: `BERTCLI_CACHE_MAX_GB`, or 50.

    Raises:
        UsageError: if the variable is not a number, or is negative.
    """
    given = os.environ.get("BERTCLI_CACHE_MAX_GB") or str(DEFAULT_MAX_GB)
    try:
        max_gb = float(given)
    except ValueError:
        max_gb = -1.0
    if not max_gb >= 0:  # or NaN
        raise UsageError(
            f"found the environment variable BERTCLI_CACHE_MAX_GB={quoted(given)}, expected a number of gigabytes, "
            "such as 50; inf keeps everything"
        )
    return max_gb


def get_or_create(
    folder: Path,
    create: Callable[[Path], None],
    warn: Callable[[str], None],
    *,
    verify_all: bool = False,
) -> Path:
    """Return `folder`; if it is missing or damaged, create it first, in one process at a time.

    It is not removed from the cache while this process runs. Each access verifies the sizes and, by default, a sample
    of the contents of the files: small files completely, without reading gigabytes of tokens.

    Args:
        create: called with the path of a folder to fill.
        warn: called with a message if the folder is damaged, or if another process is creating it.
        verify_all: verify the whole files, not only a sample of them.

    Raises:
        UsageError: if `BERTCLI_CACHE_MAX_GB` is invalid.
    """
    if _entry_problem(folder, verify_all=verify_all) is not None:
        with _entry_lock(folder, warn):
            # Another process may have created it in the meantime.
            if not is_valid_entry(folder, warn, verify_all=verify_all):
                with _filled_folder(folder, create, verify_all=verify_all) as tmp:
                    _move_into_place(tmp, folder)
        _remove_unused(folder.parent.parent)
    return folder


@contextmanager
def _entry_lock(folder: Path, warn: Callable[[str], None]) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f".{folder.name}.lock")
    with file_lock(lock, lambda owner: warn(f"waiting for {owner}, which is creating {folder} in the cache")):
        yield


def is_valid_entry(folder: Path, warn: Callable[[str], None], *, verify_all: bool = False) -> bool:
    """Return whether `folder` exists and matches its manifest; warn if it exists but does not match.

    It is not removed from the cache while this process runs.
    """
    problem = _entry_problem(folder, verify_all=verify_all)
    if problem is not None and folder.is_dir():
        warn(f"{folder} in the cache is damaged ({problem}); rebuilding it and keeping the damaged copy next to it")
    return problem is None


def _entry_problem(folder: Path, *, verify_all: bool = False) -> str | None:
    """Return what is wrong with an entry; if nothing is, it is not removed while this process runs."""
    is_marked = False
    while not is_marked:  # another process may have removed it, and a third one created it again
        is_marked = _mark_in_use(folder)
        problem = manifest_problem(folder, sampled=not verify_all)
        if problem is not None:
            return problem
    return None


def _mark_in_use(folder: Path) -> bool:
    """Note the time of this use of an entry, and keep it from being removed; return whether it exists."""
    with suppress(OSError):  # its files belong to another user, or locks are not supported
        try:
            while folder not in _in_use or not _is_manifest(_in_use[folder], folder):
                _in_use[folder] = _shared_lock(folder)
            os.utime(folder / MANIFEST)
        except FileNotFoundError:
            return False
    return True


def _is_manifest(file: BinaryIO, folder: Path) -> bool:
    """Return whether an open file is the manifest of `folder`, not of a folder that it has replaced."""
    return os.path.samestat(os.fstat(file.fileno()), (folder / MANIFEST).stat())


def _shared_lock(folder: Path) -> BinaryIO:
    """Return the open manifest of a folder, with a lock that lasts until it is closed."""
    manifest = (folder / MANIFEST).open("rb")
    fcntl.flock(manifest, fcntl.LOCK_SH)
    return manifest


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

    Raises:
        UsageError: if `BERTCLI_CACHE_MAX_GB` is invalid.
    """
    with _filled_folder(folder, create) as tmp, _entry_lock(folder, lambda message: None):
        if _entry_problem(folder) is not None:
            _move_into_place(tmp, folder)
    _remove_unused(folder.parent.parent)


@contextmanager
def _filled_folder(folder: Path, create: Callable[[Path], None], *, verify_all: bool = False) -> Iterator[Path]:
    """Yield a temporary folder next to `folder`, filled and with a manifest; remove it at the end if still there."""
    max_cache_gb()  # fail early
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    tmp = temporary_path(folder)
    tmp.mkdir()
    try:
        with named_in_errors(folder):
            create(tmp)
            write_manifest(tmp, sampled=not verify_all)
        yield tmp
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def _move_into_place(tmp: Path, folder: Path) -> None:
    """Rename `tmp` to `folder`, which is missing or damaged; the caller holds its lock."""
    if folder.is_dir():
        folder.rename(folder.with_name(f"{folder.name}{DAMAGED}{tmp.suffix[1:]}"))
    with suppress(OSError):  # locks are not supported
        _in_use[folder] = _shared_lock(tmp)
    try:
        tmp.rename(folder)
    except OSError:  # without file locks, another process may have been faster; its result is the same
        if not folder.is_dir():
            raise


def find_entries(cache: Path) -> dict[Path, int]:
    """Return the entries of a cache with their sizes in bytes, least recently used first."""
    sizes: dict[Path, int] = {}
    last_uses: dict[Path, float] = {}
    for entry in cache.glob("*/*"):
        if ENTRY.fullmatch(entry.name):
            manifest = entry if DAMAGED in entry.name else entry / MANIFEST
            with suppress(OSError):  # without a manifest it is not an entry; or another process removes it
                last_uses[entry] = manifest.stat().st_mtime
                sizes[entry] = sum(file.stat().st_size for file in entry.rglob("*"))
    return {entry: sizes[entry] for entry in sorted(sizes, key=lambda entry: last_uses[entry])}


def _remove_unused(cache: Path) -> None:
    """Remove what killed processes left, and the least recently used entries while the cache is too large.

    Entries in use by a process, and those of other users, are kept.
    """
    for tmp in cache.glob("*/.*"):
        if TEMPORARY.fullmatch(tmp.name):
            _remove_stale(tmp.with_name(tmp.stem.removeprefix(".")))
    sizes = find_entries(cache)
    excess = sum(sizes.values()) - max_cache_gb() * 1e9
    for entry, size in sizes.items():
        if excess <= 0:
            return
        with suppress(OSError):  # in use, of another user, or being removed by another process; or no locks
            _remove_entry(entry)
            excess -= size


def _remove_entry(entry: Path) -> None:
    """Remove an entry.

    Raises:
        OSError: if it is in use, or cannot be removed.
    """
    manifest, tmp = entry / MANIFEST, temporary_path(entry)
    with manifest.open("r+b") if manifest.exists() else nullcontext() as file:
        if file is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_manifest(file, entry):
                raise BlockingIOError(f"{entry} has just been created again")
        entry.rename(tmp)  # a process that has not locked it yet will find it missing
        shutil.rmtree(tmp, ignore_errors=True)

"""Atomic writes (a file or folder appears complete or not at all), and manifests that detect corruption."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from bertcli.console import escape_control
from bertcli.errors import UsageError

MANIFEST = "manifest.json"
MEGABYTE = 1 << 20
MAX_HASHED_BYTES = 256 * MEGABYTE  # of several data files: half a second to read and hash
MIN_SAMPLED_BYTES = 16 * MEGABYTE  # the hash of a sample covers smaller files entirely
SAMPLED_SHARE = 0.01  # and at least this share of larger ones, which takes 0.1 s or less per gigabyte
SAMPLE_BYTES = 1 << 16  # of each part of the sample; damage that spans 7 MB is certain to be noticed
NUM_SAVING_THREADS = 4  # some wait for the disk while others hash
FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # raised on file systems that do not support locking


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    write_chunks(path, (text,))


def write_chunks(path: Path, chunks: Iterable[str]) -> None:
    """Stream `chunks` of text to `path` atomically."""
    write_bytes(path, (chunk.encode() for chunk in chunks))


def write_bytes(path: Path, chunks: Iterable[bytes]) -> None:
    """Stream `chunks` to `path` atomically."""
    tmp = temporary_path(path)
    try:
        with named_in_errors(path), tmp.open("xb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        tmp.replace(path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


@contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """Add `path` to the errors raised on a full disk, which do not name the file."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_ERRORS and error.filename is None:
            error.filename = str(path)
        raise


def temporary_path(path: Path) -> Path:
    """Return a hidden, unused path next to `path`; files created there follow the umask, unlike those of `tempfile`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def nearest_folder(path: Path) -> Path:
    """Return `path` or its nearest existing parent, whose disk and permissions apply to what is created at `path`."""
    while not path.exists():
        path = path.parent
    return path


def fsync(*paths: Path) -> None:
    """Flush files, and the entries of folders, to disk so that they survive a power loss."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write records to `path` atomically, one per line, with control characters escaped."""
    write_chunks(path, (f"{escape_control(json.dumps(record, ensure_ascii=False))}\n" for record in records))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path` atomically, as indented JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def file_lock(path: Path, on_busy: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `path` until the block ends or this process dies; wait if another process holds it.

    On file systems that do not support locking, the block runs without waiting.

    Args:
        on_busy: called before waiting, with a description of the process that holds the lock; it may raise an error.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, fallback_to_soft=False)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            on_busy(_lock_owner(path))
            lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    if not lock.is_locked:
        yield
        return
    locked = path.stat()
    try:
        with suppress(OSError):  # a full disk
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", "utf-8")
        yield
    finally:
        # Unlink the file while it is locked: a process that has it open notices and opens a new one. If the file was
        # removed with its folder, another process may hold a new lock file, which must stay.
        with suppress(OSError):
            if os.path.samestat(path.stat(), locked):
                path.unlink()
        lock.release()


def _lock_owner(path: Path) -> str:
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        return file.read(200).strip() or "another process"
    return "another process"


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; move it to `path` on success, remove it on error.

    Raises:
        UsageError: if `path` already exists, or cannot be created.
    """
    if path.exists():
        raise UsageError(f"{path} already exists; choose another --output or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp = temporary_path(path)
        tmp.mkdir()
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield tmp
        try:
            tmp.rename(path)
        except OSError as error:
            if not path.exists():
                raise
            raise UsageError(
                f"{path} was created by another process in the meantime; choose another --output"
            ) from error
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def replace_folder(source: Path, target: Path) -> None:
    """Move the complete folder `source` to `target`; remove a previous `target` only afterwards."""
    old = _backup_path(target)
    restore_folder(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(target: Path) -> None:
    """Put the previous `target` back if `replace_folder` was interrupted."""
    if not target.exists() and _backup_path(target).is_dir():
        _backup_path(target).rename(target)


def _backup_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def check_output(path: Path, *, overwrite: bool = False) -> None:
    """Check that `new_file` can write to `path`, before any work starts.

    Raises:
        UsageError: if `path` is a folder, is an existing file (allowed with `overwrite`), or cannot be written.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder, expected the name of a file")
    if path.is_file() and not overwrite:
        raise UsageError(f"{path} already exists; choose another --output, or replace it with --overwrite")
    if not path.parent.is_dir():
        raise UsageError(
            f"cannot write {path}: folder {path.parent} does not exist; create it, or choose another --output"
        )
    if not os.access(path if is_device(path) else path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: {os.strerror(errno.EACCES)}")


@contextmanager
def new_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write; move it to `path` on success, remove it on error.

    A pipe or a device, such as a named pipe or `/dev/null`, is written directly.

    Raises:
        UsageError: as `check_output`.
    """
    path = Path(os.path.realpath(path))  # replace the target of a symbolic link, not the link
    check_output(path, overwrite=overwrite)
    if is_device(path):
        with suppress(BrokenPipeError), named_in_errors(path):
            yield path
        return
    tmp = temporary_path(path)
    try:
        tmp.touch()
        with named_in_errors(path):
            yield tmp
        check_output(path, overwrite=overwrite)  # another process may have created it in the meantime
        tmp.replace(path)
    finally:
        tmp.unlink(missing_ok=True)


def is_device(path: Path) -> bool:
    """Return whether `path` is a pipe or a device, such as `/dev/null`, which has no content to replace."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_manifest(folder: Path, *, sampled: bool = False) -> None:
    """Write `manifest.json` in `folder`, with the size and hash of each file in the folder and its subfolders.

    All of them are flushed to disk, while they are hashed: a power loss must not leave parts empty that a sample does
    not cover. They get the permissions of new files, which follow the umask: safetensors writes files that only their
    owner can read.

    Args:
        sampled: hash only a sample of each large file, in parts that are spread evenly over the file.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path != folder / MANIFEST]
    files = [path for path in paths if path.is_file()]
    for path in files:
        path.chmod(path.parent.stat().st_mode & 0o666)
    with ThreadPoolExecutor(NUM_SAVING_THREADS) as pool:
        flushes = [pool.submit(fsync, path) for path in paths]
        fingerprints = pool.map(partial(_fingerprint, sampled=sampled), files)
        manifest = {path.relative_to(folder).as_posix(): part for path, part in zip(files, fingerprints, strict=True)}
        for flush in flushes:
            flush.result()
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    fsync(folder / MANIFEST, folder)


@contextmanager
def manifest_update(folder: Path, name: str) -> Iterator[None]:
    """Allow the file `name` to change inside the block; if the process dies there, the manifest still matches.

    Inside the block, the manifest does not list the file. No manifest is created if the folder does not have one.
    """
    path = folder / MANIFEST
    if not path.is_file():
        yield
        return
    manifest = json.loads(path.read_text("utf-8"))
    write_json(path, {key: value for key, value in manifest.items() if key != name})
    yield
    write_json(path, manifest | {name: _fingerprint(folder / name)})


def manifest_problem(folder: Path, *, sampled: bool = False) -> str | None:
    """Return the first mismatch between `folder` and its manifest (written with the same `sampled`), or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        if not manifest:
            return f"{MANIFEST} lists no files"
        for name, expected in manifest.items():
            size = (folder / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes, expected {expected['bytes']}"
            if _fingerprint(folder / name, sampled=sampled) != expected:
                return f"the hash of {name} does not match"
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{MANIFEST} cannot be read"
    return None


def files_outside_manifest(folder: Path) -> list[Path]:
    """Return the files in `folder` that its manifest does not list; none if it has no readable manifest."""
    try:
        listed = {*json.loads((folder / MANIFEST).read_text("utf-8")), MANIFEST}
    except (OSError, ValueError, TypeError, RecursionError):
        return []
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in files if path.relative_to(folder).as_posix() not in listed]


def hash_files(files: Mapping[str, Path]) -> str:
    """Return a hash of the names and contents of files."""
    fingerprints = {name: _fingerprint(files[name]) for name in sorted(files)}
    return hashlib.blake2b(json.dumps(fingerprints).encode(), digest_size=16).hexdigest()


def hash_data_files(state: hashlib.blake2b, paths: Sequence[Path]) -> None:
    """Update a hash with the contents of data files, and with their suffixes, which decide how they are read.

    Of files that have more than `MAX_HASHED_BYTES` together, it is updated with sizes, times of change and a sample of
    the contents.
    """
    is_large = sum(path.stat().st_size for path in paths) > MAX_HASHED_BYTES
    for path in paths:
        state.update("".join(path.suffixes[-2:]).encode())  # both suffixes of notes.jsonl.gz decide how it is read
        if is_large:
            status = path.stat()
            state.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        for part in _read_parts(path, sampled=is_large):
            state.update(part)


def _fingerprint(path: Path, *, sampled: bool = False) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=16)
    for part in _read_parts(path, sampled=sampled):
        digest.update(part)
    return {"bytes": path.stat().st_size, "blake2b": digest.hexdigest()}


def _read_parts(path: Path, *, sampled: bool) -> Iterator[bytes]:
    """Yield the contents of a file or, if it is large and `sampled`, parts of it at equal distances."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if not sampled or size <= MIN_SAMPLED_BYTES:
            while part := file.read(MEGABYTE):
                yield part
            return
        num_parts = math.ceil(max(MIN_SAMPLED_BYTES, SAMPLED_SHARE * size) / SAMPLE_BYTES)
        for index in range(num_parts):
            file.seek((size - SAMPLE_BYTES) * index // (num_parts - 1))
            yield file.read(SAMPLE_BYTES)

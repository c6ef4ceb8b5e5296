"""One process at a time works in a run folder."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bertcli.errors import RunFolderError

NAME = ".lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from working in `folder` until the block ends, or this process does, however it ends.

    On a disk that knows no locks nobody is kept out.

    Raises:
        RunFolderError: another process works in it.
    """
    path = folder / NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(descriptor, 200).decode("utf-8", "replace").strip() or "another process"
            raise RunFolderError(
                f"{folder} is being worked in by {owner}; wait until that is done, or choose another folder with --run"
            ) from error
        except OSError:
            yield
            return
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        try:
            yield
        finally:
            with suppress(OSError):  # the folder may be gone
                path.unlink()
    finally:
        os.close(descriptor)

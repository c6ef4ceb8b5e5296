"""Memory settings of the process: glibc's malloc, and Python's garbage collector during imports."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # from glibc's malloc.h
MAX_INT = 2**31 - 1
TOP_PAD_BYTES = 2**28


def retain_freed_memory() -> None:
    """Keep the memory of freed tensors in this process.

    Each training step allocates and frees the same hundreds of megabytes. If they were returned to the operating system
    in between, it would have to clear and map every page again, which takes a tenth of a step.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc only
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, MAX_INT)
        libc.mallopt(M_TOP_PAD, TOP_PAD_BYTES)


def trim_memory() -> None:
    """Return all memory that this process no longer uses to the operating system.

    Otherwise, memory allocated by several threads and freed by another thread stays with the process and accumulates.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc only
        libc.malloc_trim(0)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause garbage collection while the block imports libraries, and exempt what they created from it for good.

    Torch and transformers create a million objects that live as long as the process. The collector would scan them many
    times during the imports, once more in each full collection and at exit; that takes a third of the time to predict
    one text. If torch is already imported, as in a caller's own program, nothing changes.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()

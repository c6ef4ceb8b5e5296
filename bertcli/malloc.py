"""Tune glibc's malloc: keep freed memory in the process, or return it to the operating system."""

from __future__ import annotations

import ctypes

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

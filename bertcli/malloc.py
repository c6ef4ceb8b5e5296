"""What the C library does with memory that is done with: kept for the next step, or given back to the system."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
LARGEST_INT = 2**31 - 1
BYTES_TAKEN_AT_ONCE = 2**28


def keep_memory() -> None:
    """Let this process keep the memory of tensors it is done with.

    Each training step makes and drops the same hundreds of megabytes. Given back to the system in between, every page
    of them is cleared and mapped anew, which takes a tenth of a step.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # of glibc
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
        libc.mallopt(M_TOP_PAD, BYTES_TAKEN_AT_ONCE)


def give_back_memory() -> None:
    """Give the system all that this process no longer uses.

    What several threads made and another one dropped would stay with the process, more of it each time.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # of glibc
        libc.malloc_trim(0)

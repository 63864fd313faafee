"""Keep a process small from its start on."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_UNCOLLECTED: Final[set[object]] = set()
"""One for each use of :func:`uncollected` that lasts."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""malloc.h."""


def settle() -> None:
    """Give back what importing and the start have left over, and let the collector leave what
    stays alone, so that pages which processes share stay shared.
    """
    gc.collect()
    give_back()
    gc.freeze()


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage meanwhile: where much is made that stays, and no cycles, the collector looks
    through all of it again and again and finds nothing. Uses may overlap; the last one that ends has
    the collector work again.
    """
    use = object()
    _UNCOLLECTED.add(use)
    gc.disable()
    try:
        yield
    finally:
        _UNCOLLECTED.discard(use)
        if not _UNCOLLECTED:
            gc.enable()


def keep_free(most: int) -> None:
    """Have malloc keep up to *most* bytes free at the end of its heap, and make blocks of up to a quarter of that
    there (mallopt(3)).

    Who makes and frees megabytes all the time has the kernel clear every page of them anew otherwise.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(_M_MMAP_THRESHOLD, most // 4)
        libc.mallopt(_M_TRIM_THRESHOLD, most)


def give_back() -> None:
    """Give what lies free in the heap back to the kernel, by malloc_trim(3): 0.1 to 1.5 ms.

    After imports that is 0.9 MB, of what modules were compiled and read with.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc; musl gives back by itself
        libc.malloc_trim(0)

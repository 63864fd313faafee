"""Reproducible random bytes, written in pieces of random sizes: both ends of a transfer can say what must arrive."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Iterator

BLOCK = 65536


def blocks(seed: int, size: int) -> Iterator[bytes]:
    """Yield the *size* bytes that *seed* stands for."""
    source = random.Random(seed)
    for at in range(0, size, BLOCK):
        yield source.randbytes(BLOCK)[: min(BLOCK, size - at)]


def digest(seed: int, size: int) -> str:
    """Return the SHA-256 of those bytes."""
    total = hashlib.sha256()
    for block in blocks(seed, size):
        total.update(block)
    return total.hexdigest()


def pieces(seed: int, size: int) -> Iterator[bytes]:
    """Yield the same bytes cut at random: single bytes, a few, and whole blocks."""
    source = random.Random(f"cuts of {seed}")
    for block in blocks(seed, size):
        at = 0
        while at < len(block):
            length = source.choice((1, source.randint(2, 100), source.randint(1000, 9000), BLOCK))
            yield block[at : at + length]
            at += length


async def pour(writer: asyncio.StreamWriter, seed: int, size: int) -> None:
    """Write the bytes of *seed* in random pieces."""
    for piece in pieces(seed, size):
        writer.write(piece)
        await writer.drain()


async def drink(reader: asyncio.StreamReader, size: int) -> str:
    """Read *size* bytes (or to the end) and return their SHA-256."""
    total = hashlib.sha256()
    left = size
    while left and (data := await reader.read(min(BLOCK, left))):
        total.update(data)
        left -= len(data)
    return total.hexdigest()

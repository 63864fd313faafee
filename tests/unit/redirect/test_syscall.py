"""Reading a map in chunks: large values make small chunks."""

from __future__ import annotations

import pytest

from nodeagent.redirect import syscall


@pytest.mark.parametrize(("value_bytes", "entries"), [(4, 4096), (120, 4096), (4096, 127), (1 << 20, 64)])
def test_a_chunk_takes_no_more_than_half_a_megabyte(
    monkeypatch: pytest.MonkeyPatch, value_bytes: int, entries: int
) -> None:
    def empty(command: int, attr: object) -> int:
        raise FileNotFoundError

    monkeypatch.setattr(syscall, "bpf", empty)
    ((_, keys, values),) = syscall._batches(0, 8, value_bytes, 4096)
    assert (len(keys), len(values)) == (8 * entries, value_bytes * entries)

"""Files in order, and by how they begin: as looking at all of them would find."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.logs.tail.files import OpenFile
from nodeagent.logs.tail.generation import ENOUGH
from nodeagent.logs.tail.heads import Heads, head_of
from nodeagent.logs.tail.in_order import InOrder

FILES = 6
CONTENTS = st.one_of(
    st.text("ab", max_size=8).map(str.encode),
    st.builds(
        lambda length, end: (b"x" * length)[: -len(end) or None] + end,
        st.sampled_from([200, 255, 256, 257, 511, 512, 513, 1024, 3000, ENOUGH, ENOUGH + 1, 2 * ENOUGH]),
        st.sampled_from([b"", b"y"]),
    ),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[OpenFile]]:
    folder: Path = tmp_path_factory.mktemp("heads")
    made: list[OpenFile] = []
    for number in range(FILES):
        (folder / str(number)).touch()
        made.append(OpenFile(os.open(folder / str(number), os.O_RDONLY), str(number), 0.0))
    yield made
    for each in made:
        each.close()


@given(contents=st.lists(st.tuples(st.integers(0, FILES - 1), st.none() | CONTENTS)), sought=CONTENTS)
def test_whatever_begins_alike_is_found(
    files: list[OpenFile], contents: list[tuple[int, bytes | None]], sought: bytes
) -> None:
    """None: the file is closed."""
    heads = Heads()
    there: dict[OpenFile, bytes] = {}
    for number, content in contents:
        if content is None:
            heads.drop(files[number])
            there.pop(files[number], None)
            continue
        heads.put(files[number], head_of(content), min(len(content), ENOUGH))
        there[files[number]] = content
    found = heads.alike(head_of(sought))
    assert len(found) == len(set(found))
    for file, content in there.items():
        shared = min(len(content), len(sought), ENOUGH)
        if content[:shared] == sought[:shared]:
            assert file in found
        short = min(shared, 256)
        if content[:short] != sought[:short]:
            assert file not in found
    assert set(found) <= set(there)


@pytest.mark.parametrize("level", [512, 1024, 2048, ENOUGH])
def test_what_differs_before_it_is_enough_is_told_apart_by_its_head(files: list[OpenFile], level: int) -> None:
    heads = Heads()
    heads.put(files[0], head_of(b"x" * 2 * ENOUGH), ENOUGH)
    sought = b"x" * (level - 1)
    assert heads.alike(head_of(sought)) == [files[0]]
    assert heads.alike(head_of(sought + b"y")) == []


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, FILES - 1))), ages=st.permutations(range(FILES)))
def test_files_are_in_order_however_they_come_and_go(
    files: list[OpenFile], steps: list[tuple[bool, int]], ages: list[int]
) -> None:
    for file, age in zip(files, ages, strict=True):
        file.place = (age % 2 == 0, age // 2, 0.0, age)
    row = InOrder()
    there: set[int] = set()
    for comes, number in steps:
        if comes:
            row.add(files[number])
            there.add(number)
        else:
            row.discard(files[number])
            there.discard(number)
        expected = sorted((files[each] for each in there), key=lambda file: file.place)
        assert list(row) == expected
        assert len(row) == len(there)
        assert [each for each in files if each in row] == [files[each] for each in sorted(there)]
        for at, each in enumerate(expected):
            assert row.before(each) == expected[:at]
            assert row.after(each) == expected[at + 1 :]

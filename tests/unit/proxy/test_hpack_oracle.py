"""HPACK against a second implementation, the package ``hpack``: what one writes the other reads, and
of what nobody should have written both say the same.
"""

from __future__ import annotations

from typing import Final

import hpack
import pytest
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nodeagent.proxy.http2.hpack import huffman
from nodeagent.proxy.http2.hpack.decoder import Decoder
from nodeagent.proxy.http2.hpack.encoder import Encoder
from nodeagent.proxy.http2.hpack.errors import CompressionError
from nodeagent.proxy.http2.hpack.integers import written

Fields = list[tuple[bytes, bytes]]

MAX_LIST: Final = 1 << 20
NAMES = st.sampled_from(
    [
        *(b":method", b":path", b":status", b"accept", b"authorization", b"cookie", b"content-length", b"date"),
        *(b"te", b"user-agent", b"x-request-id", b"x-own", b"grpc-timeout"),
    ]
) | st.binary(max_size=40)
VALUES = (
    st.sampled_from([b"GET", b"/", b"200", b"", b"trailers", b"v" * 2000, b"w" * 4064, b"x" * 5000])
    | st.binary(max_size=300)
    | st.text("0123456789abcdef-/", max_size=60).map(str.encode)
)
LISTS = st.lists(st.tuples(NAMES, VALUES), max_size=12)
SIZES = st.sampled_from([0, 33, 60, 100, 300, 1000, 4095, 4096, 65536])


def oracle() -> hpack.Decoder:
    return hpack.Decoder(max_header_list_size=MAX_LIST)


def told(reader: hpack.Decoder, block: bytes) -> Fields:
    return [(bytes(name), bytes(value)) for name, value in reader.decode(block, raw=True)]


def test_every_symbol_has_the_same_code() -> None:
    assert list(huffman.LENGTHS) == REQUEST_CODES_LENGTH
    for symbol in range(256):
        length = REQUEST_CODES_LENGTH[symbol]
        padding = -length % 8
        code = REQUEST_CODES[symbol] << padding | (1 << padding) - 1
        assert huffman.decode(code.to_bytes((length + padding) // 8, "big")) == bytes((symbol,))


@given(st.lists(st.one_of(LISTS, SIZES), max_size=20))
def test_it_reads_what_we_write(steps: list[Fields | int]) -> None:
    writer = Encoder()
    reader = oracle()
    ours = Decoder(4096, MAX_LIST)
    for step in [*steps, *steps]:
        if isinstance(step, int):
            writer.resize(step)
        else:
            block = writer.encode(step)
            assert told(reader, block) == step
            assert ours.decode(block) == step
        assert ours.table.size == reader.header_table._current_size


@given(st.lists(st.one_of(LISTS, SIZES.filter(lambda size: size <= 4096)), max_size=20), st.booleans())
def test_we_read_what_it_writes(steps: list[Fields | int], compressed: bool) -> None:
    writer = hpack.Encoder()
    reader = Decoder(4096, MAX_LIST)
    told_size = True
    for step in [*steps, *steps]:
        if isinstance(step, list):
            assert reader.decode(writer.encode(step, huffman=compressed)) == step
            told_size = True
        elif told_size:  # it tells every size between two blocks, and more than two are refused
            writer.header_table_size = step
            told_size = False


@given(st.binary(max_size=80))
@example(b"\xff\xff\xff\xff")
@example(b"\xff")
@example(bytes.fromhex("fffffff0"))
def test_huffman_codes_of_all_kinds(text: bytes) -> None:
    try:
        expected = bytes(hpack.huffman_table.decode_huffman(text))
    except hpack.HPACKDecodingError:
        with pytest.raises(CompressionError):
            huffman.decode(text)
    else:
        assert huffman.decode(text) == expected


def _literal(first: int, index: int, name: bytes, value: bytes) -> bytes:
    prefix = 0x3F if first == 0x40 else 0x0F
    head = written(index, first, prefix)
    if index == 0:
        head += written(len(name) & 0x7F, 0, 0x7F) + name[: len(name) & 0x7F]
    return head + written(len(value), 0, 0x7F) + value


INDICES = st.integers(0, 70) | st.sampled_from([0, 1, 61, 62, 63, 126, 127, 128, 255, 2**28, 2**32 - 1])
PIECES = st.one_of(
    INDICES.map(lambda index: written(index, 0x80, 0x7F)),
    st.builds(_literal, st.sampled_from([0x40, 0x00, 0x10]), INDICES, st.binary(max_size=8), st.binary(max_size=40)),
    st.integers(0, 4200).map(lambda size: written(size, 0x20, 0x1F)),
    st.binary(min_size=1, max_size=6),
)
"""Representations of section 6, and bytes that are none."""


@settings(max_examples=500)
@given(st.lists(st.lists(PIECES, max_size=6).map(b"".join), max_size=6))
@example([b"\x40\x01a\x01b", b"\xbe", b"\x20\x3f\x03", b"\xbe"])
def test_the_same_verdict_on_any_bytes(blocks: list[bytes]) -> None:
    reader = oracle()
    ours = Decoder(4096, MAX_LIST)
    for block in blocks:
        try:
            found = ours.decode(block)
        except CompressionError as error:
            if "too often" not in str(error):
                with pytest.raises(hpack.HPACKDecodingError):
                    told(reader, block)
            return
        assert told(reader, block) == found
        assert ours.table.size == reader.header_table._current_size
        assert ours.decode(b"") == []

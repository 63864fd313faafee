"""HPACK as RFC 7541 has it: the examples of its appendix C, and what every implementation must refuse."""

from __future__ import annotations

import pytest

from nodeagent.proxy.http2.hpack import huffman
from nodeagent.proxy.http2.hpack.decoder import Decoder
from nodeagent.proxy.http2.hpack.encoder import Encoder
from nodeagent.proxy.http2.hpack.errors import CompressionError, ListTooLarge
from nodeagent.proxy.http2.hpack.integers import read_rest, written
from nodeagent.proxy.http2.hpack.secret import NeverIndexed

GET = (b":method", b"GET")
HTTP = (b":scheme", b"http")
SLASH = (b":path", b"/")
EXAMPLE = (b":authority", b"www.example.com")
NO_CACHE = (b"cache-control", b"no-cache")
PRIVATE = (b"cache-control", b"private")
FIRST_DATE = (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT")
LATER_DATE = (b"date", b"Mon, 21 Oct 2013 20:13:22 GMT")
LOCATION = (b"location", b"https://www.example.com")
COOKIE = (b"set-cookie", b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1")
TABLE_OF_256 = "3fe101"

REQUESTS = (
    [GET, HTTP, SLASH, EXAMPLE],
    [GET, HTTP, SLASH, EXAMPLE, NO_CACHE],
    [GET, (b":scheme", b"https"), (b":path", b"/index.html"), EXAMPLE, (b"custom-key", b"custom-value")],
)
RESPONSES = (
    [(b":status", b"302"), PRIVATE, FIRST_DATE, LOCATION],
    [(b":status", b"307"), PRIVATE, FIRST_DATE, LOCATION],
    [(b":status", b"200"), PRIVATE, LATER_DATE, LOCATION, (b"content-encoding", b"gzip"), COOKIE],
)
EXAMPLES = {
    "C.3 requests": (
        REQUESTS,
        "828684410f7777772e6578616d706c652e636f6d",
        "828684be58086e6f2d6361636865",
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
    ),
    "C.4 requests with Huffman's code": (
        REQUESTS,
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
    ),
    "C.5 responses": (
        RESPONSES,
        TABLE_OF_256 + "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54"
        "6e1768747470733a2f2f7777772e6578616d706c652e636f6d",
        "4803333037c1c0bf",
        (
            "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a4b"
            "48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31"
        ),
    ),
    "C.6 responses with Huffman's code": (
        RESPONSES,
        TABLE_OF_256 + "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97"
        "c8e9ae82ae43d3",
        "4883640effc1c0bf",
        (
            "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af"
            "27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007"
        ),
    ),
}


def decoder(max_list: int = 65536, max_fields: int = 100) -> Decoder:
    return Decoder(4096, max_list, max_fields)


def read(text: str) -> list[tuple[bytes, bytes]]:
    return decoder().decode(bytes.fromhex(text))


# -- appendix C --


@pytest.mark.parametrize(("value", "form", "prefix", "text"), [(10, 0, 31, "0a"), (1337, 0, 31, "1f9a0a")])
def test_integers_of_appendix_c(value: int, form: int, prefix: int, text: str) -> None:
    assert written(value, form, prefix).hex() == text


@pytest.mark.parametrize("prefix", [0x0F, 0x1F, 0x3F, 0x7F])
@pytest.mark.parametrize("value", [0, 1, 14, 15, 31, 62, 63, 126, 127, 128, 254, 255, 4096, 65536, 2**32 - 1])
def test_integers_come_back(value: int, prefix: int) -> None:
    text = written(value, 0x80, prefix) + b"rest"
    if value < prefix:
        assert text == bytes((0x80 | value,)) + b"rest"
    else:
        assert text[0] == 0x80 | prefix
        assert read_rest(text, 1, prefix) == (value, len(text) - 4)


@pytest.mark.parametrize(
    ("text", "field", "size"),
    [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", (b"custom-key", b"custom-header"), 55),
        ("040c2f73616d706c652f70617468", (b":path", b"/sample/path"), 0),
        ("100870617373776f726406736563726574", (b"password", b"secret"), 0),
        ("82", GET, 0),
    ],
)
def test_single_fields_of_appendix_c(text: str, field: tuple[bytes, bytes], size: int) -> None:
    reader = decoder()
    assert reader.decode(bytes.fromhex(text)) == [field]
    assert reader.table.size == size


@pytest.mark.parametrize("example", EXAMPLES)
def test_rows_of_blocks_of_appendix_c(example: str) -> None:
    lists, *blocks = EXAMPLES[example]
    reader = decoder()
    sizes = []
    for expected, block in zip(lists, blocks, strict=True):
        assert reader.decode(bytes.fromhex(block)) == expected
        sizes.append(reader.table.size)
    assert sizes == ([57, 110, 164] if "requests" in example else [222, 222, 215])


# -- Huffman's code --


def test_the_code_is_complete() -> None:
    """Kraft's sum: every row of bits begins with the code of some symbol."""
    assert sum(2.0**-length for length in huffman.LENGTHS) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ffffffff", "EOS"),  # EOS, and its padding
        ("ff", "padding"),  # eight bits of it
        ("f8ff", "padding"),  # & and eight bits
        ("00", "padding"),  # 0 and three bits of zeros
        ("1c64ffff", "padding"),
    ],
)
def test_huffman_codes_without_an_end_are_refused(text: str, why: str) -> None:
    with pytest.raises(CompressionError, match=why):
        huffman.decode(bytes.fromhex(text))


# -- what is refused --


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("80", "index 0"),
        ("be", "index 62"),
        ("ffffffffff0f", "index 4294967422"),
        ("7f00", "index 63"),
        ("0f30", "index 63"),
        ("ff80808080808000", "more than six bytes"),
        ("ff8080", "inside an integer"),
        ("0f", "inside an integer"),
        ("7f", "inside an integer"),
        ("3f", "inside an integer"),
        ("00", "before a string"),
        ("0001", "inside a string"),
        ("000161", "before a string"),
        ("00016102", "inside a string"),
        ("007fffffffff0f61", "inside a string"),
        ("0001617f", "inside an integer"),
        ("0001618100", "padding"),
        ("3fe21f", "4097 bytes"),
        ("8220", "after a field"),
        ("20203f00", "too often"),
        ("202020", "too often"),
    ],
)
def test_blocks_that_are_refused(text: str, why: str) -> None:
    with pytest.raises(CompressionError, match=why):
        read(text)


def test_a_table_below_the_first_size_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="4096"):
        Decoder(4095, 65536)


# -- the table's size --


def test_a_smaller_table_loses_its_oldest_fields() -> None:
    reader = decoder()
    reader.decode(b"\x40\x01a\x01b\x40\x01c\x01d")
    assert reader.decode(b"\x3f\x03\xbe") == [(b"c", b"d")]  # 34 bytes
    with pytest.raises(CompressionError, match="index 63"):
        reader.decode(b"\xbf")


def test_a_field_larger_than_the_table_empties_it() -> None:
    reader = decoder()
    reader.decode(b"\x40\x01a\x01b")
    assert reader.decode(b"\x3f\x21\x40\x01c\x20" + b"d" * 32) == [(b"c", b"d" * 32)]  # 64 bytes
    assert reader.table.size == 0
    with pytest.raises(CompressionError, match="index 62"):
        reader.decode(b"\xbe")


def test_the_peer_hears_of_a_table_that_was_smaller_meanwhile() -> None:
    writer = Encoder()
    reader = decoder()
    for _ in range(3):
        reader.decode(writer.encode([(b"a", b"b")]))
    assert reader.table.size == 34
    writer.resize(0)
    writer.resize(2**32 - 1)
    assert writer.encode([GET]).hex() == "203fe11f82"
    writer.resize(100)
    assert writer.encode([GET]).hex() == "3f4582"
    assert writer.encode([GET]).hex() == "82"


def test_no_table_means_that_nothing_is_put_in() -> None:
    writer = Encoder()
    writer.resize(0)
    blocks = [writer.encode([(b"a", b"b")]) for _ in range(4)]
    assert blocks == [b"\x20\x00\x01a\x01b"] + [b"\x00\x01a\x01b"] * 3


# -- lists that are too large --


def test_a_list_that_is_too_large_leaves_the_table_right() -> None:
    reader = decoder(max_list=99)
    with pytest.raises(ListTooLarge, match="99 bytes"):
        reader.decode(b"\x40\x01a\x40" + b"b" * 64 + b"\x40\x01c\x01d")
    assert reader.decode(b"\xbe") == [(b"c", b"d")]
    assert reader.decode(b"\xbf") == [(b"a", b"b" * 64)]


def test_fields_are_counted() -> None:
    reader = decoder(max_fields=3)
    assert len(reader.decode(b"\x82" * 3)) == 3
    with pytest.raises(ListTooLarge, match="more than 3 fields"):
        reader.decode(b"\x82" * 4)


def test_the_list_is_counted_with_32_bytes_a_field() -> None:
    assert decoder(max_list=42).decode(b"\x82") == [GET]
    with pytest.raises(ListTooLarge):
        decoder(max_list=41).decode(b"\x82")


# -- what is remembered --


def test_a_block_is_looked_up_only_while_its_table_is_the_same() -> None:
    reader = decoder()
    reader.decode(b"\x40\x01a\x01b")
    first = reader.decode(b"\xbe")
    assert reader.decode(b"\xbe") is first
    reader.decode(b"\x40\x01c\x01d")
    assert reader.decode(b"\xbe") == [(b"c", b"d")]
    assert reader.decode(b"\xbf") == [(b"a", b"b")]


def test_a_block_is_forgotten_when_a_list_too_large_changed_the_table() -> None:
    reader = decoder(max_list=100)
    reader.decode(b"\x40\x01a\x01b")
    assert reader.decode(b"\xbe") == [(b"a", b"b")]
    with pytest.raises(ListTooLarge):
        reader.decode(b"\x40\x01c\x01d" + b"\xbe" * 3)
    assert reader.decode(b"\xbe") == [(b"c", b"d")]


def test_a_block_is_forgotten_with_the_size_of_the_table() -> None:
    reader = decoder()
    reader.decode(b"\x40\x01a\x01b")
    reader.decode(b"\xbe")
    reader.decode(b"\x20")
    with pytest.raises(CompressionError, match="index 62"):
        reader.decode(b"\xbe")


# -- what the encoder puts into the peer's table --


def settled(*fields: tuple[bytes, bytes]) -> bytes:
    """Return the block in the end of a connection on which *fields* are sent again and again."""
    writer = Encoder()
    for _ in range(3):
        writer.encode(fields)
    return writer.encode(fields)


def test_what_comes_again_is_a_number() -> None:
    assert settled(GET, EXAMPLE, (b"user-agent", b"grpc-go/1.80")).hex() == "82bfbe"


@pytest.mark.parametrize(
    "field",
    [
        (b"authorization", b"Bearer of.good.news, and a long one at that"),
        (b"proxy-authorization", b"Basic b2Zmb2Zmb2Zm"),
        (b"authorization", b""),
        (b"cookie", b"id=7"),
        (b"x-token", NeverIndexed(b"as the client wrote it")),
        (b":path", NeverIndexed(b"/")),
    ],
)
def test_secrets_are_never_indexed(field: tuple[bytes, bytes]) -> None:
    block = settled(field)
    assert block[0] & 0xF0 == 0x10
    (told,) = decoder().decode(block)
    assert told == field
    assert type(told[1]) is NeverIndexed


def test_a_secret_that_another_one_sent_openly_stays_one() -> None:
    writer = Encoder()
    for _ in range(3):
        writer.encode([(b"x-token", b"abc")])
    assert writer.encode([(b"x-token", b"abc")]) == b"\xbe"
    assert writer.encode([(b"x-token", NeverIndexed(b"abc"))])[0] == 0x10


def test_long_cookies_are_put_in() -> None:
    assert len(settled((b"cookie", b"session=" + b"a" * 32))) == 1


@pytest.mark.parametrize("name", [b"x-request-id", b"traceparent", b"x-b3-traceid", b"content-length", b"date"])
def test_what_differs_each_time_is_not_put_in(name: bytes) -> None:
    assert settled((name, b"0123456789"))[0] & 0xF0 == 0


def test_unknown_ids_do_not_push_out_what_repeats() -> None:
    writer = Encoder()
    reader = decoder()
    kept = (b"user-agent", b"grpc-go/1.80")
    for number in range(1000):
        reader.decode(writer.encode([kept, (b"x-own-id", b"%d" % number)]))
    assert writer.encode([kept]) == b"\xbe"
    assert reader.table.size == 32 + len(b"".join(kept))


def test_a_field_of_half_the_table_is_not_put_in() -> None:
    assert settled((b"a", b"b" * 2016))[0] == 0
    assert settled((b"a", b"b" * 2015)) == b"\xbe"


# -- what a peer can make both sides hold --


@pytest.mark.parametrize("value", [b"", b"x" * 100, b"x" * 4000])
def test_a_table_that_is_thrashed_holds_no_more_than_its_size(value: bytes) -> None:
    reader = decoder()
    for number in range(10_000):
        name = b"%d" % number
        inserted = bytes((0x40, len(name))) + name + written(len(value), 0, 0x7F) + value
        reader.decode(inserted)
        assert reader.decode(b"\xbe") == [(name, value)]
    held = [field for field in reader.table._fields if field]
    assert sum(len(b"".join(field)) + 32 for field in held) == reader.table.size <= 4096
    assert len(reader.table._fields) <= 4096 // 32 + 65
    assert list(reader._seen) == [b"\xbe"]


def test_remembered_blocks_are_bounded() -> None:
    reader = decoder()
    for number in range(10_000):
        name = b"%d" % number
        assert reader.decode(bytes((0x00, len(name))) + name + b"\x01x") == [(name, b"x")]
    assert sum(map(len, reader._seen)) <= 2048
    long = b"\x00\x01a" + written(4000, 0, 0x7F) + b"x" * 4000
    assert reader.decode(long) is not reader.decode(long)


def test_an_encoder_remembers_no_more_than_the_table() -> None:
    writer = Encoder()
    for number in range(10_000):
        fields = [GET, (b"x-own-id", b"%d" % number)]
        for _ in range(3):
            writer.encode(fields)
    assert len(writer._known) <= 4096 // 32 + 1
    assert len(writer._met) <= 64

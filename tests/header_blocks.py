"""What HPACK costs a header block: ``python -m tests.header_blocks``.

The heads are those of real programs, sent again and again on one connection, as each program's own
encoder writes them once it has warmed up: grpc-go and browsers put all into the table, nghttp2
(curl) no path. Told are microseconds a block on this machine, the least of many rounds, for this
project's coder and for the package ``hpack``. Compiled (``make setup``) or not, as the tree is.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Final

import hpack

from nodeagent.proxy.http2.hpack.decoder import Decoder
from nodeagent.proxy.http2.hpack.encoder import Encoder

Head = list[tuple[bytes, bytes]]

BLOCKS: Final = 100
"""In a round."""
ROUNDS: Final = 100

CURL: Final = [
    (b":method", b"GET"),
    (b":scheme", b"http"),
    (b":authority", b"web.default.svc.cluster.local"),
    (b":path", b"/items/17?full=1"),
    (b"user-agent", b"curl/8.5.0"),
    (b"accept", b"*/*"),
]
BROWSER: Final = [
    (b":method", b"GET"),
    (b":authority", b"shop.example.com"),
    (b":scheme", b"https"),
    (b":path", b"/api/cart?currency=EUR"),
    (b"sec-ch-ua-platform", b'"Linux"'),
    (
        b"user-agent",
        b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
    ),
    (b"accept", b"application/json, text/plain, */*"),
    (b"sec-ch-ua", b'"Chromium";v="140", "Not=A?Brand";v="24", "Google Chrome";v="140"'),
    (b"sec-ch-ua-mobile", b"?0"),
    (b"sec-fetch-site", b"same-origin"),
    (b"sec-fetch-mode", b"cors"),
    (b"sec-fetch-dest", b"empty"),
    (b"referer", b"https://shop.example.com/cart"),
    (b"accept-encoding", b"gzip, deflate, br, zstd"),
    (b"accept-language", b"en-US,en;q=0.9"),
    (b"cookie", b"shop_session-id=9f4c2f6e-7b0a-4d53-a0c6-1f2d3e4c5b6a"),
    (b"priority", b"u=1, i"),
]
GRPC: Final = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/helloworld.Greeter/SayHello"),
    (b":authority", b"greeter.default.svc.cluster.local:50051"),
    (b"content-type", b"application/grpc"),
    (b"user-agent", b"grpc-go/1.80.0"),
    (b"te", b"trailers"),
]
GRPCIO: Final = [
    *GRPC[:4],
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
    (b"user-agent", b"grpc-python/1.85.1 grpc-c/52.0.0 (linux; chttp2)"),
    (b"grpc-accept-encoding", b"identity, deflate, gzip"),
]
ANSWER: Final = [
    (b":status", b"200"),
    (b"content-type", b"application/json"),
    (b"date", b"Thu, 01 Jan 2026 00:00:00 GMT"),
    (b"server", b"app"),
    (b"content-length", b"1024"),
]
GRPC_ANSWER: Final = [(b":status", b"200"), (b"content-type", b"application/grpc")]
GRPC_END: Final = [(b"grpc-status", b"0"), (b"grpc-message", b"")]

UUID: Final = b"8f2f3c54-7a35-4a8e-a1c5-0d6f0e%06x"
TRACE: Final = b"00-4bf92f3577b34da6a3ce929d0e%06x-00f067aa0ba902b7-01"


def _with_ids(number: int) -> Head:
    return [
        *GRPCIO,
        (b"x-request-id", UUID % number),
        (b"traceparent", TRACE % number),
        (b"x-forwarded-proto", b"http"),
        (b"x-envoy-attempt-count", b"1"),
    ]


HEADS: Final[dict[str, Callable[[int], Head]]] = {
    "curl": lambda _: CURL,
    "browser": lambda _: BROWSER,
    "grpc-go": lambda _: GRPC,
    "grpc-go, deadline": lambda number: [*GRPC, (b"grpc-timeout", b"%du" % (900000 + number))],
    "grpcio": lambda _: GRPCIO,
    "grpcio, ids of a mesh": _with_ids,
    "answer": lambda _: ANSWER,
    "grpc answer": lambda _: GRPC_ANSWER,
    "grpc trailers": lambda _: GRPC_END,
}
"""Who sends, and what as the block of that number."""


def _least(run: Callable[[int], object], start: int) -> float:
    """Return what one call of *run* costs, in microseconds, at the best of many times."""
    numbers = itertools.count(start)
    rounds: list[float] = []
    for _ in range(ROUNDS):
        each = list(itertools.islice(numbers, BLOCKS))
        started = perf_counter()
        for number in each:
            run(number)
        rounds.append(perf_counter() - started)
    return 1e6 * min(rounds) / BLOCKS


def _decoding(heads: list[Head], reader: Callable[[bytes], object]) -> float:
    writer = hpack.Encoder()
    blocks = [writer.encode(head) for head in heads]
    warm = len(blocks) - BLOCKS * ROUNDS
    for block in blocks[:warm]:
        reader(block)
    return _least(lambda number: reader(blocks[number]), warm)


def _encoding(heads: list[Head], writer: Callable[[Head], object]) -> float:
    warm = len(heads) - BLOCKS * ROUNDS
    for head in heads[:warm]:
        writer(head)
    return _least(lambda number: writer(heads[number]), warm)


def main() -> None:
    """Print a line a head: reading by both, writing by both."""
    sys.stdout.write(f"{'µs a block':<24} {'read':>6} {'hpack':>7} {'write':>7} {'hpack':>7}\n")
    for name, head in HEADS.items():
        heads = [head(number) for number in range(BLOCKS * (ROUNDS + 1))]
        theirs = hpack.Decoder()
        told = (
            _decoding(heads, Decoder(4096, 65536).decode),
            _decoding(heads, lambda block, reader=theirs: reader.decode(block, raw=True)),  # type: ignore[misc]
            _encoding(heads, Encoder().encode),
            _encoding(heads, hpack.Encoder().encode),
        )
        sys.stdout.write(f"{name:<24} {told[0]:6.2f} {told[1]:7.2f} {told[2]:7.2f} {told[3]:7.2f}\n")


if __name__ == "__main__":
    main()

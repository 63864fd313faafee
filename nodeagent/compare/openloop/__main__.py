"""Put open-loop load on an HTTP/1.1 server and print one JSON line. Latencies are counted from the
moment a request was due.
"""

from __future__ import annotations

import argparse
import json
import sys

from nodeagent.compare.openloop.client import run
from nodeagent.compare.openloop.target import METHODS, HttpTarget
from nodeagent.errors import NodeagentError


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m nodeagent.compare.openloop", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--url", required=True, help="http://host:port/path")
    parser.add_argument("--rate", type=float, required=True, help="requests/s, at most 200000")
    parser.add_argument("--connections", type=int, default=32, help="(default 32)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of requests that are counted (default 10)")
    parser.add_argument(
        "--warmup", type=float, default=0.0, help="seconds of requests before that, which are not (default 0)"
    )
    parser.add_argument(
        "--timeout", type=float, default=5.0, help="seconds after which a request that was sent is given up (default 5)"
    )
    parser.add_argument("--method", default="GET", choices=METHODS)
    parser.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="'Connection: close' opens a connection for each request",
    )
    arguments = parser.parse_args()
    for name, least, most in (
        ("rate", 0.1, 200_000),
        ("connections", 1, 10_000),
        ("seconds", 0.1, 3600),
        ("warmup", 0, 600),
        ("timeout", 0.1, 600),
    ):
        if not least <= getattr(arguments, name) <= most:
            parser.error(f"--{name}: {getattr(arguments, name)}: allowed: {least} to {most}")
    return arguments


def main() -> int:
    arguments = _arguments()
    try:
        target = HttpTarget.parse(arguments.url, arguments.method, arguments.header)
        result = run(
            target, arguments.rate, arguments.connections, arguments.seconds, arguments.warmup, arguments.timeout
        )
    except NodeagentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

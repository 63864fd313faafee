"""A rate limit service (envoy.service.ratelimit.v3) for tests, also as a program: ``python
tests/fakes/rate_limit.py --port N --limit 3``.

Counts each descriptor of each domain and says OVER_LIMIT after ``--limit`` requests with it. Prints
one JSON line a call, and "ready" with its port when it listens.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections import Counter
from pathlib import Path

import grpc

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from nodeagent.protocols.envoy_ratelimit_pb2 import RateLimitRequest, RateLimitResponse
from tests.fakes.serving import Method, serve

METHOD = Method("envoy.service.ratelimit.v3.RateLimitService", "ShouldRateLimit", RateLimitRequest, RateLimitResponse)


class Counting:
    """Answers as the reference service does with one quota an hour for every descriptor."""

    def __init__(self, limit: int) -> None:
        self._limit, self._seen, self._lock = limit, Counter[str](), threading.Lock()

    def __call__(self, request: RateLimitRequest, context: grpc.ServicerContext) -> RateLimitResponse:
        answer = RateLimitResponse(overall_code=RateLimitResponse.OK)
        for descriptor in request.descriptors:
            key = json.dumps([request.domain, *((entry.key, entry.value) for entry in descriptor.entries)])
            with self._lock:
                self._seen[key] += request.hits_addend or 1
                seen = self._seen[key]
            code = RateLimitResponse.OVER_LIMIT if seen > self._limit else RateLimitResponse.OK
            status = answer.statuses.add(code=code, limit_remaining=max(0, self._limit - seen))
            status.current_limit.requests_per_unit, status.current_limit.unit = (
                self._limit,
                RateLimitResponse.RateLimit.HOUR,
            )
            status.duration_until_reset.seconds = 1800
            if code == RateLimitResponse.OVER_LIMIT:
                answer.overall_code = code
        return answer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--address", default="0.0.0.0")
    parser.add_argument("--limit", type=int, default=3)
    options = parser.parse_args()
    counting = Counting(options.limit)
    printing = threading.Lock()

    def answer(request: RateLimitRequest, context: grpc.ServicerContext) -> RateLimitResponse:
        result = counting(request, context)
        descriptors = [[[entry.key, entry.value] for entry in descriptor.entries] for descriptor in request.descriptors]
        line = {
            "over_limit": result.overall_code == RateLimitResponse.OVER_LIMIT,
            "domain": request.domain,
            "descriptors": descriptors,
        }
        with printing:
            print(json.dumps(line), flush=True)
        return result

    server, port = serve(METHOD, answer, f"{options.address}:{options.port}")
    print(f"ready {port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()

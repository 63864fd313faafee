"""Local rate limits: what a bucket gives, to whom, and what it never gives."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.policy.authorization_facts import RequestFacts
from nodeagent.policy.model import LocalLimit, RateLimit, TokenBucket
from nodeagent.policy.rate_limit import RateLimiter


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def request(method: str = "GET", path: str = "/", headers: Mapping[str, str] = {}) -> RequestFacts:
    return RequestFacts(method, path, "web", headers.get)


def limit(
    size: int = 2, per_fill: int = 1, seconds: float = 1.0, **more: tuple[str, ...] | tuple[tuple[str, str], ...]
) -> LocalLimit:
    return LocalLimit(TokenBucket(size, per_fill, seconds), **more)  # type: ignore[arg-type]


def limiter(
    clock: Clock, *limits: LocalLimit, share: float = 1.0, previous: RateLimiter | None = None, max_buckets: int = 100
) -> RateLimiter:
    return RateLimiter.compile(
        [RateLimit("shop", "calm", limits)], clock, share=share, previous=previous, max_buckets=max_buckets
    )


def passed(
    subject: RateLimiter, count: int, asked: RequestFacts | None = None, principal: str = "", pod: str = ""
) -> int:
    return sum(subject.take(asked or request(), principal, pod) is None for _ in range(count))


def test_a_bucket_starts_full_and_fills_by_interval() -> None:
    clock = Clock()
    subject = limiter(clock, limit(3, 2, 10))
    assert passed(subject, 5) == 3
    clock.now += 9.99
    assert passed(subject, 1) == 0
    clock.now += 0.02
    assert passed(subject, 5) == 2
    clock.now += 1000
    assert passed(subject, 9) == 3, "never more than its size"


def test_a_refusal_says_what_envoy_says() -> None:
    clock = Clock()
    subject = limiter(clock, limit(1, 1, 60))
    assert subject.take(request(), "", "") is None
    clock.now += 18.5
    limited = subject.take(request(), "", "")
    assert limited is not None
    assert limited.policy == "shop/calm"
    assert dict(limited.headers) == {"x-ratelimit-limit": "1", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "42"}
    clock.now += 0.1
    assert subject.take(request(), "", "") is limited, "shared while the words are the same"
    clock.now += 1
    assert dict(subject.take(request(), "", "").headers)["x-ratelimit-reset"] == "41"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("scope", "asked", "matches"),
    [
        ({}, request(), True),
        ({"methods": ("GET", "PUT")}, request("PUT"), True),
        ({"methods": ("GET",)}, request("get"), False),
        ({"paths": ("/a",)}, request(path="/a?x=1"), True),
        ({"paths": ("/a",)}, request(path="/a/"), False),
        ({"paths": ("/a",)}, request(path="/a?b"), True),
        ({"paths": ("/a*",)}, request(path="/abc"), True),
        ({"paths": ("*.png",)}, request(path="/x/y.png"), True),
        ({"paths": ("*.png",)}, request(path="/x/y.jpg"), False),
        ({"paths": ("*",)}, request(path="/any"), True),
        ({"headers": (("x-tier", "free"),)}, request(headers={"x-tier": "free"}), True),
        ({"headers": (("x-tier", "free"),)}, request(headers={"x-tier": "freed"}), False),
        ({"headers": (("x-tier", "fr*"),)}, request(headers={"x-tier": "freed"}), True),
        ({"headers": (("x-tier", "*ed"),)}, request(headers={"x-tier": "freed"}), True),
        ({"headers": (("x-tier", "*"),)}, request(headers={"x-tier": ""}), True),
        ({"headers": (("x-tier", "*"),)}, request(), False),
        ({"methods": ("GET",), "paths": ("/a",)}, request("PUT", "/a"), False),
    ],
)
def test_which_requests_a_limit_is_for(scope: dict[str, tuple[str, ...]], asked: RequestFacts, matches: bool) -> None:
    assert passed(limiter(Clock(), limit(1, **scope)), 2, asked) == (1 if matches else 2)


@pytest.mark.parametrize(
    ("by", "first", "second"),
    [
        ("principal", (request(), "td/ns/a/sa/x", ""), (request(), "td/ns/a/sa/y", "")),
        ("pod", (request(), "same", "a/one"), (request(), "same", "a/two")),
        ("path", (request(path="/a"), "", ""), (request(path="/b"), "", "")),
        ("header:x-user", (request(headers={"x-user": "ann"}), "", ""), (request(headers={"x-user": "bob"}), "", "")),
        (
            "header:x-user",
            (request(headers={"x-user": "a" * 500}), "", ""),
            (request(headers={"x-user": "a" * 501}), "", ""),
        ),
        ("header:x-user", (request(headers={"x-user": "ann"}), "", ""), (request(), "", "")),
    ],
)
def test_each_value_has_a_bucket_of_its_own(
    by: str, first: tuple[RequestFacts, str, str], second: tuple[RequestFacts, str, str]
) -> None:
    subject = limiter(Clock(), limit(2, by=(by,)))
    assert passed(subject, 5, *first) == 2
    assert passed(subject, 5, *second) == 2
    assert passed(subject, 5, *first) == 0


def test_those_without_the_header_share_a_bucket() -> None:
    subject = limiter(Clock(), limit(2, by=("header:x-user",)))
    assert passed(subject, 5) == 2
    assert passed(subject, 5, request(path="/other")) == 0


def test_two_sources_make_one_key() -> None:
    subject = limiter(Clock(), limit(1, by=("principal", "path")))
    assert passed(subject, 2, request(path="/a"), "x") == 1
    assert passed(subject, 2, request(path="/b"), "x") == 1
    assert passed(subject, 2, request(path="/a"), "y") == 1
    assert passed(subject, 2, request(path="/a"), "x") == 0


def test_dynamic_buckets_are_bounded_and_the_least_used_is_forgotten() -> None:
    subject = limiter(Clock(), limit(1, by=("principal",)), max_buckets=2)
    assert [passed(subject, 1, principal=name) for name in ("a", "b", "a", "c")] == [1, 1, 0, 1]
    assert passed(subject, 1, principal="a") == 0, "used since b was"
    assert passed(subject, 1, principal="b") == 1, "forgotten for c"


def test_a_refused_request_takes_no_token_of_other_limits() -> None:
    clock = Clock()
    subject = limiter(clock, limit(3, 1, 1000), limit(1, 1, 10))
    assert passed(subject, 5) == 1
    clock.now += 10
    assert passed(subject, 5) == 1
    clock.now += 10
    assert passed(subject, 5) == 1, "the five refused ones cost the first limit nothing"


def test_an_unrelated_change_refills_nothing() -> None:
    clock = Clock()
    before = limiter(clock, limit(2), limit(2, paths=("/a",)))
    assert passed(before, 5) == 2
    after = limiter(clock, limit(5, paths=("/b",)), limit(2), previous=before)
    assert passed(after, 5) == 0
    changed = limiter(clock, limit(3), previous=after)
    assert passed(changed, 5) == 3, "another bucket is a new one"


def test_the_same_limit_twice_takes_two_tokens_and_policies_do_not_share() -> None:
    assert passed(limiter(Clock(), limit(2), limit(2)), 5) == 2
    clock, both = Clock(), [RateLimit("shop", "one", (limit(2),)), RateLimit("shop", "two", (limit(2),))]
    subject = RateLimiter.compile(both, clock)
    assert passed(subject, 1) == 1
    alone = RateLimiter.compile(both[1:], clock, previous=subject)
    assert passed(alone, 5) == 1


def test_a_share_gives_its_part_and_at_least_one_at_once() -> None:
    clock = Clock()
    subject = limiter(clock, limit(8, 4, 1), share=0.25)
    assert passed(subject, 9) == 2
    clock.now += 1
    assert passed(subject, 9) == 1
    small = limiter(clock, limit(1, 1, 10), share=0.25)
    assert passed(small, 9) == 1
    limited = small.take(request(), "", "")
    assert limited is not None and dict(limited.headers)["x-ratelimit-reset"] == "40"
    clock.now += 39
    assert passed(small, 9) == 0
    clock.now += 1
    assert passed(small, 9) == 1


@given(
    size=st.integers(1, 20),
    per_fill=st.integers(1, 20),
    seconds=st.floats(0.05, 10),
    share=st.sampled_from((1.0, 0.5, 0.25)),
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 8)), max_size=60),
)
def test_never_more_than_size_and_rate_allow(
    size: int, per_fill: int, seconds: float, share: float, steps: list[tuple[float, int]]
) -> None:
    clock = Clock()
    subject, begin, total = limiter(clock, limit(size, per_fill, seconds), share=share), clock.now, 0
    for pause, count in steps:
        clock.now += pause
        total += passed(subject, count)
        fills = floor((clock.now - begin) / seconds + 1e-6)
        assert total <= max(1.0, size * share) + fills * per_fill * share + 1e-6


@given(size=st.integers(1, 20), per_fill=st.integers(1, 20), steps=st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_a_bucket_equals_one_filled_interval_by_interval(size: int, per_fill: int, steps: list[int]) -> None:
    clock = Clock()
    subject, tokens = limiter(clock, limit(size, per_fill, 1)), size
    for intervals in steps:
        clock.now += intervals
        for _ in range(intervals):
            tokens = min(size, tokens + per_fill)
        assert passed(subject, 7) == min(tokens, 7)
        tokens -= min(tokens, 7)

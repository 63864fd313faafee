"""Rate limits: token buckets as Envoy's local rate limit filter has them, and what a shared rate
limit service is asked.

Pure but for the buckets' levels. A bucket starts full and gets its tokens at the end of each
interval since then. A request takes one token of every limit that matches it, or none when one of
them has none left. Header fields of a refusal are those that Envoy emits
(draft-polli-ratelimit-headers-03): the bucket's size, what remains, and the seconds until there is
a token again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil
from typing import Final, Protocol

from nodeagent.policy.authorization_match import as_received
from nodeagent.policy.model import GlobalLimit, LocalLimit, RateLimit

MAX_BUCKETS: Final = 10_000
"""Buckets of one limit with ``by``; beyond it the one that was not used for longest is forgotten."""
_MAX_KEY: Final = 128
"""Characters of a value that are kept as they are: clients choose header values and paths."""
_EPSILON: Final = 1e-9
"""Seconds and tokens that rounding may cost."""


class LimitedRequest(Protocol):
    """What a limit may ask of a request; ``policy/authorization_facts.py: RequestFacts`` is one."""

    method: str
    host: str
    normal: str
    """The normalised path, empty when nobody asked for it yet."""

    @property
    def header(self) -> Callable[[str], str | None]:
        """Return a field's value by its lower-case name; None when it is absent."""

    @property
    def lines(self) -> Callable[[str], Sequence[str]]:
        """Return the values of a field's lines by its lower-case name; nothing: it is one."""

    def normalised(self) -> str:
        """Return the path as policies compare it."""


@dataclass(frozen=True, slots=True)
class Limited:
    """A request that may not pass now."""

    policy: str
    """``namespace/name`` of the RateLimit."""
    headers: tuple[tuple[str, str], ...]
    """For the answer, which is 429."""


class _Bucket:
    """Tokens, and the end of the last interval that was counted in."""

    __slots__ = ("filled", "tokens")

    def __init__(self, tokens: float, filled: float) -> None:
        self.tokens = tokens
        self.filled = filled


class _Text:
    """A text with at most one ``*``, at its begin or end."""

    __slots__ = ("exact", "prefix", "suffix")

    def __init__(self, pattern: str) -> None:
        self.exact = "" if "*" in pattern else pattern
        self.prefix = pattern[:-1] if pattern.endswith("*") else ""
        self.suffix = pattern[1:] if pattern.startswith("*") else ""

    def matches(self, value: str) -> bool:
        if self.exact:
            return value == self.exact
        return value.startswith(self.prefix) and value.endswith(self.suffix)


_Source = Callable[[LimitedRequest, str, str], str]
"""What tells the buckets of a limit apart, from a request, its principal and its pod. Those of whom
it is not known share the bucket of the empty value, so that leaving a header out avoids no limit.
"""
_SOURCES: Final[dict[str, _Source]] = {
    "principal": lambda request, principal, pod: principal,
    "pod": lambda request, principal, pod: pod,
    "path": lambda request, principal, pod: request.normal or request.normalised(),
}


_LISTS: Final = frozenset(("forwarded", "via", "x-forwarded-for"))
"""Fields whose lines every application reads as one."""


def _of_header(name: str) -> _Source:
    """Which of several lines of one name counts, the application says: nobody avoids a limit by adding one."""

    def value(request: LimitedRequest, principal: str, pod: str) -> str:
        found = request.header(name) or ""
        return "" if "," in found and name not in _LISTS and len(request.lines(name)) > 1 else found

    return value


def _bounded(value: str) -> str:
    return (
        value
        if len(value) <= _MAX_KEY
        else f"\0{blake2b(value.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"
    )


class _Limit:
    """One item of ``local``, compiled, with its buckets."""

    __slots__ = (
        "_any_path",
        "_buckets",
        "_by",
        "_exact",
        "_headers",
        "_interval",
        "_last",
        "_limit",
        "_max_buckets",
        "_methods",
        "_per_fill",
        "_policy",
        "_prefixes",
        "_reset",
        "_shared",
        "_size",
        "_suffixes",
    )

    def __init__(self, policy: str, limit: LocalLimit, share: float, max_buckets: int, now: float) -> None:
        self._policy = policy
        self._limit = limit
        self._max_buckets = max_buckets
        self._methods = frozenset(limit.methods)
        self._exact = frozenset(path for path in limit.paths if "*" not in path)
        self._prefixes = tuple(path[:-1] for path in limit.paths if path.endswith("*"))
        self._suffixes = tuple(path[1:] for path in limit.paths if path.startswith("*") and len(path) > 1)
        self._any_path = not limit.paths
        self._headers = tuple((name, _Text(as_received(value))) for name, value in limit.headers)
        # A share of a small bucket must still hold the one token that a request takes; the rate is
        # the exact share all the same.
        self._size = max(1.0, limit.bucket.max_tokens * share)
        self._per_fill = limit.bucket.tokens_per_fill * share
        self._interval = limit.bucket.fill_seconds
        self._by = tuple(_SOURCES.get(source) or _of_header(source.removeprefix("header:")) for source in limit.by)
        self._shared = _Bucket(self._size, now)
        self._buckets: OrderedDict[str | tuple[str, ...], _Bucket] = OrderedDict()
        self._reset = -1
        self._last = Limited(policy, ())

    def matches(self, request: LimitedRequest) -> bool:
        if self._methods and request.method not in self._methods:
            return False
        if not self._any_path:
            path = request.normal or request.normalised()
            if path not in self._exact and not path.startswith(self._prefixes) and not path.endswith(self._suffixes):
                return False
        for name, text in self._headers:
            value = request.header(name)
            if value is None:
                return False
            if not text.matches(value) and not ("," in value and any(map(text.matches, request.lines(name)))):
                return False
        return True

    def bucket(self, request: LimitedRequest, principal: str, pod: str, now: float) -> _Bucket:
        """Return the bucket of *request*, filled up to *now*."""
        found = self._own(request, principal, pod, now) if self._by else self._shared
        elapsed = now - found.filled
        if elapsed >= self._interval and (fills := int(elapsed / self._interval + _EPSILON)):
            found.tokens = min(self._size, found.tokens + fills * self._per_fill)
            found.filled += fills * self._interval
        return found

    def _own(self, request: LimitedRequest, principal: str, pod: str, now: float) -> _Bucket:
        values = tuple([_bounded(source(request, principal, pod)) for source in self._by])
        key = values[0] if len(values) == 1 else values
        found = self._buckets.get(key)
        if found is not None:
            self._buckets.move_to_end(key)
            return found
        if len(self._buckets) >= self._max_buckets:
            self._buckets.popitem(last=False)
        found = self._buckets[key] = _Bucket(self._size, now)
        return found

    def refusal(self, bucket: _Bucket, now: float) -> Limited:
        fills = ceil((1 - bucket.tokens) / self._per_fill - _EPSILON)
        reset = max(1, ceil(bucket.filled + fills * self._interval - now - _EPSILON))
        if reset != self._reset:  # refusals come in crowds: those of one second share their answer
            size = str(self._limit.bucket.max_tokens)
            headers = (("x-ratelimit-limit", size), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", str(reset)))
            self._reset = reset
            self._last = Limited(self._policy, headers)
        return self._last


class RateLimiter:
    """The local limits of one workload."""

    __slots__ = ("_clock", "_limits")

    def __init__(self, limits: dict[tuple[str, LocalLimit, int, float], _Limit], clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock

    @classmethod
    def compile(
        cls,
        limits: Iterable[RateLimit],
        clock: Callable[[], float],
        *,
        share: float = 1.0,
        previous: RateLimiter | None = None,
        max_buckets: int = MAX_BUCKETS,
    ) -> RateLimiter:
        """Compile ``local`` of *limits*, which apply to one workload.

        *clock* gives seconds that never go back. *share* is the part of each bucket, above 0 and up
        to 1, that this process may give away: with several workers, each has its own. Limits that
        did not change go on with the buckets that they have in *previous*.
        """
        now = clock()
        kept = previous._limits if previous is not None else {}
        made: dict[tuple[str, LocalLimit, int, float], _Limit] = {}
        for policy in limits:
            name = f"{policy.namespace}/{policy.name}"
            for limit in policy.local:
                copy = 0  # the same limit twice in one policy costs two tokens, as it says
                while (key := (name, limit, copy, share)) in made:
                    copy += 1
                made[key] = kept.get(key) or _Limit(name, limit, share, max_buckets, now)
        return cls(made, clock)

    def take(self, request: LimitedRequest, principal: str, pod: str) -> Limited | None:
        """Take a token of every limit that matches *request*; return why it may not pass, and take
        none then.

        *principal* is the client's identity, *pod* its ``namespace/name`` or whatever tells clients
        apart; empty when not known.
        """
        now = self._clock()
        taken: list[_Bucket] = []
        for limit in self._limits.values():
            if limit.matches(request):
                bucket = limit.bucket(request, principal, pod, now)
                if bucket.tokens < 1 - _EPSILON:
                    for other in taken:
                        other.tokens += 1
                    return limit.refusal(bucket, now)
                bucket.tokens -= 1
                taken.append(bucket)
        return None


def descriptors(
    limit: GlobalLimit, request: LimitedRequest, principal: str, pod: str
) -> list[tuple[tuple[str, str], ...]]:
    """Return what to ask the rate limit service about *request*.

    As in Envoy, a descriptor with a value that the request does not have is left out, and without
    any there is nothing to ask.
    """
    found = []
    for descriptor in limit.descriptors:
        entries = tuple([(key, _filled(value, request, principal, pod)) for key, value in descriptor])
        if all(value for _, value in entries):
            found.append(entries)
    return found


def _filled(value: str, request: LimitedRequest, principal: str, pod: str) -> str:
    if not value.startswith("{"):
        return as_received(value)
    name = value[1:-1]
    if name == "method":
        return request.method
    if name == "host":
        return request.host
    source = _SOURCES.get(name)
    if source is not None:
        return source(request, principal, pod)
    return request.header(name.removeprefix("header:")) or ""

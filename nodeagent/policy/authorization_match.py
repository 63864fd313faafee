"""Matchers of texts and addresses: what the values of one policy field become, so that a look at
them is a set lookup where it can be.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Final, TypeVar

from nodeagent.errors import ResourceError
from nodeagent.policy.paths import compile_template, is_template

Text = Callable[[str], bool]
Number = Callable[[int], bool]
Subject = TypeVar("Subject")

_V4: Final = 1 << 128
"""IPv4 addresses are numbered above the IPv6 ones, so that one comparison serves both and ``::/0``
holds no IPv4 address.
"""
_NETMASK: Final = (1 << 129) - 1
_bits: Final = re.compile(r"0|[1-9][0-9]{0,2}").fullmatch
NOWHERE: Final = -1
"""The number of an address that is not known: no network holds it."""


def all_of(tests: Sequence[Callable[[Subject], bool]]) -> Callable[[Subject], bool]:
    """Return the conjunction of *tests*, at least one."""
    if len(tests) == 1:
        return tests[0]
    if len(tests) == 2:
        first, second = tests
        return lambda subject: first(subject) and second(subject)

    def every(subject: Subject) -> bool:
        for test in tests:  # noqa: SIM110 - a generator costs as much as the tests
            if not test(subject):
                return False
        return True

    return every


def any_of(tests: Sequence[Callable[[Subject], bool]]) -> Callable[[Subject], bool]:
    """Return the disjunction of *tests*, at least one."""
    if len(tests) == 1:
        return tests[0]
    if len(tests) == 2:
        first, second = tests
        return lambda subject: first(subject) or second(subject)

    def some(subject: Subject) -> bool:
        for test in tests:  # noqa: SIM110 - as above
            if test(subject):
                return True
        return False

    return some


def as_received(text: str) -> str:
    """Return *text* as requests hold it: one character for each byte of its UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "surrogatepass").decode("latin-1")


def text(patterns: Iterable[str]) -> Text:
    """Return what matches any of *patterns*: exact, ``prefix*``, ``*suffix``, or ``*`` for any text
    that is not empty.

    An empty text is matched by nothing: it stands for what is absent.
    """
    exact = set[str]()
    prefixes = list[str]()
    suffixes = list[str]()
    for pattern in patterns:
        if pattern == "*":
            return bool
        if pattern.startswith("*"):
            suffixes.append(pattern[1:])
        elif pattern.endswith("*"):
            prefixes.append(pattern[:-1])
        else:
            exact.add(pattern)
    exact.discard("")
    tests: list[Text] = [frozenset(exact).__contains__] if exact or not (prefixes or suffixes) else []
    if prefixes:
        begins = tuple(prefixes)
        tests.append(lambda value: value.startswith(begins))
    if suffixes:
        ends = tuple(suffixes)
        tests.append(lambda value: value.endswith(ends))
    return any_of(tests)


def folded(patterns: Iterable[str]) -> Text:
    """The same regardless of case."""
    test = text(pattern.lower() for pattern in patterns)
    return lambda value: test(value.lower())


def hosts(patterns: Iterable[str]) -> Text:
    """The same for hosts; ``*`` matches every one, be it empty: to Envoy each request has one."""
    named = tuple(patterns)
    return anything if "*" in named else folded(named)


def anything(value: str) -> bool:
    """Match any text, the empty one too."""
    return True


def paths(patterns: Iterable[str]) -> Text:
    """The same for normalised paths, some of *patterns* being templates. Raises ResourceError when one is wrong."""
    plain = list[str]()
    templates = list[Text]()
    for pattern in patterns:
        if is_template(pattern):
            templates.append(_full(pattern))
        else:
            plain.append(pattern)
    return any_of([text(plain), *templates] if plain else templates)


def _full(template: str) -> Text:
    match = compile_template(template).fullmatch
    return lambda value: match(value) is not None


def globs(patterns: Iterable[str]) -> Text:
    """Return what matches any of *patterns*, in which every ``*`` stands for any text, as Istio has
    it for namespaces.
    """
    plain = list[str]()
    others = list[Text]()
    for pattern in patterns:
        if "*" in pattern.strip("*") or pattern.count("*") > 1:
            others.append(_glob(pattern))
        else:
            plain.append(pattern)
    return any_of([text(plain), *others] if plain else others)


def _glob(pattern: str) -> Text:
    first, *middle, last = pattern.split("*")
    shortest = max(1, len(pattern.replace("*", "")))

    def matches(value: str) -> bool:
        if len(value) < shortest or not value.startswith(first) or not value.endswith(last):
            return False
        at = len(first)
        end = len(value) - len(last)
        for part in middle:
            # The leftmost place leaves the most for the parts that follow, so no other has to be
            # tried.
            found = value.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True

    return matches


def principals(patterns: Iterable[str], trust_domains: Sequence[str]) -> Text:
    """Return what matches identities written without ``spiffe://`` in a mesh that has *trust_domains*."""
    return text(chain.from_iterable(in_domains(pattern, trust_domains) for pattern in patterns))


def in_domains(pattern: str, trust_domains: Sequence[str]) -> tuple[str, ...]:
    """Return what one *pattern* of principals stands for in a mesh that has *trust_domains*, as Istio has it.

    A whole identity (five parts) whose trust domain is one of them, or ``cluster.local``, is meant in
    all of them; any other is what it says.
    """
    domain, *rest = pattern.split("/")
    if len(rest) != 4 or domain == "*" or is_foreign(pattern, trust_domains):
        return (pattern,)
    named = (
        pattern if domain[:1] == "*" and _is_of(domain, each) else "/".join((each, *rest)) for each in trust_domains
    )
    return tuple(dict.fromkeys(named))


def is_foreign(pattern: str, trust_domains: Sequence[str]) -> bool:
    """Say whether *pattern* of principals is a whole identity of none of *trust_domains*."""
    domain, *rest = pattern.split("/")
    return len(rest) == 4 and domain != "*" and not _is_own(domain, trust_domains)


def _is_own(domain: str, trust_domains: Sequence[str]) -> bool:
    return domain == "cluster.local" or any(_is_of(domain, each) for each in trust_domains)


def _is_of(domain: str, trust_domain: str) -> bool:
    if domain[:1] == "*":
        return trust_domain.endswith(domain[1:])
    return trust_domain.startswith(domain[:-1]) if domain[-1:] == "*" else trust_domain == domain


def domains(values: Iterable[str], trust_domains: Sequence[str]) -> Text:
    """Return what matches trust domains: each of *trust_domains* stands for all of them."""
    return text(chain.from_iterable(trust_domains if value in trust_domains else (value,) for value in values))


def ports(values: Iterable[int]) -> Number:
    """Return what matches any of the port numbers *values*."""
    return frozenset(values).__contains__


def networks(values: Iterable[str], field: str) -> Number:
    """Return what matches the numbers (:func:`number_of`) of addresses in any of *values*,
    addresses or CIDR blocks of either family.

    Raises ResourceError naming *field* when one is neither.
    """
    by_mask: dict[int, set[int]] = {}
    for value in values:
        number, mask = _network(value, field)
        by_mask.setdefault(mask, set()).add(number)
    tables = tuple((mask, frozenset(numbers)) for mask, numbers in by_mask.items())
    if len(tables) == 1:
        [(mask, numbers)] = tables
        return lambda address: address & mask in numbers

    def inside(address: int) -> bool:
        for mask, numbers in tables:  # noqa: SIM110 - as above
            if address & mask in numbers:
                return True
        return False

    return inside


def _network(value: str, field: str) -> tuple[int, int]:
    try:
        network = block(value)
    except ValueError:
        raise ResourceError(
            f"{field}: {value!r} is neither an IP address nor a CIDR block such as 10.0.0.0/8 or fd00::/8"
        ) from None
    base = network.network_address
    host_bits = network.max_prefixlen - network.prefixlen
    if isinstance(base, ipaddress.IPv6Address) and base.ipv4_mapped is not None and host_bits <= 32:
        base = base.ipv4_mapped
    return _number(base), _NETMASK >> host_bits << host_bits


def block(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Return the network that *text* names, an address or ``ADDRESS/BITS``, as Istio reads it: no mask in
    another form, no zone. Raises ValueError.
    """
    _, slash, bits = text.partition("/")
    if "%" in text or (slash and not _bits(bits)):
        raise ValueError(text)
    return ipaddress.ip_network(text, strict=False)


@lru_cache(maxsize=4096)
def number_of(address: str) -> int:
    """Return the number of *address*; an IPv4 address mapped to IPv6 is the IPv4 one, and what is
    no address is :data:`NOWHERE`.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return NOWHERE
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return _number(parsed)


def _number(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    return int(address) | _V4 if address.version == 4 else int(address)

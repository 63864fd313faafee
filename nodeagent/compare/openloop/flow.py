"""The schedule of a run and what became of its requests: no sockets, no clock of its own. Times are
nanoseconds of one monotonic clock.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Final

from hdrh.histogram import HdrHistogram

NANOSECONDS: Final = 1_000_000_000
LONGEST_US: Final = 3_600_000_000
"""An hour; the histogram holds nothing longer."""
DIGITS: Final = 3
_STEPS_PER_DECADE: Final = 8
_DECADES: Final = 5
PERCENTILES: Final = tuple(
    100 * (1 - 10 ** (-step / _STEPS_PER_DECADE)) for step in range(_STEPS_PER_DECADE * _DECADES + 1)
)
"""0 to 99.999, evenly spaced on the logarithmic axis of 1 / (1 - p) on which latency curves are drawn."""


class Schedule:
    """Requests 0, 1, 2 … of a run; number n is due at ``begin + n / rate``, whatever happens to the
    others.

    Every counted request ends up in exactly one of ``requests`` (answered well), ``errors`` and
    ``late`` (never sent).
    """

    def __init__(self, begin: int, rate: float, seconds: float, warmup: float = 0.0) -> None:
        """*begin* in ns, *rate* in requests/s; the requests of the first *warmup* seconds are sent
        like the others but not counted.
        """
        self.begin = begin
        self.rate = rate
        self.seconds = seconds
        self.warm = round(rate * warmup)
        self.total = self.warm + max(1, round(rate * seconds))
        self.sent = 0
        self.causes: Counter[str] = Counter()
        self._interval = NANOSECONDS / rate
        self._latencies = array("q")
        self._last = begin

    def due(self, number: int) -> int:
        """Return when request *number* is due, in ns of the clock that ``begin`` is of."""
        return self.begin + int(number * self._interval)

    def take(self, now: int) -> int:
        """Return the number of the next request if it is due at *now*, else -1. The caller must send what it takes."""
        number = self.sent
        if number >= self.total or self.begin + int(number * self._interval) > now:
            return -1
        self.sent = number + 1
        return number

    def answered(self, number: int, now: int) -> None:
        """Count a good answer to request *number*, which was complete at *now* (ns): its latency is
        from when it was due.
        """
        if number >= self.warm:
            self._latencies.append(now - self.begin - int(number * self._interval))
            self._last = now

    def failed(self, number: int, cause: str) -> None:
        """Count *number* as an error. It has no latency: what fails early must not look fast."""
        if number >= self.warm:
            self.causes[cause] += 1

    def result(self) -> dict[str, object]:
        """Return the JSON object of the run, as the command line prints it."""
        histogram = HdrHistogram(1, LONGEST_US, DIGITS)
        for latency, count in Counter(nanoseconds // 1000 for nanoseconds in self._latencies).items():
            histogram.record_value(min(max(1, latency), LONGEST_US), count)
        answered = len(self._latencies)
        elapsed = max(self.seconds, (self._last - self.due(self.warm)) / NANOSECONDS)
        return {
            "requests": answered,
            "errors": self.causes.total(),
            "error_causes": dict(self.causes.most_common()),
            "seconds": round(elapsed, 6),
            "rate": self.rate,
            "achieved_rate": round(answered / elapsed, 3),
            "late": self.total - max(self.sent, self.warm),
            "latency_us": latencies(histogram),
            "percentiles": curve(histogram),
            "histogram": histogram.encode().decode("ascii"),
        }


def latencies(histogram: HdrHistogram) -> Mapping[str, int]:
    """Return p50, p90, p99, p99.9 and max of *histogram* in µs; nothing where nothing was recorded."""
    if not histogram.get_total_count():
        return {}
    found = histogram.get_percentile_to_value_dict([50, 90, 99, 99.9])
    return {
        **{f"p{percentile:g}": value for percentile, value in sorted(found.items())},
        "max": histogram.get_max_value(),
    }


def curve(histogram: HdrHistogram) -> list[list[float]]:
    """Return [percentile, µs] for each of PERCENTILES beyond which at least one request of *histogram* lies."""
    count = histogram.get_total_count()
    wanted = [percentile for percentile in PERCENTILES if count * (1 - percentile / 100) >= 1 - 1e-9]
    found = histogram.get_percentile_to_value_dict(wanted) if count else {}
    return [[round(percentile, 5), found[percentile]] for percentile in wanted if percentile in found]


def merged(encoded: list[str]) -> HdrHistogram:
    """Return the sum of the ``histogram`` of several runs: percentiles of rounds are taken from
    this, never averaged.
    """
    total = HdrHistogram(1, LONGEST_US, DIGITS)
    for each in encoded:
        total.decode_and_add(each)
    return total

"""Traffic: how many requests, and how they spread over the day."""

import csv
import math
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from prices import CostError

SECONDS = {"s": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "day": 86400}
MINUTES = 24 * 60
# Requests of each hour relative to each other.
OFFICE = [1, 1, 1, 1, 1, 2, 4, 10, 22, 30, 32, 30, 24, 28, 32, 32, 28, 20, 12, 8, 6, 4, 2, 1]
SPIKE = (12 * 60, 15, 10)  # at noon, for 15 minutes, ten times the rest
CURVES = ("constant", "office", "spike")


@dataclass(frozen=True)
class Curve:
    """Each minute's share of the traffic, 1 on average, day after day.

    `times` are real ones, in seconds from the first minute's start, or None.
    """

    name: str
    shares: tuple[float, ...]
    times: tuple[float, ...] | None = None

    @cached_property
    def peak(self) -> float:
        """The share of the busiest minute."""
        return max(self.shares)

    @cached_property
    def levels(self) -> list[tuple[float, float]]:
        """Each different share, with its part of the day."""
        counts = Counter(round(share, 3) for share in self.shares)
        return [(share, n / len(self.shares)) for share, n in counts.items()]


@dataclass(frozen=True)
class Traffic:
    """A mean rate in requests per second, and how it spreads."""

    rate: Fraction
    curve: Curve

    @property
    def peak(self) -> float:
        """Requests per second in the busiest minute."""
        return float(self.rate) * self.curve.peak

    def levels(self) -> list[tuple[float, float]]:
        """Each different rate of the day, in requests per second, with its part of the day."""
        return [(float(self.rate) * share, part) for share, part in self.curve.levels]


def make(requests: str, curve: str) -> Traffic:
    """`requests` such as "10/s", spread as `curve` says: constant, office, spike, or a CSV file of times."""
    if curve.endswith(".csv"):
        return read_csv(Path(curve))
    rate = parse_rate(requests)
    if curve == "constant":
        shares = [1.0] * MINUTES
    elif curve == "office":
        shares = smooth(OFFICE)
    elif curve == "spike":
        start, long, high = SPIKE
        level = MINUTES / (MINUTES + long * (high - 1))
        shares = [level * (high if start <= minute < start + long else 1) for minute in range(MINUTES)]
    else:
        raise CostError(f"there is no curve {curve!r}: take {', '.join(CURVES)} or a .csv file of times")
    return Traffic(rate, Curve(curve, tuple(shares)))


def smooth(hours: list[int]) -> list[float]:
    """A share for each minute, straight from the middle of one hour to the middle of the next."""
    shares = []
    for minute in range(MINUTES):
        hour, part = divmod((minute + 0.5) / 60 - 0.5, 1)
        before, after = hours[int(hour) % 24], hours[int(hour + 1) % 24]
        shares.append((before + (after - before) * part) * 24 / sum(hours))
    return shares


def parse_rate(text: str) -> Fraction:
    """Requests per second, from words: 1/min, 10/s, 5000/day. CostError unless it is such a rate above 0."""
    match = re.fullmatch(r"\s*(-?[\d_,.]+(?:e\d+)?)\s*/\s*([a-z]+)\s*", text)
    try:
        number = Fraction(match[1].replace(",", "").replace("_", ""))
        unit = SECONDS[match[2]]
    except (TypeError, ValueError, KeyError):
        raise CostError(f"requests {text!r} is not a rate: write 1/min, 10/s, 500/hour or 5000/day") from None
    if number <= 0:
        raise CostError(f"requests {text!r} is not above 0: write 1/min, 10/s, 500/hour or 5000/day")
    return number / unit


def per_month(rate: Fraction, hours: Decimal) -> Decimal:
    """Requests in a month of so many hours, exactly where that is a whole number."""
    exact = rate * Fraction(hours) * 3600
    return Decimal(exact.numerator) / Decimal(exact.denominator)


def loss(load: float, places: int) -> float:
    """Erlang's B: the share that finds all places taken; `load` is requests per second x seconds each."""
    blocked = 1.0
    for place in range(1, places + 1):
        blocked = load * blocked / (place + load * blocked)
    return blocked


def at_a_time(load: float, refused: float = 0.001) -> int:
    """Places for a load, so that no more than this share is refused."""
    places = math.ceil(load)
    while loss(load, places) > refused:
        places += 1
    return places


def read_csv(file: Path) -> Traffic:
    """Real times, one a line in the first column (ISO 8601, or seconds since 1970); a heading is passed over.

    CostError names the line that is no time.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            rows = [(number, row[0].strip()) for number, row in enumerate(csv.reader(lines), 1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise CostError(f"{file} cannot be read as CSV: {reason}") from None
    if rows and parse_time(rows[0][1]) is None:
        del rows[0]
    times = [parse_time(text) for _, text in rows]
    if None in times:
        number, text = rows[times.index(None)]
        text = f"line {number} of {file}, {text[:40]!r}, is not a time"
        raise CostError(f"{text}: write 2026-11-22T08:30:00 or seconds since 1970")
    if len(times) < 2 or max(times) - min(times) < 60:
        raise CostError(f"{file} has {len(times)} times: it takes two, at least a minute apart")
    return from_times(file.name, sorted(times))


def from_times(name: str, times: list[float]) -> Traffic:
    """Traffic from seconds since 1970, in order."""
    start = times[0] // 60 * 60
    minutes = math.ceil((times[-1] - start + 1e-9) / 60)
    counts = Counter(int((time - start) // 60) for time in times)
    shares = tuple(counts[minute] * minutes / len(times) for minute in range(minutes))
    curve = Curve(name, shares, tuple(time - start for time in times))
    return Traffic(Fraction(len(times), minutes * 60), curve)


def parse_time(text: str) -> float | None:
    """Seconds since 1970, or None when the text is no time."""
    try:
        seconds = float(text)
        return seconds if 0 <= seconds < 1e11 else None  # above: milliseconds
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

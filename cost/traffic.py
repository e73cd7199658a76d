"""Traffic: how many requests, and how they are distributed over the day."""

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
# Requests in each hour, relative to each other: an invented office day, not a measured one.
OFFICE = [1, 1, 1, 1, 1, 2, 4, 10, 22, 30, 32, 30, 24, 28, 32, 32, 28, 20, 12, 8, 6, 4, 2, 1]
SPIKE = (12 * 60, 15, 10)  # from noon, for 15 minutes, ten times the other minutes
CURVES = ("constant", "office", "spike")


@dataclass(frozen=True)
class Curve:
    """Each minute's traffic relative to the mean (1 on average), repeated every day.

    `times` are recorded ones, in seconds from the start of the first minute, or None.
    """

    name: str
    shares: tuple[float, ...]
    times: tuple[float, ...] | None = None

    @cached_property
    def peak(self) -> float:
        """The busiest minute's traffic relative to the mean."""
        return max(self.shares)

    @cached_property
    def levels(self) -> list[tuple[float, float]]:
        """Each different value in `shares`, with its part of the day."""
        counts = Counter(round(share, 3) for share in self.shares)
        return [(share, n / len(self.shares)) for share, n in counts.items()]


@dataclass(frozen=True)
class Traffic:
    """A mean rate in requests per second, and its distribution over the day."""

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
    """Traffic from a rate such as "10/s" and a curve: constant, office, spike, or a CSV file of times."""
    if curve.endswith(".csv"):
        return read_csv(Path(curve))
    rate = parse_rate(requests)
    if curve == "constant":
        shares = [1.0] * MINUTES
    elif curve == "office":
        shares = interpolate(OFFICE)
    elif curve == "spike":
        start, length, factor = SPIKE
        base = MINUTES / (MINUTES + length * (factor - 1))
        shares = [base * (factor if start <= minute < start + length else 1) for minute in range(MINUTES)]
    else:
        raise CostError(f"there is no curve {curve!r}: use {', '.join(CURVES)} or a .csv file of times")
    return Traffic(rate, Curve(curve, tuple(shares)))


def interpolate(hours: list[int]) -> list[float]:
    """A value for each minute, linear from the middle of one hour to the middle of the next."""
    shares = []
    for minute in range(MINUTES):
        hour, part = divmod((minute + 0.5) / 60 - 0.5, 1)
        before, after = hours[int(hour) % 24], hours[int(hour + 1) % 24]
        shares.append((before + (after - before) * part) * 24 / sum(hours))
    return shares


def parse_rate(text: str) -> Fraction:
    """Requests per second from 1/min, 10/s, 500/hour or 5000/day. Raises CostError for anything else."""
    example = "write 1/min, 10/s, 500/hour or 5000/day"
    match = re.fullmatch(r"\s*(-?[\d_,.]+(?:e\d+)?)\s*/\s*([a-z]+)\s*", text)
    if match is None or match[2] not in SECONDS:
        raise CostError(f"requests {text!r} is not a rate: {example}")
    try:
        number = Fraction(match[1].replace(",", "").replace("_", ""))
    except ValueError:
        raise CostError(f"requests {text!r} is not a rate: {example}") from None
    if number <= 0:
        raise CostError(f"requests {text!r} is not above 0: {example}")
    return number / SECONDS[match[2]]


def per_month(rate: Fraction, hours: Decimal) -> Decimal:
    """Requests in a month of this many hours, exact where that is a whole number."""
    exact = rate * Fraction(hours) * 3600
    return Decimal(exact.numerator) / Decimal(exact.denominator)


def erlang_b(load: float, servers: int) -> float:
    """Erlang's B formula: the share of requests that find all servers busy.

    `load` is the offered load: requests per second x seconds per request.
    """
    blocked = 1.0
    for server in range(1, servers + 1):
        blocked = load * blocked / (server + load * blocked)
    return blocked


def concurrency_for(load: float, max_blocked: float = 0.001) -> int:
    """The fewest servers for an offered load that refuse no more than this share of the requests."""
    servers = math.ceil(load)
    while erlang_b(load, servers) > max_blocked:
        servers += 1
    return servers


def read_csv(file: Path) -> Traffic:
    """Traffic from recorded times, one per line in the first column; a heading is skipped.

    Times are ISO 8601 or seconds since 1970. Raises CostError that names the first line without a time.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            rows = [(number, row[0].strip()) for number, row in enumerate(csv.reader(lines), 1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise CostError(f"{file} cannot be read as CSV: {reason}") from None
    if rows and parse_time(rows[0][1]) is None:
        del rows[0]
    times = []
    for number, text in rows:
        time = parse_time(text)
        if time is None:
            text = f"line {number} of {file}, {text[:40]!r}, is not a time"
            raise CostError(f"{text}: write 2026-11-22T08:30:00 or seconds since 1970")
        times.append(time)
    if len(times) < 2 or max(times) - min(times) < 60:
        raise CostError(f"{file} has {len(times)} times: at least two are needed, a minute or more apart")
    return from_times(file.name, sorted(times))


def from_times(name: str, times: list[float]) -> Traffic:
    """Traffic from sorted times in seconds since 1970."""
    start = times[0] // 60 * 60
    minutes = math.ceil((times[-1] - start + 1e-9) / 60)
    counts = Counter(int((time - start) // 60) for time in times)
    shares = tuple(counts[minute] * minutes / len(times) for minute in range(minutes))
    curve = Curve(name, shares, tuple(time - start for time in times))
    return Traffic(Fraction(len(times), minutes * 60), curve)


def parse_time(text: str) -> float | None:
    """Seconds since 1970, or None if the text is not a time."""
    try:
        seconds = float(text)
        return seconds if 0 <= seconds < 1e11 else None  # larger numbers are milliseconds
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

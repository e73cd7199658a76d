"""Arrival times of requests: drawn at random from the traffic's rates, or as recorded in a CSV file."""

from dataclasses import dataclass

import numpy as np

from traffic import Traffic


@dataclass(frozen=True)
class Day:
    """Requests per second in each minute, and all arrival times in seconds; None if there are too many."""

    rates: np.ndarray
    times: np.ndarray | None
    rng: np.random.Generator

    @property
    def requests(self) -> float:
        """The expected number of requests of the whole day."""
        return float(self.rates.sum() * 60)

    def counts(self) -> np.ndarray:
        """Requests in each minute."""
        if self.times is None:
            return self.rng.poisson(self.rates * 60)
        return np.bincount(minute_of(self.times), minlength=len(self.rates))

    def arrivals(self, share: np.ndarray, first: int = 0, end: int | None = None) -> np.ndarray:
        """Sorted arrival times from minute `first` to `end`, of that share of each minute's requests."""
        end = len(self.rates) if end is None else end
        if self.times is not None:
            times = self.times[slice(*np.searchsorted(self.times, (60 * first, 60 * end)))]
            return times[self.rng.random(len(times)) < share[minute_of(times)]]
        return poisson(self.rates[first:end] * share[first:end], self.rng, first)


def make_day(traffic: Traffic, seed: int, max_requests: int) -> Day:
    """A day of the traffic: every kind gets the same arrivals unless there are more than `max_requests`."""
    curve, rng = traffic.curve, np.random.default_rng(seed)
    rates = float(traffic.rate) * np.array(curve.shares)
    times = None if curve.times is None else np.array(curve.times)
    if times is None and rates.sum() * 60 <= max_requests:
        times = poisson(rates, rng)
    return Day(rates, times, rng)


def poisson(rates: np.ndarray, rng: np.random.Generator, first: int = 0) -> np.ndarray:
    """Sorted arrival times at these rates per second, one rate for each minute from `first` on."""
    minutes = np.repeat(np.arange(first, first + len(rates)), rng.poisson(60 * rates))
    return np.sort(60 * (minutes + rng.random(len(minutes))))


def minute_of(times: np.ndarray) -> np.ndarray:
    """The minute that each time is in."""
    return (times // 60).astype(int)

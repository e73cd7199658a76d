"""When requests come: drawn by chance from the traffic's rates, or as they really did."""

from dataclasses import dataclass

import numpy as np

from traffic import Traffic


@dataclass(frozen=True)
class Day:
    """Requests per second of each minute; and all arrival times in seconds, None where they are too many."""

    rates: np.ndarray
    times: np.ndarray | None
    rng: np.random.Generator

    @property
    def requests(self) -> float:
        """How many there are in all."""
        return float(self.rates.sum() * 60)

    def counts(self) -> np.ndarray:
        """Requests of each minute."""
        if self.times is None:
            return self.rng.poisson(self.rates * 60)
        return np.bincount(minute_of(self.times), minlength=len(self.rates))

    def arrivals(self, share: np.ndarray, first: int = 0, end: int | None = None) -> np.ndarray:
        """Sorted arrival times in some minutes, of that share of each minute's requests."""
        end = len(self.rates) if end is None else end
        if self.times is not None:
            times = self.times[slice(*np.searchsorted(self.times, (60 * first, 60 * end)))]
            return times[self.rng.random(len(times)) < share[minute_of(times)]]
        return poisson(self.rates[first:end] * share[first:end], self.rng, first)


def day_of(traffic: Traffic, seed: int, most: int) -> Day:
    """The day that the traffic says: the same arrivals for every kind, unless they are more than `most`."""
    curve, rng = traffic.curve, np.random.default_rng(seed)
    rates = float(traffic.rate) * np.array(curve.shares)
    times = None if curve.times is None else np.array(curve.times)
    if times is None and rates.sum() * 60 <= most:
        times = poisson(rates, rng)
    return Day(rates, times, rng)


def poisson(rates: np.ndarray, rng: np.random.Generator, first: int = 0) -> np.ndarray:
    """Sorted arrival times at these rates a second, each for one of the minutes from `first` on."""
    minutes = np.repeat(np.arange(first, first + len(rates)), rng.poisson(60 * rates))
    return np.sort(60 * (minutes + rng.random(len(minutes))))


def minute_of(times: np.ndarray) -> np.ndarray:
    """The minute in which each time falls."""
    return (times // 60).astype(int)

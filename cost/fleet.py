"""How many instances there are, minute by minute: fixed, by target tracking, or down to zero.

As AWS describes Application Auto Scaling: an alarm above the target for 3 minutes adds what the
metric asks for, one below 90 % of it for 15 minutes takes away, each then waits for its cooldown.
"""

import math
from dataclasses import dataclass

import numpy as np

HIGH, LOW = 3, 15  # minutes that the alarms want
MARGIN = 0.9  # of the target, below which the low alarm counts
WAKE = 1  # minutes until a request without an instance is seen
SOON = 5  # minutes in which asynchronous wants to have its queue done


@dataclass(frozen=True)
class Fleet:
    """Instances of each minute: those that answer, and those that are paid."""

    serving: np.ndarray
    billed: np.ndarray

    @property
    def hours(self) -> float:
        """Instance-hours that are paid."""
        return float(self.billed.sum()) / 60

    def last(self, minutes: int) -> "Fleet":
        """The end of it alone."""
        return Fleet(self.serving[-minutes:], self.billed[-minutes:])


def fixed(minutes: int, count: int) -> Fleet:
    """Always `count`."""
    return Fleet(np.full(minutes, count), np.full(minutes, count))


def track(counts: np.ndarray, target: float, least: int, most: int, start: int, cooldown: int = 5) -> Fleet:
    """Target tracking: `counts` are requests per minute, `target` those that an instance should have.

    A new instance is paid at once and answers `start` minutes later. The day begins with what its first
    minute needs.
    """
    wanted = min(most, max(least, math.ceil(counts[0] / target)))
    serving, billed, loads = [], [], []
    coming: list[tuple[int, int]] = []  # (minute, how many there are then)
    now, wait_out, wait_in = wanted, 0, 0
    for minute, count in enumerate(counts.tolist()):
        while coming and coming[0][0] <= minute:
            now = coming.pop(0)[1]
        serving.append(now)
        billed.append(wanted)
        loads.append(count / now)
        ask = min(most, max(least, math.ceil(count / target)))
        if min(loads[-HIGH:]) > target and len(loads) >= HIGH and ask > wanted:
            wanted, wait_out = ask, minute + cooldown
            coming.append((minute + 1 + start, wanted))
        low = len(loads) >= LOW and max(loads[-LOW:]) < MARGIN * target
        if low and ask < wanted and not coming and minute >= max(wait_in, wait_out):
            wanted = now = ask
            wait_in = minute + cooldown
    return Fleet(np.array(serving), np.array(billed))


def to_zero(counts: np.ndarray, able: float, most: int, start: int, idle: int) -> Fleet:
    """Asynchronous: none without requests for `idle` minutes; else enough for the last minutes and the queue.

    `able` are the requests that an instance should do in a minute.
    """
    serving, billed = [], []
    coming: list[tuple[int, int]] = []
    now = wanted = wait_in = 0
    queue, last = 0.0, -math.inf
    for minute, count in enumerate(counts.tolist()):
        while coming and coming[0][0] <= minute:
            now = coming.pop(0)[1]
        serving.append(now)
        billed.append(wanted)
        queue = max(0.0, queue + count - now * able)
        last = minute if count else last
        recent = counts[max(0, minute - SOON + 1) : minute + 1].sum()
        ask = min(most, max(1, math.ceil((queue + recent) / (SOON * able))))
        if minute - last >= idle and not queue:
            ask = 0
        if ask > wanted:
            coming.append((minute + 1 + (WAKE if not wanted else 0) + start, ask))
            wanted, wait_in = ask, minute + LOW
        elif ask < wanted and not coming and (minute >= wait_in or not ask):
            wanted = now = ask
    return Fleet(np.array(serving), np.array(billed))


def lives(serving: np.ndarray) -> list[tuple[float, float]]:
    """The (start, end) in seconds of each instance of a fleet; the newest goes first. The last ones stay."""
    found: list[tuple[float, float]] = []
    starts: list[float] = []
    for minute, count in enumerate(serving.tolist()):
        while len(starts) > count:
            found.append((starts.pop(), 60.0 * minute))
        starts += [60.0 * minute] * (count - len(starts))
    return found + [(start, math.inf) for start in starts]

"""How many instances there are in each minute: fixed, by target tracking, or scaled to zero when idle.

The model follows AWS's description of Application Auto Scaling's target tracking: a high alarm, above the
target for 3 minutes, adds what the metric needs; a low alarm, below 90 % of the target for 15 minutes,
removes instances; a cooldown follows each
(docs.aws.amazon.com/autoscaling/application/userguide/target-tracking-scaling-policy-overview.html).
"""

import math
from dataclasses import dataclass

import numpy as np

HIGH_ALARM, LOW_ALARM = 3, 15  # minutes of data that each alarm needs
LOW_SHARE = 0.9  # of the target: the low alarm counts minutes below it
DETECT = 1  # minutes until a request without an instance is noticed: HasBacklogWithoutCapacity is per minute
CATCH_UP = 5  # minutes in which asynchronous scaling plans to empty its queue


@dataclass(frozen=True)
class Fleet:
    """Instances in each minute: those that serve requests, and those that are billed."""

    serving: np.ndarray
    billed: np.ndarray

    @property
    def hours(self) -> float:
        """Instance-hours that are billed."""
        return float(self.billed.sum()) / 60

    def last(self, minutes: int) -> "Fleet":
        """The last minutes alone."""
        return Fleet(self.serving[-minutes:], self.billed[-minutes:])


def fixed_fleet(minutes: int, count: int) -> Fleet:
    """A constant number of instances."""
    return Fleet(np.full(minutes, count), np.full(minutes, count))


def target_tracking(
    counts: np.ndarray, target: float, min_count: int, max_count: int, start: int, cooldown: int = 5
) -> Fleet:
    """Target tracking: `counts` are requests per minute, `target` those that one instance should get.

    A new instance is billed at once and serves `start` minutes later. The day begins with the number that its
    first minute needs.
    """
    wanted = min(max_count, max(min_count, math.ceil(counts[0] / target)))
    serving, billed, loads = [], [], []
    starting: list[tuple[int, int]] = []  # (minute, how many instances serve from then on)
    now, out_until, in_until = wanted, 0, 0  # in_until, out_until: ends of the cooldowns
    for minute, count in enumerate(counts.tolist()):
        while starting and starting[0][0] <= minute:
            now = starting.pop(0)[1]
        serving.append(now)
        billed.append(wanted)
        loads.append(count / now)
        desired = min(max_count, max(min_count, math.ceil(count / target)))
        if min(loads[-HIGH_ALARM:]) > target and len(loads) >= HIGH_ALARM and desired > wanted:
            wanted, out_until = desired, minute + cooldown
            starting.append((minute + 1 + start, wanted))
        low = len(loads) >= LOW_ALARM and max(loads[-LOW_ALARM:]) < LOW_SHARE * target
        if low and desired < wanted and not starting and minute >= max(in_until, out_until):
            wanted = now = desired
            in_until = minute + cooldown
    return Fleet(np.array(serving), np.array(billed))


def scale_to_zero(counts: np.ndarray, capacity: float, max_count: int, start: int, idle: int) -> Fleet:
    """Asynchronous: 0 after `idle` minutes without requests, else enough for the recent ones and the queue.

    `capacity` is the number of requests that an instance should complete in a minute.
    """
    serving, billed = [], []
    starting: list[tuple[int, int]] = []
    now = wanted = in_until = 0
    queue, last = 0.0, -math.inf
    for minute, count in enumerate(counts.tolist()):
        while starting and starting[0][0] <= minute:
            now = starting.pop(0)[1]
        serving.append(now)
        billed.append(wanted)
        queue = max(0.0, queue + count - now * capacity)
        last = minute if count else last
        recent = counts[max(0, minute - CATCH_UP + 1) : minute + 1].sum()
        desired = min(max_count, max(1, math.ceil((queue + recent) / (CATCH_UP * capacity))))
        if minute - last >= idle and not queue:
            desired = 0
        if desired > wanted:
            starting.append((minute + 1 + (DETECT if not wanted else 0) + start, desired))
            wanted, in_until = desired, minute + LOW_ALARM
        elif desired < wanted and not starting and (minute >= in_until or not desired):
            wanted = now = desired
    return Fleet(np.array(serving), np.array(billed))


def instance_lifetimes(serving: np.ndarray) -> list[tuple[float, float]]:
    """The (start, end) in seconds of each instance of a fleet; the newest is removed first."""
    lifetimes: list[tuple[float, float]] = []
    starts: list[float] = []
    for minute, count in enumerate(serving.tolist()):
        while len(starts) > count:
            lifetimes.append((starts.pop(), 60.0 * minute))
        starts += [60.0 * minute] * (count - len(starts))
    return lifetimes + [(start, math.inf) for start in starts]

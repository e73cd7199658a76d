"""Queues, request by request, first come first served. Times are seconds, arrivals sorted."""

import heapq
import math
from collections import deque

import numpy as np


def one_engine(
    arrivals: np.ndarray, service: np.ndarray, free: float = 0.0, patience: float = math.inf
) -> tuple[np.ndarray, float]:
    """The waits of requests before one engine that is free from `free` on; and when it is free again.

    Who would wait longer than `patience` is given up, NaN, and takes no time of the engine.
    """
    waits = []
    for time, seconds in zip(arrivals.tolist(), service.tolist(), strict=True):
        wait = free - time if free > time else 0.0
        if wait > patience:
            waits.append(math.nan)
            continue
        waits.append(wait)
        free = time + wait + seconds
    return np.array(waits), free


def shared(arrivals: np.ndarray, service: np.ndarray, lives: list[tuple[float, float]]) -> np.ndarray:
    """The waits of requests in one queue before engines that come and go: `lives` are their (start, end).

    Nobody who has begun is interrupted. A wait is infinite when no engine is left.
    """
    engines = list(lives)  # when each is free next, and when it goes
    heapq.heapify(engines)
    starts = []
    for time, seconds in zip(arrivals.tolist(), service.tolist(), strict=True):
        while engines and max(time, engines[0][0]) >= engines[0][1]:
            heapq.heappop(engines)
        if not engines:
            starts.append(np.inf)
            continue
        free, end = engines[0]
        start = time if time > free else free
        starts.append(start)
        heapq.heapreplace(engines, (start + seconds, end))
    return np.array(starts) - arrivals


def containers(
    arrivals: np.ndarray, service: np.ndarray, cold: float, most: int, keep: float, ready: int = 0
) -> np.ndarray:
    """The waits of requests that each have a container of their own: none, or `cold` seconds for a new one.

    There are at most `most`; a request that finds no place is refused: NaN. A container that was idle for
    `keep` seconds goes, except the last `ready`.
    """
    busy: list[float] = []  # when each is done
    idle = deque([-np.inf] * ready)  # since when, the longest first
    waits = []
    for time, seconds in zip(arrivals.tolist(), service.tolist(), strict=True):
        while busy and busy[0] <= time:
            idle.append(heapq.heappop(busy))
        while len(idle) + len(busy) > ready and idle and idle[0] < time - keep:
            idle.popleft()
        if not idle and len(busy) >= most:
            waits.append(np.nan)
            continue
        wait = 0.0 if idle else cold
        if idle:
            idle.pop()  # the one used last, so that the others can go
        waits.append(wait)
        heapq.heappush(busy, time + wait + seconds)
    return np.array(waits)

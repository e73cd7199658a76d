"""Queues, request by request, first come, first served. Times in seconds, arrivals sorted."""

import heapq
import math
from collections import deque

import numpy as np


def single_server_queue(
    arrivals: np.ndarray, service: np.ndarray, free_at: float = 0.0, max_wait: float = math.inf
) -> tuple[np.ndarray, float]:
    """The waiting times before one engine that is free from `free_at` on, and when it is free again.

    Requests that would wait longer than `max_wait` are dropped (NaN) and take no time of the engine.
    """
    waits = []
    for time, seconds in zip(arrivals.tolist(), service.tolist(), strict=True):
        wait = free_at - time if free_at > time else 0.0
        if wait > max_wait:
            waits.append(math.nan)
            continue
        waits.append(wait)
        free_at = time + wait + seconds
    return np.array(waits), free_at


def shared_queue(
    arrivals: np.ndarray, service: np.ndarray, lifetimes: list[tuple[float, float]]
) -> np.ndarray:
    """The waiting times in one queue before engines that are added and removed: `lifetimes` are (start, end).

    A request in progress is never interrupted. A wait is infinite when no engine is left.
    """
    engines = list(lifetimes)  # (when it is free next, when it is removed)
    heapq.heapify(engines)
    starts = []
    for time, seconds in zip(arrivals.tolist(), service.tolist(), strict=True):
        while engines and max(time, engines[0][0]) >= engines[0][1]:
            heapq.heappop(engines)
        if not engines:
            starts.append(np.inf)
            continue
        free_at, end = engines[0]
        start = time if time > free_at else free_at
        starts.append(start)
        heapq.heapreplace(engines, (start + seconds, end))
    return np.array(starts) - arrivals


def serverless_containers(
    arrivals: np.ndarray,
    service: np.ndarray,
    cold_start_seconds: float,
    max_containers: int,
    idle_seconds: float,
    provisioned: int = 0,
) -> np.ndarray:
    """The waiting times of requests that each use a container alone: 0, or `cold_start_seconds` in a new one.

    A request beyond `max_containers` is refused: NaN. A container is removed after `idle_seconds` without a
    request, except the last `provisioned` ones.
    """
    busy: list[float] = []  # when each is done
    idle = deque([-np.inf] * provisioned)  # since when, the longest first
    waits = []
    for time, seconds in zip(arrivals.tolist(), service.tolist(), strict=True):
        while busy and busy[0] <= time:
            idle.append(heapq.heappop(busy))
        while len(idle) + len(busy) > provisioned and idle and idle[0] < time - idle_seconds:
            idle.popleft()
        if not idle and len(busy) >= max_containers:
            waits.append(np.nan)
            continue
        wait = 0.0 if idle else cold_start_seconds
        if idle:
            idle.pop()  # the one used last, so that the others can be removed
        waits.append(wait)
        heapq.heappush(busy, time + wait + seconds)
    return np.array(waits)

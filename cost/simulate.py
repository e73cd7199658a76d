"""A day of traffic, request by request: what an answer takes and what the month costs, for each kind.

Real-time: SageMaker sends a request to any instance (its default, RANDOM); each has a queue and one engine.
Asynchronous: one queue before all instances. Serverless: a container to a request. Where a day has more
requests than are simulated, instances stand for others: one in so many, each with its real load.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from arrivals import Day, day_of, minute_of
from bill import SERVERLESS_LIMIT, Case, Line, bill, decimal, instances_needed, total
from fleet import Fleet, fixed, lives, to_zero, track
from month import as_of
from prices import Book
from traffic import MINUTES, loss
from waiting import containers, one_engine, shared

SAMPLE = 1_000_000  # requests to simulate of each kind, about
SPREAD = 0.2  # standard deviation of an answer's time over its mean: p99 is 1.5 x p50, as was measured
CUT_OFF = 60  # seconds after which SageMaker gives up
UNLIMITED = 10**9  # instances
LATENCY = (
    "times are queue and engine, without the network, of those that are answered; refused are those of "
    f"real-time who would wait over {CUT_OFF} s, and of serverless beyond {SERVERLESS_LIMIT} at a time"
)


@dataclass(frozen=True)
class Settings:
    """What is no matter of price: seconds of a cold start, the most instances, and the requests a minute that
    scaling wants an instance to have, None for what it is planned for.
    """

    cold: float
    most: int = UNLIMITED
    invocations: int | None = None
    seed: int = 0
    sample: int = SAMPLE


@dataclass(frozen=True)
class Outcome:
    """One kind's day. Latencies in seconds, each for `weights` requests; `least` and `top` instances."""

    name: str
    case: Case
    lines: list[Line]
    latencies: np.ndarray
    weights: np.ndarray
    least: int = 0
    top: int = 0
    cold: float = 0.0  # share of the answered requests
    refused: float = 0.0  # share of all

    def over(self, seconds: float) -> float:
        """The share of all requests that took longer, or had no answer."""
        late = part_of(self.weights, self.latencies > seconds)
        return self.refused + (1 - self.refused) * late

    def percentile(self, percent: float) -> float | None:
        """Seconds, of the answered requests; None where there are none."""
        if not len(self.latencies):
            return None
        order = np.argsort(self.latencies)
        cumulated = np.cumsum(self.weights[order])
        place = np.searchsorted(cumulated, cumulated[-1] * percent / 100 * (1 - 1e-12))
        return float(self.latencies[order[place]])


def simulate(case: Case, book: Book, settings: Settings) -> list[Outcome]:
    """The day of real-time with a fixed number of instances, with scaling, of asynchronous and serverless."""
    day = day_of(case.traffic, settings.seed, 2 * settings.sample)
    return [
        real_time(case, book, day, settings),
        scaled(case, book, day, settings),
        asynchronous(case, book, day, settings),
        serverless(case, book, day, settings),
    ]


def report(case: Case, book: Book, settings: Settings, limit: float) -> dict:
    """What each kind costs and how long it takes; `limit` in seconds."""
    outcomes = simulate(case, book, settings)
    prices = [line.price for outcome in outcomes for line in outcome.lines]
    return {
        "days": len(case.traffic.curve.shares) / MINUTES,
        "limit": limit,
        "outcomes": [as_json(outcome, limit) for outcome in outcomes],
        "busy": case.traffic.curve.shares[:: max(1, len(case.traffic.curve.shares) // 48)],
        "as_of": as_of(prices),
        "notes": [scaling_note(case, settings), LATENCY],
    }


def scaling_note(case: Case, settings: Settings) -> str:
    """What scaling aims at, which is a setting of deploy."""
    aim = settings.invocations or round(60 * case.speed() * case.busy)
    most = "" if settings.most == UNLIMITED else f", at most {settings.most:,} instances"
    text = f"scaling aims at {aim:,} requests a minute and instance{most}"
    return f"{text}; a new one answers after {case.start:g} minutes"


def as_json(outcome: Outcome, limit: float) -> dict:
    """One kind as JSON has it; latencies in seconds, shares from 0 to 1."""
    month = total(outcome.lines)
    return {
        "kind": outcome.name,
        "instances": None if outcome.name == "serverless" else [outcome.least, outcome.top],
        "monthly": month,
        "p50": outcome.percentile(50),
        "p99": outcome.percentile(99),
        "over_limit": round(outcome.over(limit), 6),
        "cold": round(outcome.cold, 6),
        "refused": round(outcome.refused, 6),
        "simulated": len(outcome.latencies),
    }


def real_time(case: Case, book: Book, day: Day, settings: Settings) -> Outcome:
    """As many instances as the busiest minute needs, all day."""
    case = replace(case, kind="real-time", scaling=False)
    case = replace(case, count=instances_needed(case))
    return pushed("real-time, fixed", case, book, fixed(len(day.rates), case.count), day, settings)


def scaled(case: Case, book: Book, day: Day, settings: Settings) -> Outcome:
    """From the configured count up, by target tracking."""
    case = replace(case, kind="real-time", scaling=True)
    able = settings.invocations or 60 * case.speed() * case.busy
    most = max(case.count, settings.most)
    fleet = track(day.counts(), able, case.count, most, math.ceil(case.start))
    return pushed("real-time, scaled", case, book, fleet, day, settings)


def pushed(name: str, case: Case, book: Book, fleet: Fleet, day: Day, settings: Settings) -> Outcome:
    """Requests that go to any instance, which then has them in its own queue."""
    servers, share = thin(fleet, day, settings)
    free = np.zeros(servers.max())
    parts, weights = [], []
    for hour in range(0, len(share), 60):  # a day of the fastest instance would not fit into memory
        times = day.arrivals(share, hour, hour + 60)
        minute = minute_of(times)
        engine = (day.rng.random(len(times)) * servers[minute]).astype(int)
        service = durations(case, len(times), day.rng)
        took = np.empty_like(times)
        order = np.argsort(engine, kind="stable")
        queues = np.split(order, np.cumsum(np.bincount(engine, minlength=len(free)))[:-1])
        for number, mine in enumerate(queues):
            waits, free[number] = one_engine(times[mine], service[mine], free[number], CUT_OFF)
            took[mine] = waits + service[mine]
        parts.append(took)
        weights.append(1 / share[minute])
    return outcome(name, case, book, fleet, np.concatenate(parts), np.concatenate(weights))


def asynchronous(case: Case, book: Book, day: Day, settings: Settings) -> Outcome:
    """One queue before instances that go to zero when idle."""
    case = replace(case, kind="async")
    able = 60 * case.speed() * case.busy
    counts = day.counts()
    before = counts if case.traffic.curve.times is None else counts[:0]  # a day like this one
    start, idle = math.ceil(case.start), math.ceil(case.idle)
    fleet = to_zero(np.concatenate([before, counts]), able, settings.most, start, idle).last(len(counts))
    servers, share = thin(fleet, day, settings)
    times = day.arrivals(share)
    service = durations(case, len(times), day.rng)
    latencies = shared(times, service, lives(servers)) + service
    return outcome("asynchronous", case, book, fleet, latencies, 1 / share[minute_of(times)])


def serverless(case: Case, book: Book, day: Day, settings: Settings) -> Outcome:
    """A container to a request, at most 200 at a time.

    Beyond the sample it is Erlang's loss formula: with so much traffic hardly a start is cold.
    """
    case = replace(case, kind="serverless")
    if day.requests > 2 * settings.sample:
        blocked = np.array([loss(rate / case.speed(), SERVERLESS_LIMIT) for rate in day.rates])
        refused = float((blocked * day.rates).sum() / day.rates.sum())
        latencies, cold = durations(case, settings.sample, day.rng), 0.0
    else:
        times = day.arrivals(np.ones(len(day.rates)))
        service = durations(case, len(times), day.rng)
        waits = containers(times, service, settings.cold, SERVERLESS_LIMIT, 60 * case.idle, case.provisioned)
        answered = ~np.isnan(waits)
        refused = part_of(np.ones(len(waits)), ~answered)
        cold = part_of(np.ones(answered.sum()), waits[answered] > 0)
        latencies = (waits + service)[answered]
    answering = replace(case.traffic, rate=case.traffic.rate * Fraction(1 - refused))
    lines = bill(replace(case, traffic=answering), book)
    weights = np.ones(len(latencies))
    return Outcome("serverless", case, lines, latencies, weights, cold=cold, refused=refused)


def outcome(
    name: str, case: Case, book: Book, fleet: Fleet, latencies: np.ndarray, weights: np.ndarray
) -> Outcome:
    """An Outcome whose bill has the instance-hours of this fleet. A latency of NaN is a request given up."""
    answered = ~np.isnan(latencies)
    refused = part_of(weights, ~answered)
    hours = case.hours * decimal(fleet.hours * 60 / len(fleet.billed))
    least, top = int(fleet.billed.min()), int(fleet.billed.max())
    lines = bill(case, book, hours)
    return Outcome(name, case, lines, latencies[answered], weights[answered], least, top, refused=refused)


def part_of(weights: np.ndarray, some: np.ndarray) -> float:
    """The share of the weight that some of the requests have; of no requests, nothing."""
    return float(weights[some].sum() / weights.sum()) if len(weights) else 0.0


def thin(fleet: Fleet, day: Day, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """The instances to simulate in each minute, and the share of the requests that is theirs."""
    each = max(1, int(day.requests // settings.sample))
    servers = np.ceil(fleet.serving / each).astype(int)
    return servers, np.where(fleet.serving, servers / np.maximum(1, fleet.serving), 1 / each)


def durations(case: Case, number: int, rng: np.random.Generator) -> np.ndarray:
    """Seconds that the engine takes for each request: gamma, around what its speed says."""
    shape = 1 / SPREAD**2
    return rng.gamma(shape, 1 / (case.speed() * shape), number)

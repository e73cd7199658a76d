"""A day of traffic, request by request: the latency and the monthly cost of each kind.

Real-time: SageMaker routes a request to a random instance (its default, RANDOM); each has a queue and one
engine. Asynchronous: one queue for all instances. Serverless: one container per request. If a day has more
requests than are simulated, a sample of the instances is simulated, each with its real load.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from arrivals import Day, make_day, minute_of
from autoscaling_model import Fleet, fixed_fleet, instance_lifetimes, scale_to_zero, target_tracking
from bill import SERVERLESS_LIMIT, Line, Scenario, bill, decimal, instances_needed, total
from monthly import as_of
from prices import PriceBook
from queues import serverless_containers, shared_queue, single_server_queue
from traffic import MINUTES, erlang_b

SAMPLE = 1_000_000  # requests to simulate of each kind, about
SPREAD = 0.2  # standard deviation of the service time over its mean: p99 is 1.5 x p50, as was measured
TIMEOUT = 60  # seconds after which SageMaker ends a real-time request
UNLIMITED = 10**9  # instances
LATENCY_NOTE = (
    "latency: queue and inference, without the network, of the answered requests; refused: in real-time "
    f"those that would wait over {TIMEOUT} s, in serverless those beyond {SERVERLESS_LIMIT} at a time"
)


@dataclass(frozen=True)
class Settings:
    """What the bill does not depend on: seconds of a cold start, maximum of instances, scaling target.

    `invocations`: requests per minute and instance that scaling aims at; None: the target utilization's.
    """

    cold_start_seconds: float
    max_instances: int = UNLIMITED
    invocations: int | None = None
    seed: int = 0
    sample: int = SAMPLE


@dataclass(frozen=True)
class Outcome:
    """One kind's day. Latencies in seconds; `weights` has the number of requests that each stands for."""

    name: str
    scenario: Scenario
    lines: list[Line]
    latencies: np.ndarray
    weights: np.ndarray
    min_instances: int = 0
    max_instances: int = 0
    cold: float = 0.0  # share of the answered requests
    refused: float = 0.0  # share of all requests

    def over(self, seconds: float) -> float:
        """The share of all requests that took longer than this, or got no answer."""
        late = weighted_share(self.weights, self.latencies > seconds)
        return self.refused + (1 - self.refused) * late

    def percentile(self, percent: float) -> float | None:
        """Seconds, by nearest rank, of the answered requests; None without any.

        The smallest latency that `percent` of the requests do not exceed, as client/ and bench/ compute it.
        """
        if not len(self.latencies):
            return None
        order = np.argsort(self.latencies)
        cumulated = np.cumsum(self.weights[order])
        rank = np.searchsorted(
            cumulated, cumulated[-1] * percent / 100 * (1 - 1e-12)
        )  # 1e-12: rounding of cumsum
        return float(self.latencies[order[rank]])


def simulate(scenario: Scenario, book: PriceBook, settings: Settings) -> list[Outcome]:
    """Simulate a day of real-time (fixed and scaled), asynchronous and serverless."""
    day = make_day(scenario.traffic, settings.seed, 2 * settings.sample)
    return [
        real_time(scenario, book, day, settings),
        scaled(scenario, book, day, settings),
        asynchronous(scenario, book, day, settings),
        serverless(scenario, book, day, settings),
    ]


def report(scenario: Scenario, book: PriceBook, settings: Settings, limit: float) -> dict:
    """Cost and latency of each kind; `limit` in seconds."""
    outcomes = simulate(scenario, book, settings)
    prices = [line.price for outcome in outcomes for line in outcome.lines]
    shares = scenario.traffic.curve.shares
    return {
        "days": len(shares) / MINUTES,
        "limit": limit,
        "outcomes": [as_json(outcome, limit) for outcome in outcomes],
        "busy": shares[:: max(1, len(shares) // 48)],
        "as_of": as_of(prices),
        "notes": [scaling_note(scenario, settings), LATENCY_NOTE],
    }


def scaling_note(scenario: Scenario, settings: Settings) -> str:
    """The scaling target, which is a setting of deploy."""
    target = settings.invocations or round(60 * scenario.pictures_per_second() * scenario.target_utilization)
    unlimited = settings.max_instances == UNLIMITED
    limit = "" if unlimited else f", at most {settings.max_instances:,} instances"
    text = f"scaling target: {target:,} requests per minute and instance{limit}"
    return f"{text}; a new instance serves after {scenario.start_minutes:g} minutes"


def as_json(outcome: Outcome, limit: float) -> dict:
    """One kind as JSON; latencies in seconds, shares from 0 to 1."""
    instances = [outcome.min_instances, outcome.max_instances]
    return {
        "kind": outcome.name,
        "instances": None if outcome.name == "serverless" else instances,
        "monthly": total(outcome.lines),
        "p50": outcome.percentile(50),
        "p99": outcome.percentile(99),
        "over_limit": round(outcome.over(limit), 6),
        "cold": round(outcome.cold, 6),
        "refused": round(outcome.refused, 6),
        "simulated": len(outcome.latencies),
    }


def real_time(scenario: Scenario, book: PriceBook, day: Day, settings: Settings) -> Outcome:
    """Real-time with as many instances as the busiest minute needs, all day."""
    scenario = replace(scenario, kind="real-time", scaling=False)
    scenario = replace(scenario, count=instances_needed(scenario))
    fleet = fixed_fleet(len(day.rates), scenario.count)
    return random_routing("real-time, fixed", scenario, book, fleet, day, settings)


def scaled(scenario: Scenario, book: PriceBook, day: Day, settings: Settings) -> Outcome:
    """Real-time from the configured count up, by target tracking."""
    scenario = replace(scenario, kind="real-time", scaling=True)
    target = settings.invocations or 60 * scenario.pictures_per_second() * scenario.target_utilization
    max_count = max(scenario.count, settings.max_instances)
    start = math.ceil(scenario.start_minutes)
    fleet = target_tracking(day.counts(), target, scenario.count, max_count, start)
    return random_routing("real-time, scaled", scenario, book, fleet, day, settings)


def random_routing(
    name: str, scenario: Scenario, book: PriceBook, fleet: Fleet, day: Day, settings: Settings
) -> Outcome:
    """Route each request to a random instance, which has a queue of its own."""
    servers, share = sample_fleet(fleet, day, settings)
    free_at = np.zeros(servers.max())
    parts, weights = [], []
    for hour in range(0, len(share), 60):  # a whole day of the fastest instance would not fit into memory
        times = day.arrivals(share, hour, hour + 60)
        minute = minute_of(times)
        engine = (day.rng.random(len(times)) * servers[minute]).astype(int)
        service = service_times(scenario, len(times), day.rng)
        latency = np.empty_like(times)
        order = np.argsort(engine, kind="stable")
        queues = np.split(order, np.cumsum(np.bincount(engine, minlength=len(free_at)))[:-1])
        for number, queue in enumerate(queues):
            waits, free_at[number] = single_server_queue(
                times[queue], service[queue], free_at[number], TIMEOUT
            )
            latency[queue] = waits + service[queue]
        parts.append(latency)
        weights.append(1 / share[minute])
    return instance_outcome(name, scenario, book, fleet, np.concatenate(parts), np.concatenate(weights))


def asynchronous(scenario: Scenario, book: PriceBook, day: Day, settings: Settings) -> Outcome:
    """One queue for instances that scale to zero when idle."""
    scenario = replace(scenario, kind="async")
    capacity = 60 * scenario.pictures_per_second() * scenario.target_utilization
    counts = day.counts()
    # The day before was like this one, so that the first minute does not begin with zero instances.
    before = counts if scenario.traffic.curve.times is None else counts[:0]
    start, idle = math.ceil(scenario.start_minutes), math.ceil(scenario.idle_minutes)
    both_days = np.concatenate([before, counts])
    fleet = scale_to_zero(both_days, capacity, settings.max_instances, start, idle).last(len(counts))
    servers, share = sample_fleet(fleet, day, settings)
    times = day.arrivals(share)
    service = service_times(scenario, len(times), day.rng)
    latencies = shared_queue(times, service, instance_lifetimes(servers)) + service
    return instance_outcome("asynchronous", scenario, book, fleet, latencies, 1 / share[minute_of(times)])


def serverless(scenario: Scenario, book: PriceBook, day: Day, settings: Settings) -> Outcome:
    """One container per request, at most 200 at a time.

    More requests than the sample are computed by Erlang's B formula: with that much traffic few starts are
    cold.
    """
    scenario = replace(scenario, kind="serverless")
    if day.requests > 2 * settings.sample:
        rate = scenario.pictures_per_second()
        blocked = np.array([erlang_b(arriving / rate, SERVERLESS_LIMIT) for arriving in day.rates])
        refused = float((blocked * day.rates).sum() / day.rates.sum())
        latencies, cold = service_times(scenario, settings.sample, day.rng), 0.0
    else:
        times = day.arrivals(np.ones(len(day.rates)))
        service = service_times(scenario, len(times), day.rng)
        cold_start, idle_seconds = settings.cold_start_seconds, 60 * scenario.idle_minutes
        waits = serverless_containers(
            times, service, cold_start, SERVERLESS_LIMIT, idle_seconds, scenario.provisioned
        )
        answered = ~np.isnan(waits)
        refused = weighted_share(np.ones(len(waits)), ~answered)
        cold = weighted_share(np.ones(answered.sum()), waits[answered] > 0)
        latencies = (waits + service)[answered]
    answered_traffic = replace(scenario.traffic, rate=scenario.traffic.rate * Fraction(1 - refused))
    lines = bill(replace(scenario, traffic=answered_traffic), book)
    weights = np.ones(len(latencies))
    return Outcome("serverless", scenario, lines, latencies, weights, cold=cold, refused=refused)


def instance_outcome(
    name: str, scenario: Scenario, book: PriceBook, fleet: Fleet, latencies: np.ndarray, weights: np.ndarray
) -> Outcome:
    """An Outcome with the bill of this fleet's instance-hours. A latency of NaN is a refused request."""
    answered = ~np.isnan(latencies)
    refused = weighted_share(weights, ~answered)
    hours = scenario.hours * decimal(fleet.hours * 60 / len(fleet.billed))
    low, high = int(fleet.billed.min()), int(fleet.billed.max())
    lines = bill(scenario, book, hours)
    return Outcome(name, scenario, lines, latencies[answered], weights[answered], low, high, refused=refused)


def weighted_share(weights: np.ndarray, selected: np.ndarray) -> float:
    """The share of the total weight that the selected requests have; 0 without requests."""
    return float(weights[selected].sum() / weights.sum()) if len(weights) else 0.0


def sample_fleet(fleet: Fleet, day: Day, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """The instances to simulate in each minute, and the share of the requests that they get."""
    each = max(1, int(day.requests // settings.sample))
    servers = np.ceil(fleet.serving / each).astype(int)
    return servers, np.where(fleet.serving, servers / np.maximum(1, fleet.serving), 1 / each)


def service_times(scenario: Scenario, number: int, rng: np.random.Generator) -> np.ndarray:
    """Seconds of inference for each request: a gamma distribution around the mean of the throughput."""
    shape = 1 / SPREAD**2
    return rng.gamma(shape, 1 / (scenario.pictures_per_second() * shape), number)

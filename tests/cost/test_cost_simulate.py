"""Queues against their closed forms, autoscaling minute by minute, and whole days."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scenarios import scenario

import arrivals
import autoscaling_model
import bill
import prices
import queues
import simulate
import throughput
import traffic

MANY = 300_000


def arrival_times(rate: float, number: int, seed: int = 1) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, number))


def exponential(mean: float, number: int, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).exponential(mean, number)


def permanent(engines: int) -> list[tuple[float, float]]:
    return [(0.0, math.inf)] * engines


# --- closed forms


@pytest.mark.parametrize("load", [0.3, 0.7, 0.85])
def test_m_m_1(load):
    waits, _ = queues.single_server_queue(arrival_times(load, MANY), exponential(1, MANY))
    assert waits.mean() == pytest.approx(load / (1 - load), rel=0.08)
    for wait in (1, 3):
        assert (waits > wait).mean() == pytest.approx(load * math.exp(-(1 - load) * wait), rel=0.08)
    assert (waits == 0).mean() == pytest.approx(1 - load, rel=0.06)


@pytest.mark.parametrize(("load", "engines"), [(0.7, 1), (2.1, 3), (7, 10)])
def test_m_m_c(load, engines):
    """Erlang's C."""
    waits = queues.shared_queue(arrival_times(load, MANY), exponential(1, MANY), permanent(engines))
    blocked = traffic.erlang_b(load, engines)
    waiting = blocked / (1 - load / engines * (1 - blocked))
    assert (waits > 0).mean() == pytest.approx(waiting, rel=0.1)
    assert waits.mean() == pytest.approx(waiting / (engines - load), rel=0.1)


def crommelin(load: float, engines: int) -> float:
    """The mean wait of M/D/c in service times (Crommelin 1932)."""

    def tail(mean: float, start: int) -> float:
        terms = (k * math.log(mean) - mean - math.lgamma(k + 1) for k in range(start, start + 400))
        return math.fsum(math.exp(term) for term in terms)

    parts = (
        tail(i * load, i * engines) - engines / load * tail(i * load, i * engines + 1) for i in range(1, 800)
    )
    return math.fsum(parts)


@pytest.mark.parametrize(("load", "engines"), [(0.5, 1), (0.7, 1), (1.4, 2), (3, 4), (8, 10)])
def test_m_d_c(load, engines):
    if engines == 1:
        assert crommelin(load, 1) == pytest.approx(load / (2 * (1 - load)), rel=1e-6)  # Pollaczek, Khinchin
    waits = queues.shared_queue(arrival_times(load, MANY), np.ones(MANY), permanent(engines))
    assert waits.mean() == pytest.approx(crommelin(load, engines), rel=0.1)


@pytest.mark.parametrize(("load", "servers"), [(0.5, 1), (8, 10), (210, 200)])
def test_permanent_containers_refuse_as_many_as_erlangs_b_formula(load, servers):
    waits = queues.serverless_containers(
        arrival_times(load, 200_000), exponential(1, 200_000), 0, servers, math.inf
    )
    assert np.isnan(waits).mean() == pytest.approx(traffic.erlang_b(load, servers), rel=0.1)


def test_a_single_server_queue_equals_a_shared_queue_with_one_engine_also_in_parts():
    times, service = arrival_times(0.8, 5000), exponential(1, 5000)
    whole, free_at = queues.single_server_queue(times, service)
    assert queues.shared_queue(times, service, permanent(1)) == pytest.approx(whole)
    first, between = queues.single_server_queue(times[:2000], service[:2000])
    second, end = queues.single_server_queue(times[2000:], service[2000:], between)
    assert np.concatenate([first, second]) == pytest.approx(whole)
    assert end == pytest.approx(free_at)


# --- by hand


def test_requests_that_would_wait_too_long_are_dropped_and_take_no_time():
    waits, free_at = queues.single_server_queue(np.array([0.0, 1, 2, 3, 13]), np.full(5, 5.0), max_wait=4)
    assert [None if math.isnan(wait) else wait for wait in waits] == [0, 4, None, None, 0]
    assert free_at == 18


def test_engines_are_added_and_removed():
    times, service = np.array([0.0, 1, 2, 30, 31]), np.full(5, 4.0)
    waits = queues.shared_queue(times, service, [(10, 20), (10.5, 31)])
    # 10-14, 10.5-14.5, 14-18; 30-34 on the second, which is removed at 31; then no engine is left
    assert waits.tolist() == [10, 9.5, 12, 0, math.inf]


def test_containers_are_started_reused_removed_and_limited():
    times = np.array([0.0, 1, 20, 21, 22, 200])
    waits = queues.serverless_containers(
        times, np.full(6, 2.0), cold_start_seconds=10, max_containers=2, idle_seconds=60
    )
    # two cold starts until 12 and 13; both are reused; after 60 s both are removed
    assert [None if math.isnan(wait) else wait for wait in waits] == [10, 10, 0, 0, 0, 10]
    waits = queues.serverless_containers(
        np.array([0.0, 1, 2, 200]), np.full(4, 2.0), cold_start_seconds=10, max_containers=2, idle_seconds=60
    )
    assert np.isnan(waits).tolist() == [False, False, True, False]


def test_provisioned_containers_are_never_removed():
    waits = queues.serverless_containers(
        np.array([0.0, 1, 500, 501]), np.full(4, 2.0), 10, max_containers=9, idle_seconds=60, provisioned=1
    )
    assert waits.tolist() == [0, 10, 0, 10]


def test_target_tracking_minute_by_minute():
    counts = np.array([100] * 5 + [380] * 20 + [50] * 60)
    fleet = autoscaling_model.target_tracking(counts, target=100, min_count=1, max_count=10, start=5)
    # Over the target from minute 5; the alarm needs 3 minutes; billed from then on, serving 5 minutes later.
    assert fleet.billed[:9].tolist() == [1] * 8 + [4]
    assert np.flatnonzero(fleet.serving == 4)[0] == 7 + 1 + 5
    # Below 90 % of it from minute 25 on; that alarm needs 15 minutes.
    assert np.flatnonzero(fleet.serving == 1)[-1] == 84
    assert fleet.billed[25 + 14] == 4
    assert fleet.billed[25 + 15] == 1
    assert fleet.hours == pytest.approx(fleet.billed.sum() / 60)


@pytest.mark.parametrize(("low", "high", "top"), [(1, 3, 3), (2, 10, 8), (20, 30, 20)])
def test_target_tracking_stays_within_its_limits(low, high, top):
    fleet = autoscaling_model.target_tracking(
        np.array([10] * 10 + [800] * 60), target=100, min_count=low, max_count=high, start=5
    )
    assert fleet.billed.min() == low
    assert fleet.billed.max() == top


def test_a_load_just_below_the_target_changes_nothing():
    fleet = autoscaling_model.target_tracking(
        np.array([95] * 200), target=100, min_count=1, max_count=10, start=5
    )
    assert set(fleet.serving) == {1}


def test_asynchronous_scales_to_zero_and_up_again():
    counts = np.zeros(120, int)
    counts[30] = 1
    fleet = autoscaling_model.scale_to_zero(counts, capacity=60, max_count=10, start=5, idle=10)
    # Noticed after a minute, serving 5 minutes later; removed when done and 10 minutes have passed.
    assert np.flatnonzero(fleet.serving).tolist() == [37, 38, 39, 40]
    assert np.flatnonzero(fleet.billed).tolist() == list(range(31, 41))


def test_the_lifetimes_of_instances():
    assert autoscaling_model.instance_lifetimes(np.array([1, 3, 2, 2, 0, 1])) == [
        (60, 120),
        (60, 240),
        (0, 240),
        (300, math.inf),
    ]


# --- whole days


def outcomes(
    requests: str, curve: str, book: prices.PriceBook, *kinds: Callable, **changes
) -> dict[str, simulate.Outcome]:
    """A simulated day of all kinds, or of these functions of simulate.py."""
    own = {key: changes.pop(key) for key in ("sample", "max_instances", "seed") if key in changes}
    settings = simulate.Settings(cold_start_seconds=10, **own)
    wanted = scenario(traffic=traffic.make(requests, curve), **changes)
    if not kinds:
        return {outcome.name: outcome for outcome in simulate.simulate(wanted, book, settings)}
    day = arrivals.make_day(wanted.traffic, settings.seed, 2 * settings.sample)
    return {found.name: found for found in (kind(wanted, book, day, settings) for kind in kinds)}


def test_a_day_with_little_traffic_has_no_queue_and_the_price_of_the_bill(book):
    found = outcomes("1/min", "constant", book)
    fixed = found["real-time, fixed"]
    assert fixed.percentile(50) == pytest.approx(1 / 24, rel=0.03)
    assert fixed.percentile(99) == pytest.approx(1.5 / 24, rel=0.1)
    assert fixed.lines == bill.bill(scenario(), book)
    formula = bill.total(bill.bill(scenario(kind="async", count=1), book))
    assert bill.total(found["asynchronous"].lines) == pytest.approx(formula, rel=bill.Decimal("0.0001"))
    assert fixed.over(1) == 0
    assert bill.total(found["real-time, scaled"].lines) - bill.total(fixed.lines) == pytest.approx(
        bill.Decimal("0.2")
    )
    assert (found["asynchronous"].min_instances, found["asynchronous"].max_instances) == (
        1,
        1,
    )  # never 10 idle minutes
    assert 0 < found["serverless"].cold < 0.01


@pytest.mark.parametrize("requests", ["1/day", "0.001/day"])
def test_a_day_with_one_request_or_none(book, requests):
    rare = scenario(traffic=traffic.make(requests, "constant"))
    report = simulate.report(rare, book, simulate.Settings(cold_start_seconds=10), limit=1)
    (number,) = {row["simulated"] for row in report["outcomes"]}
    for row in report["outcomes"]:
        assert (row["p99"] is None) == (number == 0)
        assert row["refused"] == 0
        assert row["over_limit"] == (number > 0 and row["kind"] in ("asynchronous", "serverless"))


def test_a_random_instance_is_an_m_g_1_queue(book):
    """60 % of two instances: each is M/G/1, with a service time whose spread is 0.2 of its mean."""
    fixed = outcomes("28.8/s", "constant", book, simulate.real_time, target_utilization=0.7, sample=300_000)[
        "real-time, fixed"
    ]
    wait = 0.6 / (1 - 0.6) * (1 + simulate.SPREAD**2) / 2 / 24
    assert fixed.max_instances == 2
    assert np.average(fixed.latencies, weights=fixed.weights) == pytest.approx(wait + 1 / 24, rel=0.03)


@pytest.mark.parametrize("curve", ["constant", "office"])
@pytest.mark.parametrize("kind", [simulate.real_time, simulate.scaled])
def test_a_sample_of_the_fleet_represents_all_of_it(book, curve, kind):
    slow = throughput.given("ml.c7i.large", 4)
    busy = scenario(traffic=traffic.make("12/s", curve), throughput=slow)
    whole, sampled = (
        kind(busy, book, arrivals.make_day(busy.traffic, settings.seed, 2 * settings.sample), settings)
        for settings in (simulate.Settings(10, sample=10**9), simulate.Settings(10, seed=1, sample=200_000))
    )
    assert len(whole.latencies) == pytest.approx(12 * 86400, rel=0.01)
    assert len(sampled.latencies) < 0.6 * len(whole.latencies)
    assert sampled.weights.sum() == pytest.approx(12 * 86400, rel=0.02)
    for percent in (50, 99):
        assert sampled.percentile(percent) == pytest.approx(whole.percentile(percent), rel=0.1)


def test_scaling_is_cheaper_and_slower(book):
    found = outcomes("100/s", "office", book, simulate.real_time, simulate.scaled, sample=100_000)
    fixed, scaled = found["real-time, fixed"], found["real-time, scaled"]
    assert fixed.max_instances == 14
    assert scaled.min_instances == 2
    assert bill.total(scaled.lines) < 0.75 * float(bill.total(fixed.lines))
    assert scaled.percentile(99) > fixed.percentile(99)


def test_too_few_instances_refuse_the_excess(book):
    kinds = (simulate.real_time, simulate.scaled)
    found = outcomes("100/s", "constant", book, *kinds, sample=100_000, max_instances=3)
    scaled = found["real-time, scaled"]
    assert scaled.refused == pytest.approx(1 - 3 * 24 / 100, abs=0.01)
    assert scaled.over(1) > 0.99
    assert scaled.percentile(99) < simulate.TIMEOUT + 1
    assert found["real-time, fixed"].refused == 0


def test_the_first_asynchronous_request_waits_for_an_instance(book):
    found = outcomes("4/hour", "constant", book, simulate.asynchronous)["asynchronous"]
    assert found.min_instances == 0
    slowest = found.latencies.max()
    assert 5 * 60 < slowest < (1 + autoscaling_model.DETECT + scenario().start_minutes) * 60 + 1
    assert found.refused == 0


def test_serverless_refuses_more_than_200_concurrent_requests(book):
    found = outcomes("20000/s", "constant", book, simulate.serverless, sample=1000)["serverless"]
    load = 20000 / scenario(kind="serverless").pictures_per_second()
    assert found.refused == pytest.approx(traffic.erlang_b(load, 200))
    assert found.over(1) == pytest.approx(found.refused)
    few = outcomes("1/s", "constant", book, simulate.serverless, sample=1000)["serverless"]
    assert few.refused == pytest.approx(0, abs=1e-12)


def test_recorded_times_are_each_simulated_once(tmp_path, book):
    times = np.sort(np.random.default_rng(0).uniform(0, 7200, 5000))
    (tmp_path / "times.csv").write_text("".join(f"{1_795_334_400 + time:.3f}\n" for time in times))
    found = outcomes("1/min", str(tmp_path / "times.csv"), book)
    assert [len(outcome.latencies) for outcome in found.values()] == [5000] * 4
    assert found["real-time, fixed"].lines[0].amount == 2 * 744


def test_the_result_depends_on_the_seed_only(book):
    one, same, other = (
        outcomes("5/s", "spike", book, simulate.serverless, seed=seed)["serverless"].latencies
        for seed in (0, 0, 1)
    )
    assert (one == same).all()
    assert len(other) != len(one) or (other != one).any()


@pytest.mark.parametrize("requests", ["1/min", "10/s", "1000/s"])
def test_the_days_of_the_readme_are_plausible(requests, book):
    settings = simulate.Settings(cold_start_seconds=10, sample=100_000)
    office = scenario(traffic=traffic.make(requests, "office"))
    by_kind = {row["kind"]: row for row in simulate.report(office, book, settings, limit=1)["outcomes"]}
    assert list(by_kind) == ["real-time, fixed", "real-time, scaled", "asynchronous", "serverless"]
    assert by_kind["real-time, fixed"]["over_limit"] < 0.001
    assert by_kind["serverless"]["refused"] == pytest.approx(0, abs=1e-3)
    for row in by_kind.values():
        assert 0 < row["p50"] <= row["p99"]
        assert 0 <= row["over_limit"] <= 1


def test_100_000_requests_a_second_are_simulated_too(book):
    found = outcomes("100000/s", "constant", book, sample=100_000)
    assert found["real-time, fixed"].max_instances == math.ceil(100_000 / (24 * 0.7))
    assert found["real-time, fixed"].weights.sum() == pytest.approx(100_000 * 86400, rel=0.02)


def test_the_scaling_target_can_be_the_one_of_the_deployment(report):
    found = report("--simulate", "--requests=5/s", "--invocations=120", "--count=1")
    (scaled,) = (row for row in found["outcomes"] if row["kind"] == "real-time, scaled")
    assert scaled["instances"] == [3, 3]
    assert found["notes"][0].startswith("scaling target: 120 requests per minute and instance")


def test_table_and_json_of_a_day_agree(run, report):
    words = ["--simulate", "--requests=1/s", "--curve=spike"]
    table = run(*words).stdout
    for row in report(*words)["outcomes"]:
        (line,) = (line for line in table.splitlines() if line.startswith(f"  {row['kind']} "))
        assert f"${row['monthly']:,.2f} " in line or f"${row['monthly']:.3f} " in line
        assert f" {1000 * row['p50']:.0f} ms" in line
        assert f"{row['simulated']:,}" in line


def test_a_simulation_does_not_change_the_scenario(book):
    before = scenario()
    simulate.simulate(before, book, simulate.Settings(cold_start_seconds=10))
    assert before == replace(before)
    assert before.kind == "real-time"


# --- percentiles


def outcome(latencies: list[float], weights: list[float] | None = None) -> simulate.Outcome:
    ones = np.ones(len(latencies)) if weights is None else np.array(weights)
    return simulate.Outcome("any", scenario(), [], np.array(latencies), ones)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 1000])
def test_percentiles_are_by_nearest_rank(count):
    values = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    for percent in (1, 50, 90, 99, 100):
        expected = np.percentile(values, percent, method="inverted_cdf")
        assert outcome(list(values)).percentile(percent) == expected
        assert expected == sorted(values)[math.ceil(count * percent / 100) - 1]


def test_p99_of_1_to_100_is_99():
    assert outcome([float(value) for value in range(1, 101)]).percentile(99) == 99


def test_a_latency_with_a_weight_counts_that_often():
    assert outcome([1, 2, 3], [97, 2, 1]).percentile(99) == 2
    assert outcome([1, 2, 3], [98, 1, 1]).percentile(98) == 1

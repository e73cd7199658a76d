"""Queues against their closed forms, fleets minute by minute, and whole days."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from test_cost import asked, bare, case

import arrivals
import bill
import fleet
import prices
import simulate
import speed
import traffic
import waiting
from support import ROOT

MANY = 300_000


@pytest.fixture
def book():
    return prices.load("us-east-1")


def poisson(rate: float, many: int, seed: int = 1) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, many))


def exponential(mean: float, many: int, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).exponential(mean, many)


def always(engines: int) -> list[tuple[float, float]]:
    return [(0.0, math.inf)] * engines


# --- closed forms


@pytest.mark.parametrize("load", [0.3, 0.7, 0.85])
def test_m_m_1(load):
    waits, _ = waiting.one_engine(poisson(load, MANY), exponential(1, MANY))
    assert waits.mean() == pytest.approx(load / (1 - load), rel=0.08)
    for wait in (1, 3):
        assert (waits > wait).mean() == pytest.approx(load * math.exp(-(1 - load) * wait), rel=0.08)
    assert (waits == 0).mean() == pytest.approx(1 - load, rel=0.06)


@pytest.mark.parametrize(("load", "engines"), [(0.7, 1), (2.1, 3), (7, 10)])
def test_m_m_c(load, engines):
    """Erlang's C."""
    waits = waiting.shared(poisson(load, MANY), exponential(1, MANY), always(engines))
    b = traffic.loss(load, engines)
    must_wait = b / (1 - load / engines * (1 - b))
    assert (waits > 0).mean() == pytest.approx(must_wait, rel=0.1)
    assert waits.mean() == pytest.approx(must_wait / (engines - load), rel=0.1)


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
    waits = waiting.shared(poisson(load, MANY), np.ones(MANY), always(engines))
    assert waits.mean() == pytest.approx(crommelin(load, engines), rel=0.1)


@pytest.mark.parametrize(("load", "places"), [(0.5, 1), (8, 10), (210, 200)])
def test_containers_that_stay_lose_what_erlang_says(load, places):
    waits = waiting.containers(poisson(load, 200_000), exponential(1, 200_000), 0, places, math.inf)
    assert np.isnan(waits).mean() == pytest.approx(traffic.loss(load, places), rel=0.1)


def test_one_engine_is_a_shared_queue_with_one_engine_whatever_comes_before():
    times, service = poisson(0.8, 5000), exponential(1, 5000)
    whole, free = waiting.one_engine(times, service)
    assert waiting.shared(times, service, always(1)) == pytest.approx(whole)
    first, between = waiting.one_engine(times[:2000], service[:2000])
    second, end = waiting.one_engine(times[2000:], service[2000:], between)
    assert np.concatenate([first, second]) == pytest.approx(whole)
    assert end == pytest.approx(free)


# --- by hand


def test_who_would_wait_too_long_is_given_up_and_takes_no_time():
    waits, free = waiting.one_engine(np.array([0.0, 1, 2, 3, 13]), np.full(5, 5.0), patience=4)
    assert [None if math.isnan(wait) else wait for wait in waits] == [0, 4, None, None, 0]
    assert free == 18


def test_engines_come_and_go():
    times, service = np.array([0.0, 1, 2, 30, 31]), np.full(5, 4.0)
    waits = waiting.shared(times, service, [(10, 20), (10.5, 31)])
    # 10-14, 10.5-14.5, 14-18; 30-34 on the second, which goes at 31; then nobody is left
    assert waits.tolist() == [10, 9.5, 12, 0, math.inf]


def test_containers_are_cold_warm_gone_and_refused():
    times = np.array([0.0, 1, 20, 21, 22, 200])
    waits = waiting.containers(times, np.full(6, 2.0), cold=10, most=2, keep=60)
    # two cold starts until 12 and 13; both warm; a third finds none; after 60 s both are gone
    assert [None if math.isnan(wait) else wait for wait in waits] == [10, 10, 0, 0, 0, 10]
    waits = waiting.containers(np.array([0.0, 1, 2, 200]), np.full(4, 2.0), cold=10, most=2, keep=60)
    assert np.isnan(waits).tolist() == [False, False, True, False]


def test_containers_that_are_kept_ready_never_go():
    waits = waiting.containers(np.array([0.0, 1, 500, 501]), np.full(4, 2.0), 10, most=9, keep=60, ready=1)
    assert waits.tolist() == [0, 10, 0, 10]


def test_target_tracking_minute_by_minute():
    counts = np.array([100] * 5 + [380] * 20 + [50] * 60)
    found = fleet.track(counts, target=100, least=1, most=10, start=5)
    # Over the target from minute 5; the alarm wants 3 minutes; paid from then on, answering 5 minutes later.
    assert found.billed[:9].tolist() == [1] * 8 + [4]
    assert np.flatnonzero(found.serving == 4)[0] == 7 + 1 + 5
    # Below 90 % of it from minute 25 on; that alarm wants 15 minutes.
    assert np.flatnonzero(found.serving == 1)[-1] == 84
    assert found.billed[25 + 14] == 4
    assert found.billed[25 + 15] == 1
    assert found.hours == pytest.approx(found.billed.sum() / 60)


@pytest.mark.parametrize(("least", "most", "top"), [(1, 3, 3), (2, 10, 8), (20, 30, 20)])
def test_target_tracking_stays_within_its_limits(least, most, top):
    found = fleet.track(np.array([10] * 10 + [800] * 60), target=100, least=least, most=most, start=5)
    assert found.billed.min() == least
    assert found.billed.max() == top


def test_a_load_just_below_the_target_changes_nothing():
    found = fleet.track(np.array([95] * 200), target=100, least=1, most=10, start=5)
    assert set(found.serving) == {1}


def test_asynchronous_goes_to_zero_and_wakes():
    counts = np.zeros(120, int)
    counts[30] = 1
    found = fleet.to_zero(counts, able=60, most=10, start=5, idle=10)
    # Seen after a minute, there 5 minutes later; gone when the picture is done and 10 minutes have passed.
    assert np.flatnonzero(found.serving).tolist() == [37, 38, 39, 40]
    assert np.flatnonzero(found.billed).tolist() == list(range(31, 41))


def test_the_lives_of_instances():
    assert fleet.lives(np.array([1, 3, 2, 2, 0, 1])) == [(60, 120), (60, 240), (0, 240), (300, math.inf)]


# --- whole days


def outcomes(requests: str, curve: str, book: prices.Book, **changes) -> dict[str, simulate.Outcome]:
    settings = simulate.Settings(cold=10, **{k: changes.pop(k) for k in ("sample", "most") if k in changes})
    found = simulate.simulate(case(traffic=traffic.make(requests, curve), **changes), book, settings)
    return {outcome.name: outcome for outcome in found}


def test_a_quiet_day_has_no_queue_and_the_bills_price(book):
    found = outcomes("1/min", "constant", book)
    fixed = found["real-time, fixed"]
    assert fixed.percentile(50) == pytest.approx(1 / 24, rel=0.03)
    assert fixed.percentile(99) == pytest.approx(1.5 / 24, rel=0.1)
    assert fixed.lines == bill.bill(case(), book)
    formula = bill.total(bill.bill(case(kind="async", count=1), book))
    assert bill.total(found["asynchronous"].lines) == pytest.approx(formula, rel=bill.Decimal("0.0001"))
    assert fixed.over(1) == 0
    assert bill.total(found["real-time, scaled"].lines) - bill.total(fixed.lines) == pytest.approx(
        bill.Decimal("0.2")
    )
    assert (found["asynchronous"].least, found["asynchronous"].top) == (1, 1)  # no ten minutes are idle
    assert 0 < found["serverless"].cold < 0.01


@pytest.mark.parametrize("requests", ["1/day", "0.001/day"])
def test_a_day_with_hardly_a_request_or_none(book, requests):
    given = case(traffic=traffic.make(requests, "constant"))
    report = simulate.report(given, book, simulate.Settings(cold=10), limit=1)
    (number,) = {row["simulated"] for row in report["outcomes"]}
    for row in report["outcomes"]:
        assert (row["p99"] is None) == (number == 0)
        assert row["refused"] == 0
        assert row["over_limit"] == (number > 0 and row["kind"] in ("asynchronous", "serverless"))


def test_a_random_instance_is_an_m_g_1_queue(book):
    """60 % of two instances: each is M/G/1, with a service time whose spread is 0.2 of its mean."""
    fixed = outcomes("28.8/s", "constant", book, busy=0.7, sample=300_000)["real-time, fixed"]
    wait = 0.6 / (1 - 0.6) * (1 + simulate.SPREAD**2) / 2 / 24
    assert fixed.top == 2
    assert np.average(fixed.latencies, weights=fixed.weights) == pytest.approx(wait + 1 / 24, rel=0.03)


@pytest.mark.parametrize("curve", ["constant", "office"])
@pytest.mark.parametrize("kind", [simulate.real_time, simulate.scaled])
def test_a_slice_of_the_fleet_stands_for_all_of_it(book, curve, kind):
    slow = speed.given("ml.c7i.large", 4)
    given = case(traffic=traffic.make("12/s", curve), speeds=slow)
    whole, sliced = (
        kind(given, book, arrivals.day_of(given.traffic, settings.seed, 2 * settings.sample), settings)
        for settings in (simulate.Settings(10, sample=10**9), simulate.Settings(10, seed=1, sample=200_000))
    )
    assert len(whole.latencies) == pytest.approx(12 * 86400, rel=0.01)
    assert len(sliced.latencies) < 0.6 * len(whole.latencies)
    assert sliced.weights.sum() == pytest.approx(12 * 86400, rel=0.02)
    for percent in (50, 99):
        assert sliced.percentile(percent) == pytest.approx(whole.percentile(percent), rel=0.1)


def test_scaling_saves_money_and_costs_time(book):
    found = outcomes("100/s", "office", book, sample=100_000)
    fixed, scaled = found["real-time, fixed"], found["real-time, scaled"]
    assert fixed.top == 14
    assert scaled.least == 2
    assert bill.total(scaled.lines) < 0.75 * float(bill.total(fixed.lines))
    assert scaled.percentile(99) > fixed.percentile(99)


def test_too_few_instances_answer_what_they_can(book):
    found = outcomes("100/s", "constant", book, sample=100_000, most=3)
    scaled = found["real-time, scaled"]
    assert scaled.refused == pytest.approx(1 - 3 * 24 / 100, abs=0.01)
    assert scaled.over(1) > 0.99
    assert scaled.percentile(99) < simulate.CUT_OFF + 1
    assert found["real-time, fixed"].refused == 0


def test_asynchronous_wakes_in_the_minutes_that_it_takes(book):
    found = outcomes("4/hour", "constant", book)["asynchronous"]
    assert found.least == 0
    slowest = found.latencies.max()
    assert 5 * 60 < slowest < (1 + fleet.WAKE + case().start) * 60 + 1
    assert found.refused == 0


def test_beyond_200_at_a_time_serverless_refuses(book):
    found = outcomes("20000/s", "constant", book, sample=1000)["serverless"]
    load = 20000 / case(kind="serverless").speed()
    assert found.refused == pytest.approx(traffic.loss(load, 200))
    assert found.over(1) == pytest.approx(found.refused)
    few = outcomes("1/s", "constant", book, sample=1000)["serverless"]
    assert few.refused == pytest.approx(0, abs=1e-12)


def test_real_times_are_each_simulated_once(tmp_path, book):
    times = np.sort(np.random.default_rng(0).uniform(0, 7200, 5000))
    (tmp_path / "times.csv").write_text("".join(f"{1_795_334_400 + time:.3f}\n" for time in times))
    found = outcomes("1/min", str(tmp_path / "times.csv"), book)
    assert [len(outcome.latencies) for outcome in found.values()] == [5000] * 4
    assert found["real-time, fixed"].lines[0].amount == 2 * 744


def test_the_seed_decides(book):
    one, same = (outcomes("5/s", "spike", book)["serverless"].latencies for _ in range(2))
    assert (one == same).all()
    other = simulate.simulate(
        case(traffic=traffic.make("5/s", "spike")), book, simulate.Settings(cold=10, seed=1)
    )[-1]
    assert len(other.latencies) != len(one) or (other.latencies != one).any()


@pytest.mark.parametrize("requests", ["1/min", "10/s", "1000/s"])
def test_the_days_of_the_readme_are_sane(requests, book):
    settings = simulate.Settings(cold=10, sample=100_000)
    given = case(traffic=traffic.make(requests, "office"))
    by_kind = {row["kind"]: row for row in simulate.report(given, book, settings, limit=1)["outcomes"]}
    assert list(by_kind) == ["real-time, fixed", "real-time, scaled", "asynchronous", "serverless"]
    assert by_kind["real-time, fixed"]["over_limit"] < 0.001
    assert by_kind["serverless"]["refused"] == pytest.approx(0, abs=1e-3)
    for row in by_kind.values():
        assert 0 < row["p50"] <= row["p99"]
        assert 0 <= row["over_limit"] <= 1


def test_100_000_requests_a_second_are_simulated_too(book):
    found = outcomes("100000/s", "constant", book, sample=100_000)
    assert found["real-time, fixed"].top == math.ceil(100_000 / (24 * 0.7))
    assert found["real-time, fixed"].weights.sum() == pytest.approx(100_000 * 86400, rel=0.02)


def test_the_target_of_scaling_can_be_the_deployments_own():
    words = ["--simulate", "--requests=5/s", "--invocations=120", "--count=1"]
    report = asked(*words)
    (scaled,) = (row for row in report["outcomes"] if row["kind"] == "real-time, scaled")
    assert scaled["instances"] == [3, 3]
    assert report["notes"][0].startswith("scaling aims at 120 requests a minute and instance")


def test_table_and_json_of_a_day_agree():
    words = [sys.executable, ROOT / "cost" / "estimate.py", "--simulate", "--requests=1/s", "--curve=spike"]
    table, text = (
        subprocess.run([*words, *more], capture_output=True, text=True, check=True, env=bare()).stdout
        for more in ([], ["--json"])
    )
    for row in json.loads(text)["outcomes"]:
        (line,) = (line for line in table.splitlines() if line.startswith(f"  {row['kind']} "))
        assert f"${row['monthly']:,.2f} " in line or f"${row['monthly']:.3f} " in line
        assert f" {1000 * row['p50']:.0f} ms" in line
        assert f"{row['simulated']:,}" in line


def test_a_case_is_not_changed_by_a_simulation(book):
    before = case()
    simulate.simulate(before, book, simulate.Settings(cold=10))
    assert before == replace(before)
    assert before.kind == "real-time"
